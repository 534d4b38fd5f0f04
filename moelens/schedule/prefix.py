"""Names for blocks by what they hold, so that requests that begin alike share them."""

from __future__ import annotations

import hashlib
from array import array

KEY_BYTES = 16


class BlockKeys:
    """The keys of a request's full blocks: each is a digest of the block's tokens and of the key before it.

    Two blocks of one key hold the same keys and values to the bit, since these depend on nothing but the tokens up to
    them. Keys are made when they are asked for and kept.
    """

    __slots__ = ("_block_tokens", "_keys")

    def __init__(self, block_tokens: int) -> None:
        self._block_tokens = block_tokens
        self._keys: list[bytes] = []

    def up_to(self, prompt: array[int], output: array[int], blocks: int) -> list[bytes]:
        """The keys of the first `blocks` blocks, all of which the tokens fill."""
        while len(self._keys) < blocks:
            begin = len(self._keys) * self._block_tokens
            tokens = _slice(prompt, output, begin, begin + self._block_tokens)
            assert len(tokens) == self._block_tokens
            parent = self._keys[-1] if self._keys else b""
            self._keys.append(hashlib.blake2b(parent + tokens.tobytes(), digest_size=KEY_BYTES).digest())
        return self._keys[:blocks]


def _slice(prompt: array[int], output: array[int], begin: int, end: int) -> array[int]:
    if end <= len(prompt):
        return prompt[begin:end]
    return prompt[begin:] + output[max(0, begin - len(prompt)) : end - len(prompt)]
