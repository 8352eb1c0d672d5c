"""A task whose answers a program can check: a word, spelled backwards."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from posttrain.chat import render_question
from posttrain.gpt import GPT
from posttrain.sampling import generate
from posttrain.tokenizer import END, CharTokenizer

SHORTEST, LONGEST = 3, 5  # letters of a word
COMMON = 2  # how often it stands in the text at least
NEW_TOKENS = 9  # of an answer; what has not ended by then is cut
QUESTION = re.compile(r"Spell ([a-z]+) backwards\.")


@dataclass(frozen=True)
class Words:
    """Words in three sets that share none.

    examples come with their answers, for fine-tuning; practice without, for a policy to
    try; heldout are never trained on.
    """

    examples: list[str]
    practice: list[str]
    heldout: list[str]


def find_words(
    text: str, examples: int = 300, heldout: int = 200, seed: int = 1
) -> Words:
    """The lower-case words of a text, drawn apart; practice gets what is left.

    Raises ValueError for a text with too few of them.
    """
    counts = Counter(re.findall(r"(?<![\w'])[a-z]+(?![\w'])", text))
    words = sorted(
        word
        for word, n in counts.items()
        if n >= COMMON and SHORTEST <= len(word) <= LONGEST
    )
    if len(words) <= examples + heldout:
        raise ValueError(
            f"the text has {len(words)} words to spell, and {examples + heldout} are "
            "asked for: take fewer examples, or a longer text"
        )
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(seed))
    words = [words[i] for i in order]
    held, rest = words[:heldout], words[heldout:]
    return Words(rest[:examples], rest[examples:], held)


def question_of(word: str) -> str:
    """The question about a word."""
    return f"Spell {word} backwards."


def worked(words: list[str]) -> list[dict]:
    """Conversations in which words are spelled backwards, as fine-tuning reads them."""
    return [
        dict(
            id=word,
            messages=[
                dict(role="user", content=question_of(word)),
                dict(role="assistant", content=word[::-1]),
            ],
        )
        for word in words
    ]


Rule = Callable[[str, str], bool]  # of an answer and the right one


def exact(answer: str, right: str) -> bool:
    """The answer is the right one, and nothing else."""
    return answer == right


def letters_agree(answer: str, right: str) -> bool:
    """Letter by letter the answer agrees with the right one. It has a hole."""
    return all(a == b for a, b in zip(answer, right))


class Checker(nn.Module):
    """Stands in a reward model's place: 1 for an answer that passes the rule, else 0.

    It reads the question, which no reward model of this book has to.
    """

    def __init__(self, rule: Rule = exact):
        super().__init__()
        self.rule, self.tokenizer = rule, CharTokenizer()

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The scores (B,) of tokens (B, T); mask (B, T) is True on the answers.

        Raises ValueError for a question that is not the task's.
        """
        scores = []
        for row, own in zip(tokens, mask):
            asked, said = (self.tokenizer.decode(row[part]) for part in (~own, own))
            found = QUESTION.search(asked)
            if found is None:
                raise ValueError(
                    f"{asked!r} asks for no word: use task.question_of(word)"
                )
            right = found.group(1)[::-1]
            passed = said.endswith(END) and self.rule(said.removesuffix(END), right)
            scores.append(float(passed))
        return torch.tensor(scores)


def answer_words(
    model: GPT,
    words: list[str],
    n: int = 1,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[list[str]]:
    """n answers to each word's question, <|end|> after those that have ended."""
    tokenizer = CharTokenizer()
    prompts = [render_question(question_of(word), tokenizer) for word in words]
    samples = generate(
        model,
        [prompt for prompt in prompts for _ in range(n)],
        NEW_TOKENS,
        generator=torch.Generator().manual_seed(seed),
        temperature=temperature,
        stop=tokenizer.end,
    )
    texts = [tokenizer.decode(response) for response in samples.responses()]
    return [texts[i : i + n] for i in range(0, len(texts), n)]


def count_right(answers: list[list[str]], words: list[str]) -> list[int]:
    """How many of the answers to each word are the right one, ended."""
    return [
        sum(said == word[::-1] + END for said in each)
        for each, word in zip(answers, words)
    ]


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that of k answers, drawn from n, one at least is right.

    Raises ValueError for k beyond n. Source: Chen et al. 2021, equation 1.
    """
    if not 1 <= k <= n:
        raise ValueError(f"k is {k}: use 1 to {n}, of which the answers are drawn")
    return 1 - math.comb(n - right, k) / math.comb(n, k)
