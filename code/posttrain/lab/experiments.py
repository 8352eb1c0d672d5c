"""What is measured over many seeds, by name: each experiment's trial and its settings.

A claim of a chapter has 20 seeds, a variation beside it 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from posttrain.dpo import DPOConfig
from posttrain.lab.costs import METHODS, cost_trial
from posttrain.lab.enumerable_trials import WorldTrial, world_trial
from posttrain.lab.lora_trials import LoRATrialConfig, lora_trial
from posttrain.lab.pairs_trials import PairsTrial, pairs_trial
from posttrain.lab.policy_trials import (
    PolicyTrial,
    base_trial,
    best_of_n_trial,
    dpo_trial,
    ppo_trial,
)
from posttrain.lab.pretraining_trials import (
    ladder,
    nanogpt_recipe,
    pretrain_trial,
    sprint,
    taken_away,
)
from posttrain.lab.reward_trials import RewardTrial, reward_trial
from posttrain.lab.rival_trials import WAYS, RivalTrial, rival_trial
from posttrain.lab.sft_trials import SFTTrial, sft_trial
from posttrain.online_dpo import OnlineDPOConfig
from posttrain.ppo import PPOConfig
from posttrain.reward_model import RewardConfig
from posttrain.sft import plain_sft

CLAIM, VARIATION = 20, 5  # seeds


@dataclass(frozen=True)
class Experiment:
    """A trial, its settings by name, and how many seeds each is to be measured with."""

    trial: Callable[
        ..., dict
    ]  # of a corpus, a setting and a seed; what it returns fits JSON
    claims: dict[str, object] = field(default_factory=dict)
    variations: dict[str, object] = field(default_factory=dict)
    # One run at a time, nothing beside it: what it measures is time
    alone: bool = False

    @property
    def settings(self) -> dict[str, object]:
        """All settings by name."""
        return self.claims | self.variations

    def seeds(self, name: str) -> int:
        """How many seeds a setting is to be measured with."""
        return CLAIM if name in self.claims else VARIATION


def pretraining() -> Experiment:
    """Chapter 1: a ladder from GPT-2's block, changes taken back, nanoGPT's recipe."""
    slow = replace(nanogpt_recipe(), steps=200, evaluations=1)  # a tenth of its run
    race = {"sprint": sprint(), "nanoGPT's recipe, a tenth of it": slow}
    return Experiment(pretrain_trial, variations=ladder(120) | taken_away(120) | race)


def finetuning() -> Experiment:
    """Chapter 2: format, forgetting and its cures, the mask, quality and quantity."""
    often, twice, once = (plain_sft(evaluations=n) for n in (10, 2, 1))
    gentle = replace(twice, muon_lr=often.muon_lr / 3, adamw_lr=often.adamw_lr / 3)
    claims = {"replay": SFTTrial(), "plain": SFTTrial(often)}
    claims["no mask"] = SFTTrial(replace(twice, mask=False))
    variations = {"gentle": SFTTrial(gentle), "found": SFTTrial(once, found=400)}
    for courteous, blunt in [(2, 3), (10, 10), (0, 20), (20, 0)]:
        mix = SFTTrial(once, courteous=courteous, blunt=blunt)
        variations[f"{courteous} courteous, {blunt} blunt"] = mix
    return Experiment(sft_trial, claims, variations)


def reward() -> Experiment:
    """Chapter 3: what eighteen pairs teach a reward model."""
    last = replace(RewardConfig(), token_weight=0.0)
    claims = {"18 pairs": RewardTrial()}
    variations = {
        "from the base model": RewardTrial(start="base"),
        "last token alone": RewardTrial(last),
        "3 labels flipped": RewardTrial(flipped=3),
        "elsewhere": RewardTrial(pairs="elsewhere"),
        "4 pairs": RewardTrial(n=4),
        "9 pairs": RewardTrial(n=9),
    }
    return Experiment(reward_trial, claims, variations)


def ppo() -> Experiment:
    """Chapter 4: PPO with its KL penalty and without, and ways without a value
    model.
    """
    usual = PPOConfig()
    short = replace(usual, iterations=6)
    free = replace(usual, beta=0.0, kl_target=0.0)
    slip = "returns after whitening"
    claims = {
        "PPO": PolicyTrial(usual, every=8),
        "no penalty": PolicyTrial(free, every=4, early=3),
    }
    near = replace(usual, kl_target=3.0, beta=0.1)
    grpo = replace(short, group=8, kl_target=0.0, lr=1e-4)
    variations = {
        "target 3": PolicyTrial(near),
        "short": PolicyTrial(short),
        slip: PolicyTrial(short, variant=slip),
        "REINFORCE": PolicyTrial(short, variant="REINFORCE"),
        "RLOO": PolicyTrial(replace(short, group=4), variant="RLOO"),
        "GRPO": PolicyTrial(grpo, variant="GRPO"),
        "paid by the count": PolicyTrial(usual, paid_by="count"),
        "paid by the count, no penalty": PolicyTrial(free, paid_by="count"),
    }
    return Experiment(ppo_trial, claims, variations)


def dpo() -> Experiment:
    """Chapter 5: DPO on eighteen pairs of each origin and on fresh answers, and the
    losses beside it.
    """
    usual = DPOConfig()
    plain = replace(usual, label_smoothing=0.0, nll_weight=0.0)
    tuned = replace(plain, steps=80, lr=5e-5, beta=1.0)
    alone = replace(usual, loss="orpo", odds_weight=0.0, nll_weight=0.0)
    claims = {"DPO": PolicyTrial(usual, every=10)}
    claims["on-policy DPO"] = PolicyTrial(OnlineDPOConfig())
    changes = {
        "no smoothing": replace(usual, label_smoothing=0.0),
        "no chosen answers' loss": replace(usual, nll_weight=0.0),
        "neither": plain,
        "neither, tuned": tuned,
        "chosen answers alone": alone,
        "beta 0.02": replace(usual, beta=0.02),
        "beta 0.3": replace(usual, beta=0.3),
        "IPO": replace(usual, loss="ipo", nll_weight=1.0, lr=1e-4),
        "SimPO": replace(usual, loss="simpo", beta=10.0, lr=1e-4),
        "ORPO": replace(alone, odds_weight=0.3),
        "KTO": replace(usual, loss="kto", beta=0.3),
    }
    every = {name: PolicyTrial(config, every=10) for name, config in changes.items()}
    for kind in ("elsewhere", "minimal", "stronger"):
        every[kind] = PolicyTrial(usual, every=10, pairs=kind)
    return Experiment(dpo_trial, claims, every)


def small_world() -> Experiment:
    """Chapter 5's world of 64 words, where the optimum is known."""
    claims = {"PPO": WorldTrial(), "DPO": WorldTrial("dpo")}
    variations = {
        f"{n} pairs, {'exact' if exact else 'drawn'} labels": WorldTrial(
            "dpo", pairs=n, exact=exact
        )
        for n in (100, 1_000)
        for exact in (True, False)
    }
    variations["10000 pairs, drawn labels"] = WorldTrial("dpo", exact=False)
    variations["gap"] = WorldTrial("rounds", pairs=3_000, gap=True)
    # k1 in the reward is PPO itself
    places = ("k2 in the reward", "k3 in the reward")
    places += ("k1 in the loss", "k2 in the loss", "k3 in the loss")
    variations |= {name: WorldTrial(variant=name) for name in places}
    slip = "returns after whitening"
    variations["no clip of the ratio"] = WorldTrial(ppo=dict(clip_eps=1e9))
    variations["no value clipping"] = WorldTrial(ppo=dict(value_clip=0.0))
    variations["whitened"] = WorldTrial(variant="")
    variations[slip] = WorldTrial(variant=slip)
    return Experiment(world_trial, claims, variations)


