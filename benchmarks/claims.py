"""Every claim of chapters 2 to 6 that chance could break, over many seeds: `make claims SEEDS=20` prints the table.

A seed is a seed of the whole pipeline after the base model: its own SFT model, reward model and policies. Runs that the
chapters have made are read again, the others are trained and kept.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from posttrain.keep import workers
from posttrain.best_of_n import best_of_n_trials
from posttrain.data import corpus, datasets
from posttrain.dpo import DPOConfig
from posttrain.lab.dpo_trials import dpo_trials
from posttrain.lab.enumerable import build_world, dpo_run, draw_pairs, ppo_run
from posttrain.evaluate import win_rate
from posttrain.show import COMPARISONS, progress
from posttrain.online_dpo import OnlineDPOConfig
from posttrain.ppo import PPOConfig
from posttrain.lab.ppo_trials import ppo_trials
from posttrain.stages import base_model, encode_split
from posttrain.pretrain import validation_loss
from posttrain.reward_model import RewardConfig
from posttrain.lab.reward_trials import reward_trials, with_flipped_labels
from posttrain.lab.scorecard import start_scorecard
from posttrain.sft import SFTConfig, plain_sft
from posttrain.lab.sft_trials import sft_trials


@dataclass(frozen=True)
class Claim:
    """What is said, in which chapter, the bar that was set before the first run, and what each seed gave."""

    chapter: int
    what: str
    comparison: str
    bar: float
    values: list[float]

    @property
    def held(self) -> int:
        """In how many seeds it holds."""
        return sum(COMPARISONS[self.comparison](value, self.bar) for value in self.values)


def less(ours: list[float], theirs: list[float]) -> list[float]:
    """The differences, seed by seed."""
    return [a - b for a, b in zip(ours, theirs)]


def sft_claims(shakespeare: corpus.Corpus, seeds: int) -> Iterator[Claim]:
    """Chapter 2: the format, the mask, forgetting, quality and quantity."""
    written, found_base = datasets.conversations(), base_model(shakespeare)[0]
    base_loss = validation_loss(found_base, encode_split(shakespeare)[1], windows=32)
    settings = {"plain": plain_sft(evaluations=10), "no mask": plain_sft(evaluations=2, mask=False), "replay": SFTConfig()}
    runs = sft_trials(shakespeare, {name: [(config, written)] * seeds for name, config in settings.items()}, progress)
    end = {name: {key: [run[key][-1] for run in runs[name]] for key in runs[name][0]} for name in settings}
    halfway = [run["in_format"][4] for run in runs["plain"]], [run["in_format"][0] for run in runs["no mask"]]
    rises = {name: [loss - base_loss for loss in end[name]["shakespeare_loss"]] for name in settings}
    yield Claim(2, "plain SFT: held-out questions in format", ">=", 0.95, end["plain"]["in_format"])
    yield Claim(2, "SFT with replay: held-out questions in format", ">=", 0.95, end["replay"]["in_format"])
    yield Claim(2, "plain SFT forgets: rise of Shakespeare's loss (nats)", ">", 0.15, rises["plain"])
    yield Claim(2, "replay cures it: rise of Shakespeare's loss (nats)", "<", 0.15, rises["replay"])
    yield Claim(2, "after 50 steps the mask has brought more into format (share)", ">", 0.0, less(*halfway))


def reward_claims(shakespeare: corpus.Corpus, seeds: int) -> Iterator[Claim]:
    """Chapter 3: what eighteen pairs teach."""
    pairs, config = datasets.preferences(), RewardConfig()
    settings = {
        "sft": [(config, "sft", pairs)] * seeds,
        "base": [(config, "base", pairs)] * seeds,
        "last": [(replace(config, token_weight=0.0), "sft", pairs)] * seeds,
        "flipped": [(config, "sft", with_flipped_labels(pairs, 3, seed)) for seed in range(seeds)],
    }
    runs = reward_trials(shakespeare, settings, progress)
    held = {name: [run["heldout_accuracy"] for run in runs[name]] for name in settings}
    yield Claim(3, "its own 18 pairs ranked right", ">=", 1.0, [run["train_accuracy"] for run in runs["sft"]])
    yield Claim(3, "held-out pairs ranked right", ">=", 0.9, held["sft"])
    yield Claim(3, "start from the SFT model beats the base model's (share)", ">", 0.0, less(held["sft"], held["base"]))
    yield Claim(3, "comparing at every token beats the last alone (share)", ">", 0.0, less(held["sft"], held["last"]))
    yield Claim(3, "three wrong labels of eighteen cost something (share)", ">", 0.0, less(held["sft"], held["flipped"]))


def policy_claims(shakespeare: corpus.Corpus, seeds: int) -> Iterator[Claim]:
    """Chapters 4 to 6: the policies against the SFT model and against each other."""
    ppo, dpo = PPOConfig(), DPOConfig()
    settings = {"PPO": ppo, "no fee": replace(ppo, beta=0.0, kl_target=0.0)}
    runs = ppo_trials(shakespeare, settings, seeds=seeds, every=4, progress=progress)
    runs |= dpo_trials(shakespeare, {"DPO": dpo}, seeds=seeds, every=10, progress=progress)
    runs |= dpo_trials(shakespeare, {"own": OnlineDPOConfig()}, seeds=seeds, every=1000, progress=progress)
    drawn = best_of_n_trials(shakespeare, seeds=seeds, progress=progress)
    asked = [(shakespeare, seed, 0.8, "base") for seed in range(seeds)]
    cards = {name: [run["cards"][-1] for run in runs[name]] for name in runs}
    cards |= {"SFT": [run["cards"][0] for run in runs["PPO"]], "best of 16": [by_n[-1] for by_n in drawn]}
    cards["base"] = workers.run_all(start_scorecard, asked, progress)

    def of(name: str, key: str) -> list[float]:
        return [card[key] for card in cards[name]]

    def wins(one: str, other: str) -> list[float]:
        return [win_rate(a["gold"], b["gold"]) for a, b in zip(cards[one], cards[other])]

    falls = [max(card["gold_score"] for card in run["cards"]) - run["cards"][-1]["gold_score"] for run in runs["no fee"]]
    yield Claim(4, "PPO: gold score rises", ">", 0.0, less(of("PPO", "gold_score"), of("SFT", "gold_score")))
    yield Claim(4, "PPO: won against SFT", ">=", 0.75, wins("PPO", "SFT"))
    yield Claim(4, "PPO: answers finished", ">=", 0.95, of("PPO", "finished"))
    yield Claim(4, "PPO: KL to the SFT model (nats per answer)", "<=", 12.0, of("PPO", "kl"))
    yield Claim(4, "without the fee the gold score ends below its peak", ">", 0.0, falls)
    yield Claim(4, "without the fee it ends below PPO's with it", ">", 0.0, less(of("PPO", "gold_score"), of("no fee", "gold_score")))
    for name, run in (("DPO", runs["DPO"]), ("DPO on its own answers", runs["own"])):
        short = "own" if run is runs["own"] else "DPO"
        yield Claim(5, f"{name}: won against SFT", ">=", 0.75, wins(short, "SFT"))
        yield Claim(5, f"{name}: answers finished", ">=", 0.95, of(short, "finished"))
    seen = [run["heldout"] for run in runs["DPO"]]
    moved = [report[-1]["chosen_logprob"] - report[0]["chosen_logprob"] for report in seen]
    yield Claim(5, "DPO: held-out pairs ranked right", ">=", 0.8, [report[-1]["accuracy"] for report in seen])
    yield Claim(5, "DPO: held-out chosen answers get less likely (nats)", "<", 0.0, moved)
    yield Claim(5, "DPO on its own answers beats DPO on pairs", ">", 0.5, wins("own", "DPO"))
    rates = [[by_n[i]["gold_score"] for by_n in drawn] for i in (-1, 0)]
    yield Claim(6, "SFT wins against the base model", ">=", 0.9, wins("SFT", "base"))
    yield Claim(6, "best of 16 has more gold than best of 1", ">", 0.0, less(*rates))
    yield Claim(6, "best of 16 wins against SFT", ">=", 0.6, wins("best of 16", "SFT"))
    yield Claim(6, "PPO wins against best of 16", ">", 0.5, wins("PPO", "best of 16"))
    yield Claim(6, "PPO wins against DPO on pairs", ">", 0.5, wins("PPO", "DPO"))
    yield Claim(6, "PPO wins against DPO on its own answers", ">", 0.5, wins("PPO", "own"))


def enumerable_claims(seeds: int) -> Iterator[Claim]:
    """Chapter 5's world of 64 words: both methods reach the formula's optimum."""
    world, beta = build_world(), 0.5
    pairs = [draw_pairs(world, 10_000, torch.Generator().manual_seed(seed), exact=True) for seed in range(seeds)]
    by_ppo = workers.run_all(ppo_run, [(world, beta, seed) for seed in range(seeds)], progress)
    by_dpo = workers.run_all(dpo_run, [(world, beta, pairs[seed], seed) for seed in range(seeds)], progress)
    for name, runs in (("PPO", by_ppo), ("DPO", by_dpo)):
        values = [history[-1]["tv"] for _, history in runs]
        yield Claim(5, f"64 words: {name}'s total variation to the optimum", "<=", 0.02, values)


def revision() -> str:
    """The commit that runs here, marked where files differ from it; "unknown" outside a checkout."""
    ask = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        found = subprocess.run(ask, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip()


def table(claims: list[Claim]) -> Iterator[str]:
    """The lines of a Markdown table: a claim each, then every seed's value."""
    yield "| chapter | claim | bar | seeds in which it holds | least | median | greatest |"
    yield "|---|---|---|---|---|---|---|"
    for claim in claims:
        figures = (min(claim.values), statistics.median(claim.values), max(claim.values))
        spread = " | ".join(f"{value:.3g}" for value in figures)
        yield f"| {claim.chapter} | {claim.what} | {claim.comparison} {claim.bar:g} | {claim.held} of {len(claim.values)} | {spread} |"
    yield ""
    for claim in claims:
        yield f"- {claim.chapter}, {claim.what}: {', '.join(f'{value:.3g}' for value in claim.values)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="how many (5 are the chapters' own)")
    parser.add_argument("--corpus", help="a text file instead of tinyshakespeare")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}: use at least 1")
    shakespeare = corpus.load(options.corpus)
    claims = [
        *sft_claims(shakespeare, options.seeds),
        *reward_claims(shakespeare, options.seeds),
        *policy_claims(shakespeare, options.seeds),
        *enumerable_claims(options.seeds),
    ]
    claims.sort(key=lambda claim: claim.chapter)
    machine = f"PyTorch {torch.__version__}, {platform.machine()}"
    print(f"{options.seeds} seeds, revision {revision()}, {machine}\n")
    print("\n".join(table(claims)))


if __name__ == "__main__":
    main()
