"""What a plan's knobs are expected to change, for named models on named machines, and how long choosing takes.

    python bench/plan_knobs.py [--hardware NAME ...] [--model NAME ...] [--json FILE]

Around each chosen plan one knob at a time is set to another value, and the job predicted again in closed form. A name
of a machine that ends in -cpu is its host alone. The first table has, for each value, in how many cases it could be
set, what it gains at best and in the middle, and in how many cases by 1 % and 2 % or more; the second the seconds of
choosing, the most of the three jobs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from moelens.cost.hardware import HardwareSpec
from moelens.cost.seconds import CostModel
from moelens.cost.workload import Workload
from moelens.errors import CapacityError
from moelens.plan import Streaming
from moelens.planning.advice import SHARE_OF_MEMORY, read_model, sizes_of
from moelens.planning.catalogue import hardware_names, model_names, named_hardware
from moelens.planning.default import Limits
from moelens.planning.search import Choice, choose

HOSTS = ("a40-cpu", "h100-cpu", "rtx4090-cpu")
WORKLOADS = {
    "MTBench g=32": Workload.spread(25_000, 98, 450, 32),
    "MTBench g=256": Workload.spread(25_000, 98, 450, 256),
    "RAG g=128": Workload.spread(25_000, 926, 1843, 128),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A job on a machine, and what is chosen for it."""

    cost: CostModel
    limits: Limits
    workload: Workload
    choice: Choice
    seconds: float  # that choosing took

    @classmethod
    def of(cls, model: str, hardware: str, workload: Workload) -> Case:
        cost = CostModel(read_model(model).config, machine(hardware))
        memory_bytes = int(SHARE_OF_MEMORY * cost.hardware.host.memory_bytes)
        limits = Limits(memory_bytes, max_model_len=workload.longest_tokens)
        begin = time.process_time()
        choice = choose(cost, sizes_of(cost.config), limits, 1, workload)
        return cls(cost, limits, workload, choice, time.process_time() - begin)

    def gains(self) -> Iterator[tuple[str, float]]:
        """Each other value that a knob can have, and the chosen plan's seconds over those with it."""
        plan, placement = self.choice.plan, self.choice.placement
        for tokens in (64, 128):
            yield from self._gain(f"block_size={tokens}", Streaming(), tokens)
        if placement is None:
            return
        for name, values in (("ring_layers", (3, 4)), ("load_chunks", (2, 4)), ("parts", (1, 2, 3, 4))):
            for value in values:
                if (plan.choose_parts or name != "parts") and value != getattr(plan, name):
                    yield from self._gain(f"{name}={value}", Streaming(**{name: value}))
        if held := len(placement.layers):
            yield from self._gain("resident_layers: half", Streaming(resident_layers=held // 2))

    def _gain(self, name: str, streaming: Streaming, block_tokens: int = 32) -> Iterator[tuple[str, float]]:
        plan, sizes = self.choice.plan, sizes_of(self.cost.config, block_tokens)
        if not plan.choose_parts and streaming.parts is None and self.choice.placement is not None:
            streaming = dataclasses.replace(streaming, parts=plan.parts)
        limits = dataclasses.replace(
            self.limits,
            max_requests=plan.max_requests,
            step_tokens=plan.step_tokens,
            kv_bytes=plan.kv_tokens * self.cost.config.kv_bytes_per_token,
            streaming=streaming,
        )
        try:
            other = choose(self.cost, sizes, limits, 1, self.workload)
        except CapacityError:
            return
        yield name, self.choice.prediction.seconds / other.prediction.seconds - 1


def machine(name: str) -> HardwareSpec:
    spec = named_hardware(name.removesuffix("-cpu"))
    return dataclasses.replace(spec, device=None, name=name) if name.endswith("-cpu") else spec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hardware", nargs="+", default=[*hardware_names(), *HOSTS])
    parser.add_argument("--model", nargs="+", default=model_names())
    parser.add_argument("--json", type=Path)
    found = parser.parse_args()
    gains: dict[str, dict[str, float]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for hardware in found.hardware:
        for model in found.model:
            for job, workload in WORKLOADS.items():
                try:
                    case = Case.of(model, hardware, workload)
                except CapacityError:
                    continue  # the machine's memory is too small for the model
                slowest = max(case.seconds, seconds.get(model, {}).get(hardware, 0.0))
                seconds.setdefault(model, {})[hardware] = slowest
                for name, gain in case.gains():
                    gains.setdefault(name, {})[f"{hardware}, {model}, {job}"] = gain
        if found.json is not None:
            found.json.write_text(json.dumps({"gains": gains, "seconds": seconds}, indent=1))
    print_tables(gains, seconds)


def print_tables(gains: dict[str, dict[str, float]], seconds: dict[str, dict[str, float]]) -> None:
    print("| knob | cases | at best | in | median | by 1 % | by 2 % |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, cases in gains.items():
        best = max(cases, key=lambda case: cases[case])
        over = " | ".join(str(sum(gain >= least for gain in cases.values())) for least in (0.01, 0.02))
        median = statistics.median(cases.values())
        print(f"| {name} | {len(cases)} | {cases[best]:+.1%} | {best} | {median:+.1%} | {over} |")
    machines = sorted({hardware for row in seconds.values() for hardware in row})
    print(f"\n| model | {' | '.join(machines)} |\n| --- |{' --- |' * len(machines)}")
    for model, row in seconds.items():
        print(f"| {model} | {' | '.join(f'{row[one]:.1f} s' if one in row else '' for one in machines)} |")


if __name__ == "__main__":
    main()
