"""What a reward model looks at, what it claims, and a rival that has no model at
all.
"""

from __future__ import annotations

import math
from collections import Counter

import torch

from posttrain.chat import render_question
from posttrain.evaluate import BLUNT, COURTEOUS, win_rate, words_of
from posttrain.logprobs import pack
from posttrain.preference_pairs import encode_response
from posttrain.reward_model import RewardModel
from posttrain.tokenizer import CharTokenizer

# A list of courtesies, and no answer
COURTESIES = "Kind sir, gentle lady, dear friend."


def telling_words(pairs: list[dict]) -> list[str]:
    """Every listed courteous or blunt word in the pairs' answers, as often as it
    occurs.
    """
    words = [
        w for pair in pairs for w in words_of(f"{pair['chosen']} {pair['rejected']}")
    ]
    return [word for word in words if word in COURTEOUS + BLUNT]


def word_votes(pairs: list[dict]) -> Counter[str]:
    """A word's votes: the pairs' chosen answers that it is in, less the rejected
    ones.
    """
    votes: Counter[str] = Counter()
    for pair in pairs:
        votes.update(set(words_of(pair["chosen"])))
        votes.subtract(set(words_of(pair["rejected"])))
    return votes


def count_of(answer: str, votes: Counter[str]) -> int:
    """What a count of words says of an answer: the votes of its different words."""
    return sum(votes[word] for word in set(words_of(answer)))


def count_accuracy(pairs: list[dict], heldout: list[dict]) -> float:
    """The share of held-out pairs that a mere count of words ranks right; a tie is
    half.
    """
    votes = word_votes(pairs)
    chosen, rejected = (
        [count_of(pair[side], votes) for pair in heldout]
        for side in ("chosen", "rejected")
    )
    return win_rate(chosen, rejected)


def accuracy_by(field: str, run: dict, heldout: list[dict]) -> dict[str, float]:
    """The share of held-out pairs ranked right, by what a field of theirs says.

    run: with the scores `chosen` and `rejected` of the held-out pairs.
    """
    right = [a > b for a, b in zip(run["chosen"], run["rejected"])]
    kinds = [pair[field] for pair in heldout]
    by_kind = {kind: [r for r, k in zip(right, kinds) if k == kind] for kind in kinds}
    return {kind: sum(ranked) / len(ranked) for kind, ranked in by_kind.items()}


def calibration(runs: list[dict], groups: int = 5) -> tuple[list[float], list[float]]:
    """What runs claim and how often they are right, in groups of equal size by the
    claim.

    A claim is the probability, by Bradley and Terry, of the answer that the run
    prefers.
    """
    claims = [
        (1 / (1 + math.exp(-abs(a - b))), a > b)
        for run in runs
        for a, b in zip(run["chosen"], run["rejected"])
    ]
    claims.sort()
    n = len(claims)
    parts = [claims[i * n // groups : (i + 1) * n // groups] for i in range(groups)]
    claimed = [sum(claim for claim, _ in part) / len(part) for part in parts]
    return claimed, [sum(right for _, right in part) / len(part) for part in parts]


def probes(pairs: list[dict]) -> dict[str, list[tuple[str, str]]]:
    """Each way of changing the chosen answers, by name: (prompt, answer) of each
    pair.
    """
    asked = [pair["prompt"] for pair in pairs]
    said = [pair["chosen"] for pair in pairs]
    changed = {
        "as written": said,
        "the last character taken away": [a[:-1] for a in said],
        "the first half alone": [a[: len(a) // 2] for a in said],
        "said twice": [f"{a} {a}" for a in said],
        "words in reverse order": [" ".join(a.split()[::-1]) for a in said],
        "', fool.' at its end": [f"{a[:-1]}, fool." for a in said],
        f"'{COURTESIES}' instead": [COURTESIES] * len(said),
        "nothing at all, only the end": [""] * len(said),
    }
    found = {name: list(zip(asked, answers)) for name, answers in changed.items()}
    return found | {
        "put after another question": list(zip(asked[1:] + asked[:1], said))
    }


@torch.no_grad()
def mean_score(model: RewardModel, rows: list[tuple[str, str]]) -> float:
    """A reward model's mean score of answers to prompts: (prompt, answer) as texts."""
    tokenizer = CharTokenizer()
    asked = [render_question(prompt, tokenizer) for prompt, _ in rows]
    answers = [encode_response(answer, tokenizer) for _, answer in rows]
    return model(*pack(asked, answers, tokenizer.pad)).mean().item()
