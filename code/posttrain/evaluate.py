"""Judging text by rules, with no model and no training signal involved."""

from __future__ import annotations

import json
import re
from pathlib import Path

from posttrain.tokenizer import END, SPECIAL_TOKENS

DATA = Path(__file__).parent / "data"


def heldout_prompts() -> list[str]:
    """The 64 questions and requests that no model of the book is ever trained on."""
    lines = (DATA / "prompts_heldout.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


def answered(continuation: str) -> bool:
    """Whether a text is an answer in chat format: words, the end token, no other special."""
    text, end, rest = continuation.partition(END)
    special = any(token in text for token in SPECIAL_TOKENS)
    return bool(text.strip()) and bool(end) and not rest and not special


def opens_a_speech(continuation: str) -> bool:
    """Whether a text goes on to another character's part: a blank line, a name and a colon."""
    return re.search(r"\n\n[A-Z][A-Za-z' ]*:\n", continuation) is not None


def topic_words(prompt: str) -> set[str]:
    """The prompt's words of five letters or more, in lower case."""
    return {word for word in re.findall(r"[a-z']+", prompt.lower()) if len(word) >= 5}


def echo_rate(prompts: list[str], continuations: list[str]) -> float:
    """The share of continuations that use one of their prompt's topic words."""
    pairs = zip(prompts, continuations)
    echoes = [any(w in text.lower() for w in topic_words(prompt)) for prompt, text in pairs]
    return sum(echoes) / len(echoes)
