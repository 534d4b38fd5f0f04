"""What Qwen's families and OLMoE have in common: which layers are dense, normalisation, the names of the experts."""

from __future__ import annotations

from moelens.models.architecture import TensorSpec
from moelens.models.config import MoEFFN
from moelens.models.raw_config import RawConfig
from moelens.models.tensors import matrix, separate_experts


def is_dense(raw: RawConfig, layer: int) -> bool:
    """Whether `mlp_only_layers` or `decoder_sparse_step` makes this layer a dense one."""
    return layer in raw.integers("mlp_only_layers") or (layer + 1) % raw.size("decoder_sparse_step", default=1) != 0


def read_normalisation(raw: RawConfig) -> float | None:
    """`norm_topk_prob` as the norm of a `Routing`."""
    return 1.0 if raw.flag("norm_topk_prob", False) else None


def qwen_moe_tensors(prefix: str, ffn: MoEFFN, hidden: int) -> tuple[TensorSpec, ...]:
    """Router and experts: `{prefix}gate.weight`, `{prefix}experts.N.gate_proj.weight` and so on."""
    expert = f"{prefix}experts.{{expert}}."
    return (
        matrix("router", hidden, (f"{prefix}gate.weight", ffn.experts)),
        *separate_experts(
            *("experts", ffn.experts, ffn.width, hidden),
            gate=f"{expert}gate_proj.weight",
            up=f"{expert}up_proj.weight",
            down=f"{expert}down_proj.weight",
        ),
    )
