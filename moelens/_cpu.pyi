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
    deferring: bool
    @property
    def deferred(self) -> int: ...
    @property
    def deferred_bytes(self) -> int: ...
    def finish(self) -> list[tuple[float, float]]: ...
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
    def embed(self, table: Tensor, token_ids: Tensor, out: Tensor) -> None: ...
    def split_qkv(
        self,
        joined: Tensor,
        positions: Tensor,
        inverse_frequencies: Tensor,
        magnitude: float,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        limit: float | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> None: ...
    def project_qkv(
        self,
        x: Tensor,
        norm_weight: Tensor,
        norm_eps: float,
        centred: bool,
        weight: Tensor,
        columns: int,
        bias: Tensor | None,
        positions: Tensor,
        inverse_frequencies: Tensor,
        magnitude: float,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        eps: float,
        limit: float | None,
        q: Tensor,
        k: Tensor,
        v: Tensor,
    ) -> None: ...
    def project_and_route(
        self,
        attended: Tensor,
        output: Tensor,
        rows: int,
        columns: int,
        bias: Tensor | None,
        x: Tensor,
        scale: float,
        norm_weight: Tensor,
        norm_eps: float,
        centred: bool,
        router: Tensor,
        experts: int,
        scoring: str,
        norm_power: float | None,
        sum: Tensor,
        normed: Tensor,
        ids: Tensor,
        weights: Tensor,
    ) -> None: ...
    def scale(self, x: Tensor, factor: float, out: Tensor) -> None: ...
    def sigmoid_scores(self, x: Tensor, weight: Tensor, rows: int, columns: int, out: Tensor) -> None: ...
    def route(self, logits: Tensor, scoring: str, norm: float | None, ids: Tensor, weights: Tensor) -> None: ...
    def write_kv(
        self, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, block_tokens: int, slots: Tensor
    ) -> None: ...
    def attention(
        self,
        q: Tensor,
        keys: Tensor,
        values: Tensor,
        kv_heads: int,
        block_tokens: int,
        starts: Tensor,
        cached: Tensor,
        block_ids: Tensor,
        scale: float,
        window: int | None,
        out: Tensor,
    ) -> None: ...
    def mask_logits(self, logits: Tensor, allowed: Tensor, rows: Tensor) -> None: ...
    def sample(
        self,
        logits: Tensor,
        temperature: Tensor,
        top_k: Tensor,
        top_p: Tensor,
        min_p: Tensor,
        uniform: Tensor,
        out: Tensor,
    ) -> None: ...
    def read_memory(self, memory: Tensor) -> None: ...
    def multiply_registers(self, flops: int, int8: bool = False) -> int: ...
