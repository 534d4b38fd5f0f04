"""The generation bar: it moves on tokens, and not more often than anyone can see."""

from __future__ import annotations

from typing import Any

from moelens.progress import GenerationBar, bar_factory


class RecordingBar:
    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.postfixes: list[str] = [arguments["postfix"]]
        self.updates: list[int] = []
        self.refreshes = 0
        self.closed = False

    def set_postfix_str(self, text: str, refresh: bool) -> None:
        self.postfixes.append(text)

    def update(self, count: int) -> None:
        self.updates.append(count)

    def refresh(self) -> None:
        self.refreshes += 1

    def close(self) -> None:
        self.closed = True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def make_bar(total: int = 3) -> tuple[GenerationBar, RecordingBar, Clock]:
    made: list[RecordingBar] = []

    def factory(**arguments: Any) -> RecordingBar:
        made.append(RecordingBar(**arguments))
        return made[-1]

    clock = Clock()
    return GenerationBar(factory, total, clock), made[0], clock


def test_it_begins_as_vllms() -> None:
    _, shown, _ = make_bar()
    assert shown.arguments == {
        "total": 3,
        "desc": "Processed prompts",
        "dynamic_ncols": True,
        "postfix": "est. speed input: 0.00 toks/s, output: 0.00 toks/s",
    }


def test_tokens_move_it_when_no_prompt_ends() -> None:
    bar, shown, clock = make_bar()
    clock.now += 1
    bar.advance(0, 30, 4)
    clock.now += 1
    bar.advance(0, 10, 4)
    assert shown.postfixes[1:] == [
        "est. speed input: 30.00 toks/s, output: 4.00 toks/s",
        "est. speed input: 20.00 toks/s, output: 4.00 toks/s",
    ]
    assert shown.updates == [] and shown.refreshes == 2


def test_quick_steps_are_counted_but_not_drawn() -> None:
    bar, shown, clock = make_bar()
    for _ in range(100):
        clock.now += 0.001
        bar.advance(0, 1, 1)
    assert shown.refreshes == 0
    clock.now += 0.9
    bar.advance(2, 0, 0)
    assert shown.updates == [2]
    assert shown.postfixes[-1] == "est. speed input: 100.00 toks/s, output: 100.00 toks/s"
    bar.close()
    assert shown.closed


def test_no_bar_draws_nothing() -> None:
    assert bar_factory(False) is None
    bar = GenerationBar(None, 3)
    bar.advance(1, 1, 1)
    bar.close()
