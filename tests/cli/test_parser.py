"""What the flags of all commands have in common."""

import argparse

import pytest

from moelens.cli.parser import Parser, natural, parse_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4096", 4096),
        ("4G", 4 * 2**30),
        ("4GiB", 4 * 2**30),
        ("4GB", 4 * 10**9),
        ("4g", 4 * 10**9),
        ("1.5k", 1500),
        ("512 MiB", 512 * 2**20),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "G", "-4G", "4 bananas", "0", "1e9", "4Gi"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="4GiB"):
        parse_bytes(text)


@pytest.mark.parametrize("text", ["-1", "1.5", "", "one"])
def test_what_is_no_whole_number_is_refused(text: str) -> None:
    assert natural("0") == 0
    with pytest.raises(argparse.ArgumentTypeError, match="whole number of at least 0"):
        natural(text)


def test_a_command_has_reasons_of_its_own_beside_those_of_all(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(refused={"--backend": "there is one"})
    for flag, said in (("--backend", "--backend is not supported: there is one"), ("--port", "moelens has no server")):
        with pytest.raises(SystemExit):
            parser.parse_args([flag])
        assert said in capsys.readouterr().err
