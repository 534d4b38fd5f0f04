"""What a machine can do, measured or from a named source; seconds appear only where work is divided by these."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moelens.errors import ConfigError

UNKNOWN_DISK_BYTES_PER_SECOND = 2e9  # an NVMe drive of PCIe 3, where nothing was measured or told


@dataclass(frozen=True)
class Curve:
    """A measured dependence y(x) with x, y > 0: straight between its points on logarithmic axes.

    Below the first point y stays as it is; beyond the last it grows with x to the power `growth`: 1 where more x is
    simply more work, 0 where a rate has settled.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    growth: float = 0.0

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in zip(self.x, self.x[1:], strict=False))
        if len(self.x) != len(self.y) or not self.x or not ascending or min(*self.x, *self.y) <= 0:
            raise ConfigError(
                f"A curve needs as many y as x, all above 0 and x ascending, got x={self.x}, y={self.y}: measure the "
                "machine again (python -m moelens plan --refresh)."
            )

    def at(self, x: float) -> float:
        """y at any x."""
        if x <= self.x[0]:
            return self.y[0]
        if x >= self.x[-1]:
            return self.y[-1] * float((x / self.x[-1]) ** self.growth)
        right = bisect.bisect_right(self.x, x)
        x0, x1, y0, y1 = self.x[right - 1], self.x[right], self.y[right - 1], self.y[right]
        share = math.log(x / x0) / math.log(x1 / x0)
        return y0 * float((y1 / y0) ** share)


@dataclass(frozen=True)
class Processor:
    """One processor and the memory it computes from.

    `flops_per_second` and `bytes_per_second` are what products and reads reach at their best; `task_seconds` is what a
    task costs that does nothing. `cores` are what its tasks take of those that a machine's parts share (see
    `HardwareSpec`). `stages` are measured curves by the name of a stage (see `moelens.cost.seconds`):
    where there is one it is used in place of the two rates.
    """

    name: str
    flops_per_second: float
    bytes_per_second: float
    memory_bytes: float
    task_seconds: float = 0.0
    stages: Mapping[str, Curve] = field(default_factory=dict)
    cores: float = 0.0

    def __post_init__(self) -> None:
        for name in ("flops_per_second", "bytes_per_second", "memory_bytes"):
            _require_positive(f"{self.name}: {name}", getattr(self, name))


@dataclass(frozen=True)
class HardwareSpec:
    """A machine: the host, the device (None: the host does all) and the link between.

    `step_seconds` and `row_seconds` are what a step costs outside of its tasks (scheduling, laying out, taking in), in
    all and per row; `fresh_seconds_per_byte` what storing into cache that nobody wrote before costs on top.
    `bytes_per_second_by_threads` are reads of the host's memory by 1, 2, … threads. While the link moves both ways,
    each keeps `both_ways_share` of its rate. On an emulated device, which is threads of the host and computes from its
    memory (`device_shares_memory`), device, host and link share `cores`, of which each direction of the link takes
    `link_cores` while it moves something. `disk_bytes_per_second` is at what rate weights come from files (None: not
    known). `sources` says of each figure where it comes from.
    """

    name: str
    host: Processor
    device: Processor | None = None
    to_device_bytes_per_second: float = math.inf
    to_host_bytes_per_second: float = math.inf
    step_seconds: float = 0.0
    row_seconds: float = 0.0
    fresh_seconds_per_byte: float = 0.0
    device_shares_memory: bool = False
    both_ways_share: float = 1.0
    cores: float = math.inf
    link_cores: float = 0.0
    disk_bytes_per_second: float | None = None
    bytes_per_second_by_threads: tuple[float, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("to_device_bytes_per_second", "to_host_bytes_per_second"):
            _require_positive(f"{self.name}: {name}", getattr(self, name))
        if self.disk_bytes_per_second is not None:
            _require_positive(f"{self.name}: disk_bytes_per_second", self.disk_bytes_per_second)

    @property
    def file_bytes_per_second(self) -> float:
        """At what rate files are read; where it is not known, as a drive of PCIe 3 does."""
        return self.disk_bytes_per_second or UNKNOWN_DISK_BYTES_PER_SECOND

    @property
    def weights_bytes_per_second(self) -> float:
        """At what rate weights reach the products: over the link, or from memory."""
        return self.to_device_bytes_per_second if self.device else self.host.bytes_per_second


def read_hardware(path: Path) -> HardwareSpec:
    """The HardwareSpec in a JSON file; raises ConfigError when it holds none."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} can't be read as a hardware file: {error}. Give another, or measure one.") from error
    return from_json(values, str(path))


def from_json(values: Any, where: str) -> HardwareSpec:
    """A HardwareSpec from parsed JSON; raises ConfigError naming `where`."""
    try:
        fields = dict(values)
        for side in ("host", "device"):
            if fields.get(side) is not None:
                fields[side] = _processor(fields[side])
        if "bytes_per_second_by_threads" in fields:
            fields["bytes_per_second_by_threads"] = tuple(fields["bytes_per_second_by_threads"])
        return HardwareSpec(**fields)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"{where}: not a hardware file ({error}): compare it with those in moelens/planning/hardware."
        ) from error


def to_json(hardware: HardwareSpec) -> dict[str, Any]:
    """What `from_json` reads; figures that are infinite are left out."""
    values = asdict(hardware)
    return {name: value for name, value in values.items() if value != math.inf}


def _processor(values: Mapping[str, Any]) -> Processor:
    curves = {
        name: Curve(tuple(curve["x"]), tuple(curve["y"]), curve.get("growth", 0.0))
        for name, curve in values.get("stages", {}).items()
    }
    return Processor(**{**values, "stages": curves})


def _require_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConfigError(f"{name} must be above 0, got {value!r}: correct the hardware file.")
