"""Every claim of chapters 2 to 6 that chance could break, in the recorded seeds.

A seed is a seed of the whole pipeline after the base model: its own SFT model, reward
model and policies. The numbers are the record's: `make evidence` measures them.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.evaluate import win_rate
from posttrain.lab.evidence import read
from posttrain.show.checks import COMPARISONS

HEADER = (
    "chapter",
    "claim",
    "bar",
    "seeds in which it holds",
    "the aim, and in which",
    "least",
    "median",
    "greatest",
)


@dataclass(frozen=True)
class Claim:
    """What is said, in which chapter, its bar, and what each seed gave.

    aim: the bar that was set before the first run, where a lower one holds now.
    """

    chapter: int
    what: str
    comparison: str
    bar: float
    values: list[float]
    aim: float | None = None

    def held(self, bar: float) -> str:
        """In how many of the seeds it holds at a bar."""
        holds = [COMPARISONS[self.comparison](value, bar) for value in self.values]
        return f"{sum(holds)} of {len(holds)}"


def less(ours: list[float], theirs: list[float]) -> list[float]:
    """The differences, seed by seed; of the seeds that both have."""
    return [a - b for a, b in zip(ours, theirs)]


def sft_claims() -> Iterator[Claim]:
    """Chapter 2: the format, the mask, forgetting."""
    record = read("sft")

    def of(name: str, key: str, i: int = -1) -> list[float]:
        return [run[key][i] for run in record[name]]

    base = {name: [run["base_loss"] for run in record[name]] for name in record}
    rises = {
        name: less(of(name, "shakespeare_loss"), base[name])
        for name in ("plain", "replay")
    }
    # The fifth of ten evaluations, and the first of two: after half of the steps
    halfway = less(of("plain", "in_format", 4), of("no mask", "in_format", 0))
    asked, loss = "held-out questions in format", "rise of Shakespeare's loss (nats)"
    mask = "after 50 steps the mask has brought more into format (share)"
    yield Claim(2, f"plain SFT: {asked}", ">=", 0.95, of("plain", "in_format"))
    yield Claim(2, f"SFT with replay: {asked}", ">=", 0.95, of("replay", "in_format"))
    yield Claim(2, f"plain SFT forgets: {loss}", ">", 0.15, rises["plain"])
    yield Claim(2, f"replay cures it: {loss}", "<", 0.15, rises["replay"])
    yield Claim(2, mask, ">", 0.0, halfway)


def reward_claims() -> Iterator[Claim]:
    """Chapter 3: what eighteen pairs teach."""
    record = read("reward")

    def of(name: str, key: str = "heldout_accuracy") -> list[float]:
        return [run[key] for run in record[name]]

    held, elsewhere = of("18 pairs"), of("18 pairs", "elsewhere_accuracy")
    last = less(elsewhere, of("last token alone", "elsewhere_accuracy"))
    learned = of("18 pairs", "train_accuracy")
    yield Claim(3, "its own 18 pairs ranked right", ">=", 1.0, learned)
    yield Claim(3, "held-out pairs ranked right", ">=", 0.85, held, aim=0.9)
    for what, values in (
        ("pairs from elsewhere are ranked worse (share)", less(held, elsewhere)),
        ("comparing at every token helps on those (share)", last),
        (
            "three wrong labels of eighteen cost something (share)",
            less(held, of("3 labels flipped")),
        ),
    ):
        yield Claim(3, what, ">", 0.0, values)


class Policies:
    """The scorecards of all policies, by name and seed."""

    def __init__(self):
        ppo, dpo = read("ppo"), read("dpo")
        runs = {name: ppo[name] for name in ("PPO", "no penalty")}
        runs |= {name: dpo[name] for name in ("DPO", "on-policy DPO")}
        runs["best of 16"] = read("best_of_n")["best of n"]
        runs["base"] = read("base")["base"]
        self.runs = runs
        self.cards = {name: [run["cards"][-1] for run in runs[name]] for name in runs}
        self.cards["SFT"] = [run["cards"][0] for run in runs["PPO"]]

    def of(self, name: str, key: str) -> list[float]:
        """One entry of a policy's cards."""
        return [card[key] for card in self.cards[name]]

    def wins(self, one: str, other: str) -> list[float]:
        """How often one policy wins against another, by the gold rubric."""
        pairs = zip(self.of(one, "gold"), self.of(other, "gold"))
        return [win_rate(*pair) for pair in pairs]

    def ahead(self, one: str, other: str) -> list[float]:
        """By how much one policy's gold score is above another's."""
        return less(self.of(one, "gold_score"), self.of(other, "gold_score"))


