"""Tokens become the text they stand for, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from soundstage.errors import ModelError
from soundstage.speech.tokenizer import Tokenizer

SPECIAL = [b"<unk>", b"<s>", b"</s>"]


def written(path: Path, pieces: list[bytes]) -> Path:
    path.write_bytes(b"".join(bytes([len(piece)]) + piece for piece in pieces))
    return path


def test_round_trip(tmp_path: Path) -> None:
    pieces = [*SPECIAL, "▁Bonjour".encode(), b",", "▁Zoë".encode()]
    tokenizer = Tokenizer.read(written(tmp_path / "tokenizer.bin", pieces))
    assert len(tokenizer) == 6
    assert tokenizer.decode([1, 3, 4, 5, 2]) == "Bonjour, Zoë"


def test_letters_spelt_in_bytes_are_joined_and_broken_ones_are_marked() -> None:
    tokenizer = Tokenizer([*SPECIAL, b"\xc3", b"\xab", b"o"])
    assert tokenizer.decode([3, 4]) == "ë"
    assert tokenizer.decode([3, 5]) == "\N{REPLACEMENT CHARACTER}o"


def test_markers_are_no_text() -> None:
    pieces = [*SPECIAL, "▁word".encode(), *[b"x"] * 31_996, b"<<ST_0>>"]
    assert Tokenizer(pieces).decode([3, 32_000, 0]) == "word"


@pytest.mark.parametrize("data", [b"\x03ab", b"\x80" + b"a" * 200])
def test_a_damaged_file_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "tokenizer.bin"
    path.write_bytes(data)
    with pytest.raises(ModelError):
        Tokenizer.read(path)


def test_words_are_written_with_the_pieces_that_were_joined_first() -> None:
    """Not with the longest: "ab" comes before "bc" and so before "abc", which is never reached through "bc"."""
    letters = [letter.encode() for letter in "▁abc"]
    tokenizer = Tokenizer([*SPECIAL, b"ab", b"bc", b"abc", "▁a".encode(), *letters, b"\xc3", b"\xab"])
    pieces = [tokenizer.pieces[token_id].decode() for token_id in tokenizer.encode("bc abc")]
    assert pieces == ["▁", "bc", "▁", "abc"]
    assert tokenizer.decode(tokenizer.encode("aë  b")) == "aë b", "a letter without a token is spelt in bytes"
    assert tokenizer.decode(tokenizer.encode("az")) == "a", "what nothing stands for is left out"