def lora() -> Experiment:
    """Chapter 7: adapters of several ranks, and what they forget."""
    usual = LoRATrialConfig()
    once = replace(usual.sft, evaluations=1)
    gentle = replace(once, muon_lr=once.muon_lr / 3, adamw_lr=once.adamw_lr / 3)
    no_rows = replace(usual.lora, new_rows=0)
    variations = {
        "LoRA": usual,
        "LoRA, rate / 3": replace(usual, sft=gentle),
        "QLoRA": replace(usual, sft=once, quantized=True),
        "no new rows": replace(usual, sft=once, lora=no_rows),
    }
    for rank in (1, 32):
        adapter = replace(usual.lora, rank=rank, alpha=2.0 * rank)
        variations[f"rank {rank}"] = replace(usual, sft=once, lora=adapter)
    return Experiment(lora_trial, variations=variations)


def pairs() -> Experiment:
    """Chapter 8: pairs of a policy's own answers."""
    variations = {
        "reward": PairsTrial(rounds=3),
        "gold": PairsTrial(judge="gold"),
        "eighteen": PairsTrial(eighteen=True),
        "their prompts": PairsTrial(prompts="pairs"),
        "best": PairsTrial(method="best"),
        "any": PairsTrial(method="any"),
    }
    for smoothing in (0.0, 0.2):
        slips = PairsTrial(judge="gold", flipped=0.4, label_smoothing=smoothing)
        variations[f"40% flipped, smoothing {smoothing}"] = slips
    return Experiment(pairs_trial, variations=variations)


def rivals() -> Experiment:
    """Chapter 6: dull ways to win."""
    return Experiment(rival_trial, {way: RivalTrial(way) for way in WAYS})


EXPERIMENTS: dict[str, Experiment] = dict(
    pretraining=pretraining(),
    sft=finetuning(),
    reward=reward(),
    ppo=ppo(),
    dpo=dpo(),
    best_of_n=Experiment(best_of_n_trial, {"best of n": None}),
    base=Experiment(base_trial, {"base": None}),
    rivals=rivals(),
    small_world=small_world(),
    lora=lora(),
    pairs=pairs(),
    costs=Experiment(
        cost_trial, variations={name: name for name in METHODS}, alone=True
    ),
)
