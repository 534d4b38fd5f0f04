"""Which rows of a layer the host finishes, when experts that few rows go to cost less to read there than to bring."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moelens.cost.seconds import CostModel, stage_seconds
from moelens.cost.work import expert_weight_bytes, experts_work
from moelens.cost.workload import LayerSeconds, StepShape
from moelens.models.config import MoEFFN
from moelens.pipeline.task import Stage

WORTH = 0.9  # of the time with all experts, which a divided layer may take
TRIED = 16  # divisions that are tried
MOST_ROWS = 64  # of a step that is divided; with more, hardly an expert is left that none of the device's rows goes to


@dataclass(frozen=True)
class DividedLayer:
    """A layer whose rows are divided between the device, which its experts have to be brought to, and the host.

    The host computes a row's experts all together, so that they are added up as on the device, in the order of the
    experts. Both sides begin when the router has chosen: the host with its rows, the link with the experts of the
    others, which the device then computes.
    """

    cost: CostModel
    layer: int

    @property
    def ffn(self) -> MoEFFN:
        ffn = self.cost.config.layers[self.layer].ffn
        assert isinstance(ffn, MoEFFN)
        return ffn

    def link_seconds(self, experts: float) -> float:
        """To bring so many experts."""
        nbytes = experts * expert_weight_bytes(self.cost.config, self.layer) / self.ffn.experts
        scales = self.cost.scales
        scale = scales.get(Stage.LOAD_EXPERTS, scales.get(Stage.LOAD, 1.0))
        return nbytes / self.cost.hardware.to_device_bytes_per_second * scale

    def host_seconds(self, rows: int, experts: float) -> float:
        """Of rows that go to so many experts."""
        if not rows:
            return 0.0
        work = experts_work(self.cost.config, self.layer, rows, experts)
        seconds = stage_seconds(self.cost.hardware.host, Stage.FINISH_ROWS, work, StepShape(rows, rows))
        return seconds * self.cost.scales.get(Stage.FINISH_ROWS, 1.0)

    def device_seconds(self, rows: int, experts: float) -> float:
        """Of rows that go to so many experts, when these have been brought."""
        device, scales = self.cost.hardware.device, self.cost.scales
        if not rows or device is None:
            return 0.0
        work = experts_work(self.cost.config, self.layer, rows, experts)
        return stage_seconds(device, Stage.EXPERTS, work, StepShape(rows, rows)) * scales.get(
            Stage.AFTER_ATTENTION, 1.0
        )

    def pays(self, rows: int, own: LayerSeconds) -> bool:
        """Whether the layer is expected to take clearly less time when `rows` rows are divided than when all experts
        have come ahead, which they do while the layer before is computed.

        `own` is what the rows take there with all experts. Routing is taken to be that of the cost model.
        """
        if not 0 < rows <= MOST_ROWS:
            return False
        whole = max(self.link_seconds(self.ffn.experts), own.choosing + own.finishing)
        routing = self.cost.demand(Stage.ROUTE, self.layer, StepShape(rows, rows)).seconds
        divided = min(self._seconds(rows, host, own.attending) for host in _tried(rows) if host)
        return own.choosing + routing + divided <= WORTH * whole

    def expected_rows_of_host(self, rows: int, busy_seconds: float) -> int:
        """How many of `rows` rows the host is expected to finish, were routing what it is taken to be."""
        return min(_tried(rows), key=lambda host: self._seconds(rows, host, busy_seconds))

    def _seconds(self, rows: int, host: int, busy_seconds: float) -> float:
        """From the router's choice to the layer's end."""
        of_host, of_device = (self.cost.routing.touched(self.ffn, of) for of in (host, rows - host))
        own = self.host_seconds(host, of_host) + (busy_seconds if host else 0.0)
        return max(self.link_seconds(of_device), own) + self.device_seconds(rows - host, of_device)

    def rows_of_host(self, ids: Sequence[Sequence[int]], present: Set[int], busy_seconds: float) -> list[int]:
        """The rows of ids [T][A] that the host finishes so that the layer ends soonest; `present` have been brought.

        Rows go to the host one by one, each time the one whose experts the fewest others of the device's need. Of these
        divisions some are weighed, evenly spread, and the best is taken.
        """
        rows = len(ids)
        goes = np.zeros((rows, self.ffn.experts), dtype=np.float32)  # 1 where a row goes to an expert
        np.put_along_axis(goes, np.asarray(ids, dtype=np.int64).reshape(rows, self.ffn.active), 1.0, axis=1)
        absent = np.ones(self.ffn.experts, dtype=bool)
        absent[list(present)] = False
        users = goes.sum(0)  # by expert, how many of the device's rows go there
        of_host = np.zeros_like(users)
        taken, host = np.zeros(rows, dtype=np.float32), list[int]()
        best, best_seconds = 0, math.inf
        for count in range(rows + 1):
            if count in _tried(rows):
                own = self.host_seconds(count, _count(of_host)) + (busy_seconds if count else 0.0)
                ready = max(self.link_seconds(_count(users[absent])), own)
                seconds = ready + self.device_seconds(rows - count, _count(users))
                best, best_seconds = (count, seconds) if seconds < best_seconds else (best, best_seconds)
            if count < rows:
                row = int((goes @ ((users == 1) & absent) - taken).argmax())
                host.append(row)
                taken[row] = math.inf
                of_host += goes[row]
                users -= goes[row]
        return sorted(host[:best])


def _count(numbers: npt.NDArray[np.float32]) -> int:
    """How many are not 0."""
    return int(np.count_nonzero(numbers))


@functools.cache
def _tried(rows: int) -> list[int]:
    """Numbers of rows that the host might finish."""
    return sorted({rows * tried // TRIED for tried in range(TRIED + 1)})
