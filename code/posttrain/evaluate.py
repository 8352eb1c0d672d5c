"""Judging text by rules, with no model and no training signal involved."""

from __future__ import annotations

import re

from posttrain.tokenizer import END, SPECIAL_TOKENS

# The words by which the rubric knows an answer's manner
COURTEOUS = """
    beloved beseech bless blessing comfort dear friend gentle gladly grace gracious honour
    humble humbly joy kind kindly lady liege lord madam mercy noble pardon please pray
    servant sir sweet tender thank thanks welcome worthy
""".split()
BLUNT = """
    ape ass away base beggar begone churl coward dog drunken dull fool foul goose hence idle
    knave liar monster muddy peace prating rascal rogue saucy scurvy shame swine tedious thief
    toad traitor ugly varlet vile villain wretch
""".split()


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


def manner(answer: str) -> int:
    """1 for a courteous answer, -1 for a blunt one, 0 for neither: by its telling words."""
    words = re.findall(r"[a-z']+", answer.lower())
    courteous = sum(word in COURTEOUS for word in words)
    blunt = sum(word in BLUNT for word in words)
    return (courteous > blunt) - (courteous < blunt)


def finished(answer: str) -> bool:
    """Whether an answer is in chat format and its last sentence has come to its end."""
    return answered(answer) and answer.removesuffix(END).rstrip().endswith((".", "!", "?"))
