"""moelens: bulk text generation from Mixture-of-Experts models.

from moelens import LLM, SamplingParams
llm = LLM("path or hub id")
outputs = llm.generate(["The capital of France is"], SamplingParams(max_tokens=16))
print(outputs[0].outputs[0].text)
"""

from __future__ import annotations

from moelens.errors import (
    CapacityError,
    CheckpointError,
    ConfigError,
    JobError,
    KernelError,
    MoelensError,
    TaskError,
    UnsupportedCallError,
    UnsupportedModelError,
    ValidationError,
)
from moelens.jobs.api import run_batch
from moelens.jobs.options import JobReport
from moelens.llm import LLM
from moelens.outputs import CompletionOutput, Logprob, Metric, RequestOutput, RequestOutputKind, RequestStateStats
from moelens.plan import Plan
from moelens.sampling_params import SamplingParams
from moelens.structured_outputs import StructuredOutputsParams
from moelens.text.prompts import TextPrompt, TokensPrompt

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CapacityError",
    "CheckpointError",
    "CompletionOutput",
    "ConfigError",
    "JobError",
    "JobReport",
    "KernelError",
    "Logprob",
    "Metric",
    "MoelensError",
    "Plan",
    "RequestOutput",
    "RequestOutputKind",
    "RequestStateStats",
    "SamplingParams",
    "StructuredOutputsParams",
    "TaskError",
    "TextPrompt",
    "TokensPrompt",
    "UnsupportedCallError",
    "UnsupportedModelError",
    "ValidationError",
    "__version__",
    "run_batch",
]
