"""Blocks are held, shared, kept and given again as the pool promises."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moelens.schedule.blocks import BlockPool

BLOCKS, RETAINED = 6, 3


class Pool(RuleBasedStateMachine):
    """Checks a BlockPool against the plainest bookkeeping: who holds what, and what was last written where."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(BLOCKS, RETAINED)
        self.held: list[list[int]] = []
        self.content: dict[int, bytes] = {}

    @precondition(lambda self: self.pool.free)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        blocks = self.pool.take(data.draw(st.integers(1, self.pool.free)))
        for block in blocks:
            assert all(block not in others for others in self.held)
            self.content.pop(block, None)
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), key=st.sampled_from([b"a", b"b", b"c"]))
    def publish(self, data: st.DataObject, key: bytes) -> None:
        block = data.draw(st.sampled_from(data.draw(st.sampled_from(self.held))))
        if self.content.setdefault(block, key) == key:
            self.pool.publish(block, key)

    @rule(keys=st.lists(st.sampled_from([b"a", b"b", b"c"]), unique=True, min_size=1))
    def share(self, keys: list[bytes]) -> None:
        found = self.pool.find(keys)
        assert [self.content[block] for block in found] == keys[: len(found)]
        assert self.pool.unheld(found) == sum(all(b not in others for others in self.held) for b in found)
        if found:
            self.pool.share(found)
            self.held.append(found)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        self.pool.give_back(self.held.pop(data.draw(st.integers(0, len(self.held) - 1))))

    @rule()
    def forget_retained(self) -> None:
        held = {block for blocks in self.held for block in blocks}
        self.pool.forget_retained()
        assert all(block in held for key in (b"a", b"b", b"c") for block in self.pool.find([key]))

    @invariant()
    def every_block_is_held_or_free(self) -> None:
        assert self.pool.free == BLOCKS - len({block for blocks in self.held for block in blocks})


TestPool = Pool.TestCase


def test_the_least_recently_held_block_goes_first() -> None:
    pool = BlockPool(4, retained=2)
    for key in (b"a", b"b", b"c"):
        (block,) = pool.take(1)
        pool.publish(block, key)
        pool.give_back([block])
    assert [len(pool.find([key])) for key in (b"a", b"b", b"c")] == [0, 1, 1]


def test_nothing_is_kept_unless_asked() -> None:
    pool = BlockPool(2)
    (block,) = pool.take(1)
    pool.publish(block, b"a")
    assert pool.find([b"a"]) == [block]
    pool.give_back([block])
    assert pool.find([b"a"]) == []
