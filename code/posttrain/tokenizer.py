"""Text to token ids and back: one per character, and a few special ones no text can
spell.
"""

from __future__ import annotations

import unicodedata

ALPHABET = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
USER, ASSISTANT, END, PAD = "<|user|>", "<|assistant|>", "<|end|>", "<|pad|>"
SPECIAL_TOKENS = (USER, ASSISTANT, END, PAD)

# Spell out what a modern keyboard or word processor types and Shakespeare's printer did
# not
SUBSTITUTES = {
    "\u2018": "'",
    "\u2019": "'",
    "\u201c": "'",
    "\u201d": "'",
    '"': "'",
    "\u2013": "-",
    "\u2014": "--",
}
SUBSTITUTES |= {
    "\u2026": "...",
    "\t": " ",
    "\u00a0": " ",
    "\r": "",
    "(": ",",
    ")": ",",
    "\u00e6": "ae",
    "\u00c6": "Ae",
}
SUBSTITUTES |= {"\u0153": "oe", "\u0152": "Oe", "\u00df": "ss"}


class UnknownCharacterError(ValueError):
    """A text holds a character that is not in the tokenizer's alphabet."""


class CharTokenizer:
    """Karpathy's 65 characters as tokens 0 to 64, then the special tokens.

    Special tokens stand outside the alphabet ("<" and "|" are not in it), so typed text
    can never produce one: they enter a sequence by their id alone.
    """

    def __init__(
        self, alphabet: str = ALPHABET, special_tokens: tuple[str, ...] = SPECIAL_TOKENS
    ):
        self.alphabet = alphabet
        self.tokens = [*alphabet, *special_tokens]
        self.ids = {token: i for i, token in enumerate(self.tokens)}
        self.user, self.assistant, self.end, self.pad = (
            self.ids.get(token) for token in SPECIAL_TOKENS
        )

    @property
    def vocab_size(self) -> int:
        """The number of tokens, the special ones included."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """The ids of a text's characters.

        Raises UnknownCharacterError, naming the first stranger.
        """
        try:
            return [self.ids[character] for character in text]
        except KeyError as error:
            character = error.args[0]
            raise UnknownCharacterError(
                f"{character!r} (U+{ord(character):04X}, at position "
                f"{text.index(character)}) "
                f"is not in the alphabet {self.alphabet!r}. "
                "Leave it out, or pass the text through clean() first."
            ) from None

    def decode(self, ids) -> str:
        """The text of token ids (a list or a 1-d tensor), special tokens spelt out by
        name.
        """
        return "".join(self.tokens[int(i)] for i in ids)

    def clean(self, text: str) -> str:
        """The nearest text that `encode` accepts.

        Accents are dropped, quotes and dashes made plain, the rest becomes '?'.
        """
        text = "".join(SUBSTITUTES.get(character, character) for character in text)
        text = unicodedata.normalize("NFKD", text)
        text = "".join(
            SUBSTITUTES.get(character, character)
            for character in text
            if not unicodedata.combining(character)
        )
        return "".join(
            character if character in self.alphabet else "?" for character in text
        )
