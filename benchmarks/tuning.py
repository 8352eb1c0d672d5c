"""Try the settings of docs/tuning.jsonl again: how the recipes of chapters 4 and 5 were
chosen.

Tuned are runs with seeds that are in no record, which practise on 72 of the training
prompts. They are judged on the other 24, four answers to each. `python
benchmarks/tuning.py METHOD` prints, for each setting, what is noted there and what this
machine finds.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator

import torch

from posttrain.data import corpus, datasets
from posttrain.dpo import DPOConfig, dpo_steps
from posttrain.evaluate import win_rate
from posttrain.gpt import GPT
from posttrain.lab.ppo_variants import variant
from posttrain.lab.scorecard import judge_answers, lexicon
from posttrain.lab.tuning import tried
from posttrain.logprobs import pack, sequence_kl
from posttrain.online_dpo import OnlineDPOConfig, online_dpo_rounds
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.preference_pairs import encode_pairs
from posttrain.reward_model import RewardConfig, RewardModel, sample_answers
from posttrain.sft import SFTConfig
from posttrain.stages import reward_model, sft_model
from posttrain.tokenizer import CharTokenizer

HELD, DRAWS = 24, 4  # prompts that are judged on, and answers to each
KEYS = ("won", "gold_score", "kl", "finished")


def trained(
    method: str, settings: dict, seed: int, sft: GPT, judge: RewardModel
) -> GPT:
    """The policy that a method makes of the SFT model with these settings."""
    prompts, policy = datasets.training_prompts()[:-HELD], copy.deepcopy(sft)
    if method in ("PPO", "GRPO"):
        config = PPOConfig(**settings, seed=seed)
        chosen = variant("" if method == "PPO" else method)
        models = chosen.models(assemble(sft, judge))
        list(ppo_steps(models, prompts, config, chosen.estimate, chosen.losses))
        return models.policy
    if method == "on-policy DPO":
        config = OnlineDPOConfig(**settings, seed=seed)
        list(online_dpo_rounds(policy, sft, judge, prompts, config))
        return policy
    pairs = encode_pairs(datasets.preferences(), CharTokenizer(), sft.config.context)
    list(dpo_steps(policy, sft, pairs, DPOConfig(**settings, seed=seed)))
    return policy


@torch.no_grad()
def judged(policy: GPT, sft: GPT, words: frozenset[str], seed: int) -> dict:
    """What `KEYS` are of a policy against the SFT model, on the held prompts."""
    asked = [p for p in datasets.training_prompts()[-HELD:] for _ in range(DRAWS)]
    prompts, said = sample_answers(policy, asked, seed)
    before = sample_answers(sft, asked, seed)[1]
    nothing = torch.zeros(len(asked))
    card, first = (judge_answers(each, nothing, words) for each in (said, before))
    rows = pack(prompts, said, CharTokenizer().pad)
    kl = sequence_kl(policy, sft, *rows, 0.8).mean().item()
    return card | dict(won=win_rate(card["gold"], first["gold"]), kl=kl)


def tried_again(row: dict) -> Iterator[dict]:
    """What each seed of a line gives here."""
    text, prompts = corpus.load(), datasets.training_prompts()[:-HELD]
    data = datasets.TrainingData(
        datasets.conversations(), datasets.preferences(), prompts
    )
    for seed in row["seeds"]:
        sft, _ = sft_model(text, SFTConfig(seed=seed))
        judge, _ = reward_model(text, RewardConfig(seed=seed), data=data)
        policy = trained(row["method"], row["settings"], seed, sft, judge)
        yield judged(policy, sft, lexicon(text), seed)


def main() -> None:
    """Try the settings of the methods that are named, or of all."""
    rows = tried()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    wanted = parser.parse_args().methods or {row["method"] for row in rows}
    for row in rows:
        if row["method"] in wanted:
            found = list(tried_again(row))
            again = {key: [round(each[key], 2) for each in found] for key in KEYS}
            print(row["method"], row["settings"])
            print("  noted:", {key: row[key] for key in KEYS})
            print("  here: ", again, flush=True)


if __name__ == "__main__":
    main()
