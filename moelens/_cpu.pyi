"""The extension module that csrc/cpu/bindings makes: each op takes its output as the last argument."""

from torch import Tensor

def available_isas() -> list[str]: ...
def best_isa() -> str: ...

class Kernels:
    def __init__(self, isa: str, threads: int) -> None: ...
    @property
    def isa(self) -> str: ...
    @property
    def threads(self) -> int: ...
    def rms_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None: ...
    def layer_norm(self, x: Tensor, weight: Tensor, eps: float, out: Tensor) -> None: ...
    def linear(
        self,
        x: Tensor,
        weight: Tensor,
        rows: int,
        columns: int,
        bias: Tensor | None,
        residual: Tensor | None,
        scale: float,
        out: Tensor,
    ) -> None: ...
    def pack_matrix(self, source: Tensor, storage: Tensor, first_row: int) -> None: ...
    def experts(
        self,
        x: Tensor,
        gate_up: Tensor,
        down: Tensor,
        width: int,
        ids: Tensor,
        scores: Tensor,
        activation: str,
        residual: Tensor | None,
        scale: float,
        out: Tensor,
    ) -> None: ...
    def pack_gate_up(self, gate: Tensor, up: Tensor, storage: Tensor) -> None: ...
    def pack_down(self, source: Tensor, storage: Tensor) -> None: ...
