"""Whether two tokenizers mean the same by a number: by what they hold, not where they
lie.
"""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.real.model import ModelError, some_of

# What decides how a text becomes numbers, and the numbers text again, but for the added
# tokens. How rows are padded or cut, and what is put around a text, is not compared
PARTS = ("model", "normalizer", "pre_tokenizer", "decoder")
# How the names of a tokenizer's files begin, by its kind
FILES = ("tokenizer", "vocab", "spiece", "sentencepiece", "tekken")
PROBE = "A1 b  c\n\tDon't stop: été, 你好 — <|im_end|> x² 🙂 1234567"  # for the others


def vocabulary(tokenizer) -> dict[str, int]:
    """Every token with its number, the added ones included."""
    return dict(tokenizer.get_vocab())


def rules(tokenizer) -> dict:
    """What a tokenizer holds beside its tokens' numbers, to be compared.

    Of a tokenizer in plain Python: the tokens that it makes of a text.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return dict(encoding=tokenizer.tokenize(PROBE))
    held = json.loads(backend.to_str())
    return {part: held[part] for part in PARTS}


def difference(one, other, growing: bool = False) -> str:
    """How a tokenizer's meaning differs from another's, in words; "" for the same.

    growing: the other may have tokens more.
    """
    ours, theirs = vocabulary(one), vocabulary(other)
    shared = [*ours] if growing else [*(ours | theirs)]
    apart = [token for token in shared if ours.get(token) != theirs.get(token)]
    if apart:
        return f"other numbers for {some_of(map(repr, apart))}"
    mine, yours = rules(one), rules(other)
    parts = [part for part in {*mine, *yours} if mine.get(part) != yours.get(part)]
    return f"another {some_of(parts)}" if parts else ""


def has_tokenizer(name: str) -> bool:
    """Whether a folder has files of a tokenizer; of a name on the hub it is assumed."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return True
    return any(path.name.startswith(FILES) for path in folder.iterdir())


def refuse_other_vocabulary(
    name: str, tokenizer, other_name: str, other, growing: bool = False
) -> None:
    """Raise ModelError where a tokenizer is not the one that another model reads with.

    growing: the other may have tokens more.
    """
    apart = difference(tokenizer, other, growing)
    if apart:
        raise ModelError(
            f"{other_name} does not read with the tokenizer of {name}: it has {apart}: "
            "give one that was trained from the same model"
        )
