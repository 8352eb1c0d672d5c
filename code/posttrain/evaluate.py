"""Judging text by rules, with no model and no training signal involved."""

from __future__ import annotations

import re

from scipy import stats

from posttrain.tokenizer import END, SPECIAL_TOKENS

# The words by which the rubric knows an answer's manner
COURTEOUS = """
    beloved beseech bless blessing comfort dear friend gentle gladly grace gracious \
honour
    humble humbly joy kind kindly lady liege lord madam mercy noble pardon please pray
    servant sir sweet tender thank thanks welcome worthy
""".split()
BLUNT = """
    ape ass away base beggar begone churl coward dog drunken dull fool foul goose \
hence idle
    knave liar monster muddy peace prating rascal rogue saucy scurvy shame swine \
tedious thief
    toad traitor ugly varlet vile villain wretch
""".split()


def answered(continuation: str) -> bool:
    """Whether a text is an answer in chat format: words, the end token, no other
    special.
    """
    text, end, rest = continuation.partition(END)
    special = any(token in text for token in SPECIAL_TOKENS)
    return bool(text.strip()) and bool(end) and not rest and not special


def opens_a_speech(continuation: str) -> bool:
    """Whether a text goes on to another character's part: a blank line, a name and a
    colon.
    """
    return re.search(r"\n\n[A-Z][A-Za-z' ]*:\n", continuation) is not None


def words_of(text: str) -> list[str]:
    """A text's words in lower case, special tokens left out."""
    for token in SPECIAL_TOKENS:
        text = text.replace(token, " ")
    return re.findall(r"[a-z']+", text.lower())


def topic_words(prompt: str) -> set[str]:
    """The prompt's words of five letters or more, in lower case."""
    return {word for word in words_of(prompt) if len(word) >= 5}


def echo_rate(prompts: list[str], continuations: list[str]) -> float:
    """The share of continuations that use one of their prompt's topic words."""
    pairs = zip(prompts, continuations)
    echoes = [
        any(w in text.lower() for w in topic_words(prompt)) for prompt, text in pairs
    ]
    return sum(echoes) / len(echoes)


def manner(answer: str) -> int:
    """1 for a courteous answer, -1 for a blunt one, 0 for neither: by its telling
    words.
    """
    words = words_of(answer)
    courteous = sum(word in COURTEOUS for word in words)
    blunt = sum(word in BLUNT for word in words)
    return (courteous > blunt) - (courteous < blunt)


def finished(answer: str) -> bool:
    """Whether an answer is in chat format and its last sentence has come to its end."""
    return answered(answer) and answer.removesuffix(END).rstrip().endswith(
        (".", "!", "?")
    )


def gold_parts(answer: str, real_words: frozenset[str]) -> dict[str, float]:
    """What the gold rubric says of an answer, part by part; 0 is nothing to say.

    courtesy: different courteous words less blunt ones, two at most either way, halved.
    ending: -1 unless the answer has come to its end. length: -1 for fewer than 4 words
    or more than 24. repetition: -2 times the share of words said before, beyond a
    fifth, which anybody needs. spelling: -2 times the share of words that are none.
    """
    words = words_of(answer)
    courteous = len({word for word in words if word in COURTEOUS})
    balance = courteous - sum(word in BLUNT for word in words)
    repeated = 1 - len(set(words)) / len(words) if words else 0.0
    unreal = sum(word not in real_words for word in words) / max(1, len(words))
    return dict(
        courtesy=min(2, max(-2, balance)) / 2,
        ending=0.0 if finished(answer) else -1.0,
        length=0.0 if 4 <= len(words) <= 24 else -1.0,
        repetition=-2 * max(0.0, repeated - 0.2),
        spelling=-2 * unreal,
    )


def gold_score(answer: str, real_words: frozenset[str]) -> float:
    """The gold rubric's judgement of an answer: the sum of its parts, 1 at the most."""
    return sum(gold_parts(answer, real_words).values())


def distinct_n(answers: list[str], n: int) -> float:
    """Different runs of n words among all runs of n words, over all answers; 0 where
    none is.

    Source: Li et al. 2016, "A Diversity-Promoting Objective Function", section 5.
    """
    runs = []
    for words in map(words_of, answers):
        runs += zip(*(words[i:] for i in range(n)))
    return len(set(runs)) / max(1, len(runs))


def win_rate(scores: list[float], others: list[float]) -> float:
    """The share of prompts on which the first answer scores higher; a tie counts one
    half.
    """
    wins = [(a > b) + (a == b) / 2 for a, b in zip(scores, others)]
    return sum(wins) / len(wins)


def interval(
    values: list[float], confidence: float = 0.95
) -> tuple[float, float, float]:
    """The mean of one value per seed, and the ends of its confidence interval
    (Student's t).

    Raises ValueError for fewer than two values, which say nothing about chance.
    """
    if len(values) < 2:
        raise ValueError(
            f"an interval needs two values or more, and here are {len(values)}"
        )
    mean = sum(values) / len(values)
    if len(set(values)) == 1:
        return mean, mean, mean
    low, high = stats.t.interval(
        confidence, len(values) - 1, loc=mean, scale=stats.sem(values)
    )
    return mean, float(low), float(high)
