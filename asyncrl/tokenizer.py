"""Characters as tokens: 64 of them are enough for small verifiable tasks."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["EOS", "PAD", "VOCABULARY_COUNT", "decode", "encode"]

PAD = 0
EOS = 1
_FIRST_CHARACTER = 2
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 \n.,:;!?'\"()[]{}+-*/=<>_|#"
VOCABULARY_COUNT = 64
assert len(set(_CHARACTERS)) == VOCABULARY_COUNT - _FIRST_CHARACTER

_TOKENS = {character: index + _FIRST_CHARACTER for index, character in enumerate(_CHARACTERS)}


def encode(text: str) -> list[int]:
    """One token a character; capital letters become small ones.

    Raises:
        ValueError: a character that has no token; it is named.
    """
    try:
        return [_TOKENS[character] for character in text.lower()]
    except KeyError as error:
        raise ValueError(f"encode: no token for {error.args[0]!r} in {text!r}") from None


def decode(tokens: Sequence[int]) -> str:
    """The characters up to the first EOS; PAD is none.

    Raises:
        ValueError: a token outside the vocabulary; it is named.
    """
    characters = []
    for token in tokens:
        if token == EOS:
            break
        if not 0 <= token < VOCABULARY_COUNT:
            raise ValueError(f"decode: expected tokens below {VOCABULARY_COUNT}, got {token}")
        if token != PAD:
            characters.append(_CHARACTERS[token - _FIRST_CHARACTER])
    return "".join(characters)
