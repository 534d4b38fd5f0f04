"""The extension module that csrc/cuda makes: each op is started on a stream, a cudaStream_t as an integer."""

from torch import Tensor

def count_devices() -> tuple[int, str]: ...
def experts_workspace_bytes(tokens: int, hidden: int, experts: int, active: int, width: int) -> int: ...
def rms_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, stream: int) -> None: ...
def layer_norm(x: Tensor, weight: Tensor, eps: float, out: Tensor, stream: int) -> None: ...
def split_qkv(
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
    stream: int,
) -> None: ...
def route(logits: Tensor, scoring: str, norm: float | None, ids: Tensor, weights: Tensor, stream: int) -> None: ...
def linear(
    x: Tensor,
    weight: Tensor,
    rows: int,
    columns: int,
    bias: Tensor | None,
    residual: Tensor | None,
    scale: float,
    out: Tensor,
    stream: int,
) -> None: ...
def experts(
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    width: int,
    hidden: int,
    ids: Tensor,
    scores: Tensor,
    activation: str,
    residual: Tensor | None,
    scale: float,
    workspace: Tensor,
    out: Tensor,
    stream: int,
) -> None: ...
def write_kv(
    k: Tensor, v: Tensor, keys: Tensor, values: Tensor, block_tokens: int, slots: Tensor, stream: int
) -> None: ...
def read_kv(
    keys: Tensor, values: Tensor, block_tokens: int, slots: Tensor, k: Tensor, v: Tensor, stream: int
) -> None: ...
