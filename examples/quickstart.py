"""The smallest use: python examples/quickstart.py path/to/checkpoint"""

import sys

from moelens import LLM, SamplingParams

llm = LLM(sys.argv[1])
prompts = ["The capital of France is", "A Mixture-of-Experts model is"]
for output in llm.generate(prompts, SamplingParams(temperature=0, max_tokens=32)):
    print(f"{output.prompt!r} -> {output.outputs[0].text!r}")
