"""Which layers take turns in the slots of a ring."""

from __future__ import annotations

from collections.abc import Collection, Sequence


class Turns:
    """The n-th of `layers` has slot n modulo `slots`; those of them in `used` come to it in a step, in turn."""

    def __init__(self, layers: Sequence[int], slots: int, used: Collection[int]) -> None:
        self._sharing: dict[int, list[int]] = {}
        for slot in range(slots):
            sharing = [layer for layer in layers[slot::slots] if layer in used]
            self._sharing.update(dict.fromkeys(sharing, sharing))

    def __contains__(self, layer: int) -> bool:
        return layer in self._sharing

    @property
    def firsts(self) -> list[int]:
        """The layers that a step finds in their slots, or that come to them first."""
        return sorted({sharing[0] for sharing in self._sharing.values()})

    def before(self, layer: int) -> int | None:
        """Whom `layer` takes the slot over from in a step."""
        sharing = self._sharing[layer]
        turn = sharing.index(layer)
        return sharing[turn - 1] if turn else None

    def following(self, layer: int) -> int | None:
        """Who comes to the slot after `layer`, and after the last the first; None: it stays there."""
        sharing = self._sharing[layer]
        following = sharing[(sharing.index(layer) + 1) % len(sharing)]
        return None if following == layer else following

    def is_over(self, layer: int, left: Collection[int]) -> bool:
        """Whether all have left the slot, if the layers in `left` have left theirs, so that the next step's `layer` is
        the next to come."""
        sharing = self._sharing[layer]
        return sharing[0] == layer and sharing[-1] in left
