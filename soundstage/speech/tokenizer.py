"""From token numbers to text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path

from soundstage.errors import ModelError

TOKENIZER_NAME = "tokenizer.bin"
WORD_START = "▁"
"""Stands for the space before a word."""
_N_SPECIAL = 3
"""<unk>, <s> and </s> come first and are no text."""
_FIRST_MARKER = 32_000
"""From here on stand markers such as <<ST_1>>, which are no text either."""


class Tokenizer:
    """The pieces of text that a speech model's tokens stand for.

    Attributes:
        pieces: What each token adds to a text, UTF-8; nothing where it is no text.

    Source of the format: github.com/moonshine-ai/moonshine, core/bin-tokenizer.
    """

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = tuple(piece if _N_SPECIAL <= i < _FIRST_MARKER else b"" for i, piece in enumerate(pieces))
        # A letter is a token of its own too, besides its byte, which comes first.
        self._token_ids = {piece: i for i, piece in enumerate(self.pieces) if piece}

    @classmethod
    def read(cls, path: Path) -> Tokenizer:
        """Read a tokenizer file: for each token one length byte and so many bytes of UTF-8.

        Raises:
            ModelError: The file ends inside a piece, or a piece is longer than 127 bytes, which no model of ours has.
        """
        return cls(_pieces(path.read_bytes(), path))

    def __len__(self) -> int:
        return len(self.pieces)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of a row of tokens, without special ones and without white space around it.

        Single bytes that together are no UTF-8 become the replacement character.
        """
        data = b"".join(self.pieces[i] for i in token_ids)
        return data.decode("utf-8", errors="replace").replace(WORD_START, " ").strip()

    def encode(self, text: str) -> list[int]:
        """Tokens of words, as the model was taught to write them; what no token stands for is left out.

        Of neighbouring pieces those are joined first whose union comes first in the vocabulary: byte pair encoding,
        in which tokens are numbered as they were found.
        """
        pieces: list[bytes] = []
        for letter in "".join(WORD_START + word for word in text.split()):
            data = letter.encode()
            pieces += [data] if data in self._token_ids else [bytes([byte]) for byte in data]
        n_tokens = len(self.pieces)
        while len(pieces) > 1:
            unions = [self._token_ids.get(a + b, n_tokens) for a, b in pairwise(pieces)]
            first = min(unions)
            if first == n_tokens:
                break
            i = unions.index(first)
            pieces[i : i + 2] = [self.pieces[first]]
        return [self._token_ids[piece] for piece in pieces if piece in self._token_ids]


def _pieces(data: bytes, path: Path) -> Iterator[bytes]:
    position = 0
    while position < len(data):
        length = data[position]
        position += 1
        if length >= 128 or position + length > len(data):
            raise ModelError(f"{path} is no tokenizer file, or ends inside a token")
        yield data[position : position + length]
        position += length
