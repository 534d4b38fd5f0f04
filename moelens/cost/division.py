"""Which rows of a layer the host finishes, when experts that few rows go to cost less to read there than to bring."""

from __future__ import annotations

import itertools
from collections.abc import Sequence, Set
from dataclasses import dataclass

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
    experts. Both sides begin when the router has chosen, and the layer goes on when both have ended.
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

    def pays(self, rows: int, own: LayerSeconds) -> bool:
        """Whether the layer is expected to take clearly less time when `rows` rows are divided than when all experts
        have come ahead, which they do while the layer before is computed.

        `own` is what the rows take there with all experts. Routing is taken to be that of the cost model.
        """
        if not 0 < rows <= MOST_ROWS:
            return False
        whole = max(self.link_seconds(self.ffn.experts), own.choosing + own.finishing)
        divided = min(
            self._seconds(rows, host, own.attending) + own.finishing * (rows - host) / rows
            for host in _tried(rows)
            if host
        )
        return own.choosing + divided <= WORTH * whole

    def expected_rows_of_host(self, rows: int, busy_seconds: float) -> int:
        """How many of `rows` rows the host is expected to finish, were routing what it is taken to be."""
        return min(_tried(rows), key=lambda host: self._seconds(rows, host, busy_seconds))

    def _seconds(self, rows: int, host: int, busy_seconds: float) -> float:
        """Until both sides have ended."""
        touched = self.cost.routing.touched
        own = self.host_seconds(host, touched(self.ffn, host)) + (busy_seconds if host else 0.0)
        return max(self.link_seconds(touched(self.ffn, rows - host)), own)

    def rows_of_host(self, ids: Sequence[Sequence[int]], present: Set[int], busy_seconds: float) -> list[int]:
        """The rows of ids [T][A] that the host finishes so that both sides end soonest; `present` have been brought.

        Rows go to the host one by one, each time the one whose experts the fewest others of the device's need, as long
        as that is faster.
        """
        users: dict[int, int] = {}  # by expert that has to be brought, how many of the device's rows go there
        for expert in itertools.chain(*ids):
            if expert not in present:
                users[expert] = users.get(expert, 0) + 1
        left, host, host_experts = set(range(len(ids))), list[int](), set[int]()
        best, best_seconds = 0, self.link_seconds(len(users))
        while left:
            row = max(left, key=lambda r: (sum(users.get(expert) == 1 for expert in ids[r]), -r))
            left.remove(row)
            host.append(row)
            host_experts.update(ids[row])
            for expert in ids[row]:
                if expert in users:
                    users[expert] -= 1
                    if not users[expert]:
                        del users[expert]
            own = self.host_seconds(len(host), len(host_experts)) + busy_seconds
            seconds = max(self.link_seconds(len(users)), own)
            if seconds < best_seconds:
                best, best_seconds = len(host), seconds
            if own > best_seconds:
                break
        return sorted(host[:best])


def _tried(rows: int) -> list[int]:
    """Numbers of rows that the host might finish."""
    return sorted({rows * tried // TRIED for tried in range(TRIED + 1)})
