"""The paper's machine by our model: its models, cache sizes and workloads, and pictures for the documents.

    python bench/paper_grid.py [--simulate] [--pictures FOLDER] [--model NAME ...]

Without --simulate stage 2 is the closed form; with it the real scheduler runs 25,000 requests in virtual time in each
cell, which takes some minutes in all. Utilisation is of the device's time, as the paper's is relative to its profile.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from moelens.cost.workload import Workload
from moelens.pipeline.task import Resource
from moelens.planning.advice import Wishes, advise, read_model
from moelens.planning.plot import draw
from moelens.planning.report import Outlook
from moelens.planning.simulate import simulate

REQUESTS = 25_000
WORKLOADS = {
    "MTBench g=32": (98, 450, 32),
    "MTBench g=64": (98, 450, 64),
    "MTBench g=128": (98, 450, 128),
    "MTBench g=256": (98, 450, 256),
    "RAG g=128": (926, 1843, 128),
    "AIME g=512": (128, 410, 512),
}
MODELS = {"Mixtral-8x7B": 16, "Mixtral-8x22B": 24, "DBRX": 24}  # GB of the device
CACHES = (70, 210)  # GB


DRAWN = 4_000  # requests of the pictures' jobs, few enough to be simulated


def look(model: str, gigabytes: float, workload: str, requests: int = REQUESTS) -> Outlook:
    mean, longest, output = WORKLOADS[workload]
    wishes = Wishes(kv_bytes=round(gigabytes * 1e9), host_bytes=10**12, device_bytes=MODELS[model] * 10**9)
    job = Workload.spread(requests, mean, longest, output)
    return advise(read_model(model), model, "a40-paper", job, wishes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--pictures", type=Path)
    parser.add_argument("--model", nargs="*", default=list(MODELS))
    found = parser.parse_args()
    print(
        "| model | cache GB | workload | bound tokens/s | limit | stage 2 tokens/s | generated/s | device % | link % |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for model in found.model:
        for gigabytes in CACHES:
            for workload in WORKLOADS:
                row(model, gigabytes, workload, found.simulate)
    if found.pictures is not None:
        found.pictures.mkdir(parents=True, exist_ok=True)
        for workload in ("MTBench g=32",):
            name = "plan-" + workload.lower().replace(" ", "-").replace("=", "")
            draw(look("Mixtral-8x7B", 70, workload, DRAWN), found.pictures / f"{name}.png")


def row(model: str, gigabytes: float, workload: str, simulated: bool) -> None:
    outlook = look(model, gigabytes, workload)
    most, job = outlook.bound, outlook.prediction
    if simulated:
        job = simulate(outlook.choice.cost, outlook.choice.plan, outlook.workload)
    device, link = (100 * job.utilisation(resource) for resource in (Resource.DEVICE, Resource.TO_DEVICE))
    print(
        f"| {model} | {gigabytes} | {workload} | {most.tokens_per_second:.0f} | {most.limit} "
        f"| {job.tokens_per_second:.0f} | {job.output_tokens_per_second:.0f} | {device:.0f} | {link:.0f} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
