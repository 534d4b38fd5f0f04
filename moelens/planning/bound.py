"""Stage 1: the most that a machine can reach, in closed form. Equation numbers are those of arXiv 2504.09345.

T counts prefill and decode tokens together; generated tokens are g of every p + g. M is in tokens of context.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from moelens.cost.hardware import HardwareSpec
from moelens.cost.routing import EVEN, RoutingLoad
from moelens.cost.work import Work, layer_weight_bytes, stage_work
from moelens.cost.workload import StepShape
from moelens.models.config import ModelConfig, MoEFFN
from moelens.pipeline.task import Stage


def flops_per_streamed_byte(
    tokens: float, *, experts: int, active: int, hidden: int, width: int, queries_per_kv_head: int
) -> float:
    """Eq 1: n·(6·N_k·h·h_i + 4h² + 4h²/s) / (6·N_e·h·h_i + 4h² + 4h²/s), of bfloat16 weights."""
    attention = 4 * hidden**2 + 4 * hidden**2 / queries_per_kv_head
    computed = 6 * active * hidden * width + attention
    streamed = 6 * experts * hidden * width + attention
    return tokens * computed / streamed


def flops_per_streamed_byte_closed(tokens: float, *, experts: int, active: int) -> float:
    """Eq 1 where the experts are all that counts: n·N_k/N_e."""
    return tokens * active / experts


def saturating_tokens(flops_per_second: float, link_bytes_per_second: float, *, experts: int, active: int) -> float:
    """Eq 2: the tokens in a pass from which the device, and not the link, is the limit: (C/B)·(N_e/N_k)."""
    return flops_per_second / link_bytes_per_second * experts / active


def parallelism_memory_efficiency(prompt_tokens: float, output_tokens: float) -> float:
    """Eq 3, exact: tokens computed in parallel per token of context held: (p+g) / Σ_{j=0..g}(p+j)."""
    p, g = prompt_tokens, output_tokens
    return (p + g) / ((g + 1) * (p + g / 2))


def parallelism_memory_efficiency_closed(prompt_tokens: float, output_tokens: float) -> float:
    """Eq 3, the closed form: 2(p+g) / ((2p+g)·g)."""
    p, g = prompt_tokens, output_tokens
    return 2 * (p + g) / ((2 * p + g) * g)


def served_per_held_token(prompt_tokens: float, output_tokens: float) -> float:
    """Eq 3 for this engine, which no schedule of it exceeds: (p+g) / Σ_{j=0..g-1}(p+j).

    The pass that computes the prompt gives the first token, and the last token is never computed itself: a request is
    in g passes, not g + 1.
    """
    p, g = prompt_tokens, output_tokens
    return (p + g) / (g * (p + (g - 1) / 2))


def most_tokens_per_second(efficiency: float, kv_tokens: float, stream_seconds: float, device: float) -> float:
    """Eq 4: min(PME·M/δ, T_GPU), in prefill and decode tokens; `device` is T_GPU in tokens per second."""
    return min(efficiency * kv_tokens / stream_seconds, device)


def generated_share(prompt_tokens: float, output_tokens: float) -> float:
    """Derived: generated tokens are g/(p+g) of all."""
    return output_tokens / (prompt_tokens + output_tokens)


def memory_bytes_per_second(link_bytes_per_second: float, kv_bytes: float, weight_bytes: float) -> float:
    """Eq 5: what the host's memory must deliver: B_KV + B_IO = B_IO·(1 + M_KV/M_weight)."""
    return link_bytes_per_second * (1 + kv_bytes / weight_bytes)


def attention_flops_per_second(kv_bytes_per_second: float, queries_per_kv_head: float) -> float:
    """Eq 6: the host's arithmetic for attention, s operations per byte of bfloat16 keys and values read."""
    return queries_per_kv_head * kv_bytes_per_second


def effective_kv_factor(prompt_tokens: float, output_tokens: float) -> float:
    """Eq 7: what sequences of spread ages gain over all being as long as they get: (p+g) / (p+g/2)."""
    p, g = prompt_tokens, output_tokens
    return (p + g) / (p + g / 2)


@dataclass(frozen=True)
class Bound:
    """What no schedule exceeds, and by which limit.

    `tokens_per_second` counts prefill and decode; `limits` has the tokens per second that each resource alone allows,
    the least of which is the bound. `turning_kv_bytes` is the KV memory from which more of it gains nothing.
    """

    tokens_per_second: float
    generated_tokens_per_second: float
    limit: str
    limits: dict[str, float]
    step_tokens: float
    stream_seconds: float
    turning_kv_bytes: float