def ppo_claims(policies: Policies) -> Iterator[Claim]:
    """Chapter 4: PPO against the SFT model, and without the KL penalty."""
    peaks = [
        max(c["gold_score"] for c in run["cards"])
        for run in policies.runs["no penalty"]
    ]
    falls = less(peaks, policies.of("no penalty", "gold_score"))
    behind, kl = policies.ahead("PPO", "no penalty"), policies.of("PPO", "kl")
    without = "without the KL penalty the gold score ends below"
    yield Claim(4, "PPO: gold score rises", ">", 0.0, policies.ahead("PPO", "SFT"))
    yield Claim(
        4, "PPO: won against SFT", ">=", 0.7, policies.wins("PPO", "SFT"), aim=0.8
    )
    yield Claim(4, "PPO: answers finished", ">=", 0.95, policies.of("PPO", "finished"))
    yield Claim(4, "PPO: KL to the SFT model (nats per answer)", "<=", 12.0, kl)
    yield Claim(4, f"{without} its peak", ">", 0.0, falls)
    yield Claim(4, f"{without} PPO's with it", ">", 0.0, behind)


def dpo_claims(policies: Policies) -> Iterator[Claim]:
    """Chapter 5: DPO on eighteen pairs and on-policy, and the world of 64 words."""
    record, of, wins = read("dpo"), policies.of, policies.wins
    online, won, done = "on-policy DPO", "won against SFT", "answers finished"
    ranked = [run["heldout"][-1]["accuracy"] for run in record["DPO"]]
    others = {
        name: [run["cards"][-1] for run in record[name]]
        for name in ("elsewhere", "neither")
    }
    foreign = [card["win_rate"] for card in others["elsewhere"]]
    ahead = less(wins("DPO", "SFT"), foreign)
    free = others["neither"]
    farther = less([card["kl"] for card in free], of("DPO", "kl"))
    alone = [run["heldout"][-1]["accuracy"] for run in record["chosen answers alone"]]
    yield Claim(5, f"DPO: {won}", ">=", 0.65, wins("DPO", "SFT"), aim=0.7)
    yield Claim(5, f"DPO: {done}", ">=", 0.9, of("DPO", "finished"), aim=0.95)
    yield Claim(5, "DPO: KL to the SFT model (nats)", "<=", 12.0, of("DPO", "kl"))
    yield Claim(5, "DPO: held-out pairs ranked right", ">=", 0.7, ranked, aim=0.8)
    yield Claim(5, "DPO ranks more than imitation", ">", 0.0, less(ranked, alone))
    yield Claim(5, "own answers' pairs win more than others", ">", 0.0, ahead)
    yield Claim(5, "DPO without brakes goes farther (nats)", ">", 0.0, farther)
    yield Claim(5, f"{online}: {won}", ">=", 0.65, wins(online, "SFT"), aim=0.75)
    yield Claim(5, f"{online}: {done}", ">=", 0.9, of(online, "finished"), aim=0.95)
    yield Claim(5, f"{online} beats DPO on pairs", ">", 0.5, wins(online, "DPO"))
    for name, runs in read("small_world").items():
        if name in ("PPO", "DPO"):
            what = f"64 words: {name}'s total variation to the optimum"
            yield Claim(5, what, "<=", 0.02, [run["history"][-1]["tv"] for run in runs])


def comparison_claims(policies: Policies) -> Iterator[Claim]:
    """Chapter 6: the policies against each other."""
    best = [run["cards"] for run in policies.runs["best of 16"]]
    more = less(*([cards[i]["gold_score"] for cards in best] for i in (-1, 0)))
    wins = policies.wins
    from_base = wins("SFT", "base")
    yield Claim(6, "SFT wins against the base model", ">=", 0.75, from_base, aim=0.9)
    yield Claim(6, "best of 16 has more gold than best of 1", ">", 0.0, more)
    yield Claim(6, "best of 16 wins against SFT", ">=", 0.6, wins("best of 16", "SFT"))
    yield Claim(6, "PPO wins against best of 16", ">", 0.5, wins("PPO", "best of 16"))
    yield Claim(6, "PPO wins against DPO on pairs", ">", 0.5, wins("PPO", "DPO"))
    online = wins("PPO", "on-policy DPO")
    yield Claim(6, "PPO wins against on-policy DPO", ">", 0.5, online)
    for way, what in (
        ("constant", "one sentence for all"),
        ("courteous", "courteous conversations alone"),
    ):
        won = [run["cards"][-1]["win_rate"] for run in read("rivals")[way]]
        yield Claim(6, f"a dull rival, {what}: won against SFT", ">=", 0.65, won)


def claims() -> list[Claim]:
    """All claims, chapter by chapter.

    Raises EvidenceError where what they are about was never measured.
    """
    policies = Policies()
    chapters = (ppo_claims, dpo_claims, comparison_claims)
    later = [claim for chapter in chapters for claim in chapter(policies)]
    return [*sft_claims(), *reward_claims(), *later]


def table(claims: list[Claim]) -> list[tuple]:
    """A row of text for each claim, under HEADER."""
    rows = []
    for claim in claims:
        values, sign = claim.values, claim.comparison
        figures = (min(values), statistics.median(values), max(values))
        aim = (
            ""
            if claim.aim is None
            else f"{sign} {claim.aim:g}: {claim.held(claim.aim)}"
        )
        told = (
            claim.chapter,
            claim.what,
            f"{sign} {claim.bar:g}",
            claim.held(claim.bar),
        )
        rows.append((*told, aim, *(f"{value:.3g}" for value in figures)))
    return rows
