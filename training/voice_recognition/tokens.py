"""From text to the tokens that write it, as the speech model learnt to write."""

from __future__ import annotations

from soundstage.speech.tokenizer import WORD_START, Tokenizer

_FIRST_BYTE = 3
"""Tokens from here on are the 256 bytes, for characters that have no token of their own."""
_FIRST_PIECE = _FIRST_BYTE + 256
"""From here on stand pieces of text, those that were merged most often first."""


class Encoder:
    """Byte-pair encoding with a tokenizer's pieces: again and again, the pair that makes the lowest number is joined.

    Args:
        tokenizer: Of the speech model.

    Source: Sennrich et al., arXiv:1508.07909, as SentencePiece does it (github.com/google/sentencepiece,
    src/bpe_model.cc); the numbers of the pieces are their order of merging (Llama's tokenizer, arXiv:2302.13971).
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        pieces = enumerate(tokenizer.pieces[_FIRST_PIECE:], start=_FIRST_PIECE)
        self._numbers = {piece.decode(): number for number, piece in pieces if piece}

    def encode(self, text: str) -> list[int]:
        """Tokens of a text; any white space between words counts as one space.

        Characters without a token of their own become their bytes in UTF-8.
        """
        symbols = list(WORD_START + WORD_START.join(text.split()))
        while (i := self._best_pair(symbols)) is not None:
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        return [number for symbol in symbols for number in self._numbers_of(symbol)]

    def spelt(self, text: str) -> str:
        """The characters of a text, each once, that have no token of their own and are spelt in bytes."""
        return "".join(sorted({c for c in "".join(text.split()) if c not in self._numbers}))

    def _best_pair(self, symbols: list[str]) -> int | None:
        """Where the pair begins that is joined next, the first of several."""
        numbers = {
            i: self._numbers[pair]
            for i in range(len(symbols) - 1)
            if (pair := symbols[i] + symbols[i + 1]) in self._numbers
        }
        return min(numbers, key=lambda i: (numbers[i], i), default=None)

    def _numbers_of(self, symbol: str) -> list[int]:
        number = self._numbers.get(symbol)
        return [number] if number is not None else [_FIRST_BYTE + byte for byte in symbol.encode()]
