"""Preference pairs of a policy's own answers: drawn, judged, paired."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.best_of_n import draw_answers
from posttrain.chat import render_question
from posttrain.evaluate import answered, gold_score
from posttrain.gpt import GPT
from posttrain.preference_pairs import Pair
from posttrain.reward_model import RewardModel
from posttrain.tokenizer import END, CharTokenizer


@dataclass(frozen=True)
class Pool:
    """n answers of one policy to each of B prompts, and what two judges say of them.

    `usable` is True where an answer is in chat format: words, one end, and no other
    special token. The others cannot stand in a file, in which every answer has its end.
    """

    prompts: list[str]
    answers: list[list[list[int]]]  # token ids, the end included
    usable: Tensor  # (B, n)
    scores: dict[str, Tensor]  # of each judge, "reward" and "gold": (B, n)


@dataclass(frozen=True)
class Pick:
    """Two answers to one prompt, by their places in a pool; chosen is the better."""

    row: int
    chosen: int
    rejected: int


def draw_pool(
    policy: GPT,
    reward_model: RewardModel,
    prompts: list[str],
    n: int,
    real_words: frozenset[str],
    seed: int,
    temperature: float = 0.8,
) -> Pool:
    """n answers to each prompt, scored by the reward model and by the gold rubric.

    Raises ValueError for fewer than one prompt or answer.
    """
    if n < 1 or not prompts:
        raise ValueError(
            f"{n} answers to {len(prompts)} prompts: ask for 1 to 1 at least"
        )
    answers, scores = draw_answers(policy, reward_model, prompts, n, seed, temperature)
    texts = [[CharTokenizer().decode(answer) for answer in row] for row in answers]
    usable = torch.tensor([[answered(text) for text in row] for row in texts])  # (B, n)
    gold = torch.tensor(
        [[gold_score(text, real_words) for text in row] for row in texts]
    )
    return Pool(prompts, answers, usable, dict(reward=scores, gold=gold))


def judged_by(pool: Pool, judge: str) -> Tensor:
    """The scores (B, n) of one judge. Raises ValueError for NaN or an unknown judge."""
    if judge not in pool.scores:
        raise ValueError(f"judge is {judge!r}: use one of {', '.join(pool.scores)}")
    scores = pool.scores[judge]
    if not torch.isfinite(scores).all():
        raise ValueError(
            f"a score by {judge} is NaN or infinite: nothing can be preferred"
        )
    return scores


def differ(pool: Pool, pick: Pick) -> bool:
    """Whether the two answers are two texts, and not one that rounding scored twice."""
    row = pool.answers[pick.row]
    return row[pick.chosen] != row[pick.rejected]


def best_and_worst(
    scores: Tensor, usable: Tensor, leave_out: bool = False
) -> tuple[Tensor, Tensor]:
    """The places (B,), (B,) of each row's best and worst answer by scores (B, n).

    An answer that cannot be used is worse than any that can, or with leave_out never
    chosen. The first of equals; both -1 in a row that has none better than another.
    Source: Dong et al. 2024, section 3.
    """
    low_end = torch.inf if leave_out else -torch.inf
    high, best = scores.masked_fill(~usable, -torch.inf).max(1)  # (B,)
    low, worst = scores.masked_fill(~usable, low_end).min(1)  # (B,)
    none = high <= low  # (B,)
    return best.masked_fill(none, -1), worst.masked_fill(none, -1)


def pick_extremes(pool: Pool, judge: str, leave_out: bool = False) -> list[Pick]:
    """Each prompt's best and worst answer as a pair, where their texts differ."""
    found = best_and_worst(judged_by(pool, judge), pool.usable, leave_out)
    places = zip(*(places.tolist() for places in found))
    picks = [Pick(row, *pair) for row, pair in enumerate(places) if pair[0] >= 0]
    return [pick for pick in picks if differ(pool, pick)]


def any_two(pool: Pool, judge: str, n: int, seed: int) -> list[Pick]:
    """n pairs, each as likely as any other, of all that the judge can tell apart.

    Both answers are usable and to the same prompt; no pair comes twice. Raises
    ValueError where there are fewer than n. Source: Ouyang et al. 2022, section 3.5,
    who take all of them.
    """
    scores = judged_by(pool, judge)  # (B, n)
    better = scores[:, :, None] > scores[:, None, :]  # (B, n, n)
    better &= pool.usable[:, :, None] & pool.usable[:, None, :]
    picks = [Pick(*place) for place in better.nonzero().tolist()]
    picks = [pick for pick in picks if differ(pool, pick)]
    if n > len(picks):
        raise ValueError(
            f"{judge} tells {len(picks)} pairs apart, not {n}: draw more answers"
        )
    order = torch.randperm(len(picks), generator=torch.Generator().manual_seed(seed))
    return [picks[i] for i in order[:n].tolist()]


def token_pairs(pool: Pool, picks: list[Pick]) -> list[Pair]:
    """The pairs as token ids, as drawn: prompt in chat format, chosen, rejected."""
    tokenizer, pairs = CharTokenizer(), []
    for pick in picks:
        prompt = render_question(pool.prompts[pick.row], tokenizer)
        answers = pool.answers[pick.row]
        pairs.append((prompt, answers[pick.chosen], answers[pick.rejected]))
    return pairs


def pair_rows(pool: Pool, picks: list[Pick]) -> list[dict]:
    """The pairs as rows of a preferences file, without ids: answers without their end.

    Encoded again, they are the very tokens that were drawn. Raises ValueError for an
    answer that cannot be used: a file would give it an end that it never had.
    """
    places = [(pick.row, i) for pick in picks for i in (pick.chosen, pick.rejected)]
    if not all(pool.usable[place] for place in places):
        raise ValueError("an answer has no end: a file cannot hold it, so leave it out")
    text = CharTokenizer().decode
    return [
        dict(
            prompt=pool.prompts[pick.row],
            chosen=text(pool.answers[pick.row][pick.chosen]).removesuffix(END),
            rejected=text(pool.answers[pick.row][pick.rejected]).removesuffix(END),
        )
        for pick in picks
    ]


def judgements(pool: Pool, pick: Pick) -> dict[str, list[float]]:
    """What each judge says of the chosen and of the rejected answer."""
    return {
        name: [scores[pick.row, i].item() for i in (pick.chosen, pick.rejected)]
        for name, scores in pool.scores.items()
    }


def flip(pairs: list[Pair], share: float, seed: int) -> list[Pair]:
    """The pairs with a share of them, rounded, turned round: a judge's slips.

    Which ones: each as likely as any other. Raises ValueError unless 0 <= share <= 1.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"share is {share}: use a number from 0 to 1")
    order = torch.randperm(
        len(pairs), generator=torch.Generator().manual_seed(seed)
    ).tolist()
    turned = set(order[: round(share * len(pairs))])
    return [
        (prompt, other, one) if i in turned else (prompt, one, other)
        for i, (prompt, one, other) in enumerate(pairs)
    ]
