"""Measures throughput: `python -m moelens.bench`, with the flags of `vllm bench throughput`.

arguments (what was asked) · workload (the requests) · measure (run and count) · machine (where) · report (say it).
"""
