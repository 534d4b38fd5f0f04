"""The judge of token agreement: what it calls equal, a near tie and wrong."""

from types import SimpleNamespace

import pytest
import torch

from bench.token_agreement import Agreement, Errors, errors_of, judge, read_prompts, table

VOCAB = 5


class Fixed:
    """A model whose best token after any token t is t + 1, ahead of t + 2 by `margin`."""

    def __init__(self, margin: float) -> None:
        self.margin = margin

    def __call__(self, ids: torch.Tensor) -> SimpleNamespace:
        logits = torch.zeros(*ids.shape, VOCAB)
        logits.scatter_(-1, (ids[..., None] + 1) % VOCAB, 1.0 + self.margin)
        logits.scatter_(-1, (ids[..., None] + 2) % VOCAB, 1.0)
        return SimpleNamespace(logits=logits)


@pytest.mark.parametrize(
    ("margin", "output", "expected"),
    [
        (1.0, [3, 4, 0, 1], (0, 0)),
        (1.0, [3, 4, 1, 2], (0, 1)),
        (1.0, [4, 1, 3, 0], (0, 4)),
        (5e-4, [4, 0, 1, 3], (2, 0)),
        (2e-3, [4, 0, 1, 3], (0, 2)),
    ],
)
def test_tokens_are_judged_by_what_stands_before(margin: float, output: list[int], expected: tuple[int, int]) -> None:
    assert judge(Fixed(margin), [0, 1, 2], output) == expected  # type: ignore[arg-type]


def test_errors_are_over_all_rows_and_of_the_one_in_the_middle() -> None:
    exact = torch.tensor([[2.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    errors = errors_of(exact + torch.tensor([[0.0, 0.0], [0.0, 0.3], [0.0, 0.4]]), exact)
    assert errors.all == pytest.approx(0.5 / 3)
    assert errors.median == pytest.approx(0.2)


def test_table_has_a_line_per_model() -> None:
    rows = table(
        [Agreement("a", 2, 8, 1, 1, 0), Agreement("b", 2, 8, 2, 0, 0, Errors(0.01, 0.003), Errors(0.02, 0.01))]
    ).splitlines()
    assert rows[2] == "| a | 2 | 8 | 1 | 1 | 0 | – | – |"
    assert rows[3] == "| b | 2 | 8 | 2 | 0 | 0 | 1.0e-02 (3.0e-03) | 2.0e-02 (1.0e-02) |"


def test_there_are_32_prompts(byte_tokenizer_folder) -> None:  # type: ignore[no-untyped-def]
    prompts = read_prompts(32, byte_tokenizer_folder)
    assert len(prompts) == 32 and all(prompts)
    assert len({tuple(prompt) for prompt in prompts}) == 32
