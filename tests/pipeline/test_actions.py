"""The rows that a step's last layer is finished for."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moelens.pipeline.actions import Actions
from moelens.schedule.batch import LogitRow


class Gathering:
    """Ops that gather rows where they lie, as a GPU's do."""

    def embed(self, table: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
        assert token_ids.device == table.device and token_ids.dtype == torch.int32
        return table.index_select(0, token_ids)


def rows_to_finish(layer: int, rows: list[int], device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Of two layers and four rows, of which `rows` give logits."""
    request: Any = None
    batch = SimpleNamespace(logit_rows=[LogitRow(request, row) for row in rows])
    x, q = torch.arange(8.0).view(4, 2).to(device), torch.arange(24.0).view(4, 2, 3).to(device)
    part: Any = SimpleNamespace(x=x, q=q, batch=batch)
    actions: Any = SimpleNamespace(
        _device=SimpleNamespace(is_host=True, ops=Gathering()),
        _architecture=SimpleNamespace(config=SimpleNamespace(layers=[None] * 2)),
    )
    return Actions._rows_to_finish(actions, layer, part)


@pytest.mark.parametrize(
    ("layer", "rows", "kept"), [(0, [1], [0, 1, 2, 3]), (1, [1, 3], [1, 3]), (1, [0, 1, 2, 3], None)]
)
def test_the_last_layer_is_finished_for_rows_that_give_logits(
    layer: int, rows: list[int], kept: list[int] | None
) -> None:
    x, attended = rows_to_finish(layer, rows, "cpu")
    wanted = kept or rows
    assert x[:, 0].tolist() == [2.0 * row for row in wanted]
    assert attended.flatten(1)[:, 0].tolist() == [6.0 * row for row in wanted]


def test_they_are_picked_on_the_device_that_they_lie_on() -> None:
    x, attended = rows_to_finish(1, [1, 3], "meta")
    assert x.shape == (2, 2) and attended.flatten(1).shape == (2, 6) and x.device.type == attended.device.type == "meta"