def bound(
    config: ModelConfig,
    hardware: HardwareSpec,
    *,
    kv_bytes: float,
    prompt_tokens: float,
    output_tokens: float,
    routing: RoutingLoad = EVEN,
    disk_bytes: float = 0.0,
) -> Bound:
    """The bound of a machine on requests of p and g tokens, as many as there may be (Eqs 1–6 together).

    `disk_bytes` of experts are read from files in every pass. With a device, all layers are taken to stream in every
    pass; those that stay on it are a plan's gain beyond this.
    """
    per_token = _PerToken(config, hardware, prompt_tokens, output_tokens, routing, disk_bytes)
    efficiency = served_per_held_token(prompt_tokens, output_tokens)
    tokens = efficiency * kv_bytes / config.kv_bytes_per_token
    limits = per_token.limits(tokens)
    limit = min(limits, key=lambda name: limits[name])
    turning = per_token.turning_tokens() / efficiency * config.kv_bytes_per_token
    return Bound(
        tokens_per_second=limits[limit],
        generated_tokens_per_second=limits[limit] * generated_share(prompt_tokens, output_tokens),
        limit=limit,
        limits=limits,
        step_tokens=tokens,
        stream_seconds=per_token.streamed_bytes / hardware.weights_bytes_per_second,
        turning_kv_bytes=turning,
    )


class _PerToken:
    """What a token asks of each resource."""

    def __init__(
        self,
        config: ModelConfig,
        hardware: HardwareSpec,
        prompt: float,
        output: float,
        routing: RoutingLoad,
        disk_bytes: float,
    ) -> None:
        self._disk_bytes = disk_bytes
        self._config, self._hardware, self._routing = config, hardware, routing
        self._layers = range(len(config.layers))
        one = StepShape(decode_tokens=1, logit_rows=1)
        products = self._total(lambda layer: _products(config, layer, one, routing)).flops
        unfinished = 1 - generated_share(prompt, output)  # rows that the last layer is not finished for
        last = stage_work(Stage.AFTER_ATTENTION, config, len(config.layers) - 1, one, routing)
        products -= last.flops * unfinished
        head = stage_work(Stage.LOGITS, config, 0, one).flops * generated_share(prompt, output)
        computed = 1 - 1 / (prompt + output)  # the last token of a request is not
        self.flops = products * computed + head
        keys = (output - 1) * (prompt + output / 2 + 0.5)  # seen by the decodes of one request
        seen = StepShape(decode_tokens=1, decode_context=1)
        read = self._total(lambda layer: stage_work(Stage.ATTEND_DECODES, config, layer, seen))
        windowed = any(layer.attention.window is not None for layer in config.layers)
        share = 0.0 if windowed else keys / (prompt + output)  # of a window nothing is known here: no bound by it
        self.kv_bytes, self.attention_flops = read.kv_bytes * share, read.flops * share

    @property
    def streamed_bytes(self) -> float:
        """Bytes of weights that a pass needs at the least: all layers' over a link, from memory those of one token."""
        if self._hardware.device is not None:
            return float(sum(layer_weight_bytes(self._config, layer) for layer in self._layers))
        one = StepShape(decode_tokens=1)  # which gives no logits
        return self._total(lambda layer: _products(self._config, layer, one, self._routing)).weight_bytes

    def limits(self, tokens: float) -> dict[str, float]:
        """Tokens per second by resource, with so many tokens in a pass."""
        hardware, streamed = self._hardware, self.streamed_bytes
        limits: dict[str, float] = {}
        if hardware.device is not None:
            limits["compute"] = hardware.device.flops_per_second / self.flops
            limits["link"] = tokens * hardware.to_device_bytes_per_second / streamed
            limits["host attention"] = _ratio(hardware.host.flops_per_second, self.attention_flops)
        else:
            limits["compute"] = hardware.host.flops_per_second / (self.flops + self.attention_flops)
        if self._disk_bytes:
            limits["disk"] = tokens * hardware.file_bytes_per_second / self._disk_bytes
        moved = streamed + tokens * self.kv_bytes
        limits["host memory"] = tokens * hardware.host.bytes_per_second / moved
        return limits

    def turning_tokens(self) -> float:
        """Tokens in a pass from which neither link nor memory is the limit, or the gain of more is below 1 %."""
        low, high = 1.0, 1e9
        goal = 0.99 * min(self.limits(high).values())
        while high / low > 1.001:
            middle = (low * high) ** 0.5
            low, high = (low, middle) if min(self.limits(middle).values()) >= goal else (middle, high)
        return high

    def _total(self, work: Callable[[int], Work]) -> Work:
        total = Work()
        for layer in self._layers:
            total += work(layer)
        return total


def _products(config: ModelConfig, layer: int, shape: StepShape, routing: RoutingLoad) -> Work:
    before = stage_work(Stage.BEFORE_ATTENTION, config, layer, shape)
    return before + stage_work(Stage.AFTER_ATTENTION, config, layer, shape, routing)


def _ratio(amount: float, per: float) -> float:
    return amount / per if per else float("inf")


def active_share(config: ModelConfig) -> float:
    """N_k/N_e of a model, averaged over its layers; 1 for a dense one."""
    shares = [layer.ffn.active / layer.ffn.experts if isinstance(layer.ffn, MoEFFN) else 1.0 for layer in config.layers]
    return sum(shares) / len(shares)
