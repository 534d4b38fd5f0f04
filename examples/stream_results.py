"""Takes each result as it finishes, in whatever order: python examples/stream_results.py path/to/checkpoint"""

import sys

from moelens import LLM, SamplingParams

llm = LLM(sys.argv[1])
prompts = [f"Write {count} words about the sea:" for count in (200, 10, 50)]
params = [SamplingParams(temperature=0.8, seed=1, max_tokens=length) for length in (96, 8, 32)]

for output in llm.generate_iter(prompts, params):
    print(f"prompt {output.prompt_index} is done: {output.outputs[0].text!r}", flush=True)
