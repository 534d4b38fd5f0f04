"""The chosen configuration of a run; a user's overrides are `dataclasses.replace`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from moelens.errors import ConfigError

KEYS_AT_ONCE = 32  # of a block, that the kernels attend to


@dataclass(frozen=True)
class Placement:
    """What of a model's weights lies on the device, and how much of its memory each purpose takes.

    Embedding, final norm and head always do. `fronts` says whether what every layer needs before its routed experts
    (norms, projections, router, shared experts) does, `layers` which layers do whole. All else streams through
    `ring_layers` slots of `slot_bytes`. `activation_bytes` are counted for what kernels make, `transfer_bytes` are room
    for what comes from the host beside weights.
    """

    fronts: bool
    layers: frozenset[int]
    ring_layers: int
    slot_bytes: int
    weight_bytes: int
    activation_bytes: int
    transfer_bytes: int

    @property
    def ring_bytes(self) -> int:
        return self.ring_layers * self.slot_bytes

    @property
    def device_bytes(self) -> int:
        """All of it."""
        return self.weight_bytes + self.ring_bytes + self.activation_bytes + self.transfer_bytes


@dataclass(frozen=True)
class Plan:
    """How a model is run on a machine.

    `step_tokens` rows at most in a step, of at most `max_requests` requests, cut into `parts` micro-batches, or with
    `choose_parts` into as many up to that as each step is expected to be fastest with; the cache holds `kv_blocks`
    blocks of `block_tokens` tokens, of which at most `retained_blocks` are kept when nobody holds them, for prompts
    that begin alike (`share_prefixes`). On a device `resident_layers` layers stay whole (None: as many as fit); the
    others pass through a ring of `ring_layers`, each in `load_chunks` pieces. The host computes on `threads` threads.
    The experts of `disk_layers` stay in the checkpoint's files and are read in every step, to room for those of
    `disk_ring_layers` layers.

    With `experts_on_host` the host finishes rows of small steps where that is expected to be faster than bringing their
    experts to the device. On a GPU, whose kernels round otherwise than the host's, a request's tokens then depend on
    what runs beside it, so there somebody has to ask for it; an emulated device computes the same bits.
    """

    step_tokens: int
    max_requests: int
    kv_blocks: int
    parts: int = 1
    choose_parts: bool = False
    block_tokens: int = 32
    share_prefixes: bool = True
    retained_blocks: int = 0
    ring_layers: int = 2
    load_chunks: int = 1
    resident_layers: int | None = None
    threads: int = 1
    experts_on_host: bool = False
    disk_layers: tuple[int, ...] = ()
    disk_ring_layers: int = 2

    def __post_init__(self) -> None:
        for name in ("step_tokens", "max_requests", "kv_blocks", "parts", "load_chunks", "threads"):
            value = getattr(self, name)
            if value < 1:
                raise ConfigError(f"Plan.{name} must be at least 1, got {value}.")
        if self.ring_layers < 2:
            raise ConfigError(
                f"ring_layers must be at least 2, got {self.ring_layers}: a part enters the next layer "
                "while another is still in this one."
            )
        if self.resident_layers is not None and self.resident_layers < 0:
            raise ConfigError(f"resident_layers must be at least 0, got {self.resident_layers}.")
        if self.disk_ring_layers < 2:
            raise ConfigError(
                f"Plan.disk_ring_layers must be at least 2, got {self.disk_ring_layers}: one layer is read while "
                "another is used."
            )
        if sorted(set(self.disk_layers)) != list(self.disk_layers):
            raise ConfigError(f"Plan.disk_layers must ascend, got {self.disk_layers}.")
        if self.block_tokens < KEYS_AT_ONCE or self.block_tokens % KEYS_AT_ONCE:
            raise ConfigError(
                f"block_size (Plan.block_tokens) must be a multiple of {KEYS_AT_ONCE}, got {self.block_tokens}."
            )
        if self.step_tokens < self.max_requests:
            raise ConfigError(
                f"A step of {self.step_tokens} tokens (max_num_batched_tokens) can't give each of {self.max_requests} "
                "requests (max_num_seqs) a row. Raise max_num_batched_tokens or lower max_num_seqs."
            )

    @property
    def kv_tokens(self) -> int:
        """Tokens of context that the cache holds."""
        return self.kv_blocks * self.block_tokens


@dataclass(frozen=True)
class Streaming:
    """What the user fixed of how weights stream through a device, by the names of a `Plan`; None: to be chosen."""

    parts: int | None = None
    ring_layers: int | None = None
    load_chunks: int | None = None
    resident_layers: int | None = None
    experts_on_host: bool | None = None

    @classmethod
    def of(cls, given: object) -> Streaming:
        """The fields of the same names of something else."""
        return cls(*(getattr(given, field.name) for field in fields(cls)))

    @property
    def fixed(self) -> dict[str, int | bool]:
        """The fields that are."""
        return {name: value for name, value in asdict(self).items() if value is not None}


FREE = Streaming()  # nothing is fixed
