"""DPO under trial: one setting over several seeds, judged on held-out pairs and prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, replace

from torch import Tensor

from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.dpo import DPOConfig, pair_logprobs, pair_report
from posttrain.evaluate import win_rate
from posttrain.keep import store, workers
from posttrain.lab.scorecard import lexicon, scorecard, start_scorecard
from posttrain.online_dpo import OnlineDPOConfig, online_dpo_rounds
from posttrain.preference_pairs import encode_pairs
from posttrain.pretrain import validation_loss
from posttrain.reward_model import RewardConfig
from posttrain.sft import SFTConfig
from posttrain.stages import (
    base_model,
    dpo_inputs,
    encode_split,
    reward_model,
    sft_model,
    train_dpo,
)
from posttrain.tokenizer import CharTokenizer


def dpo_trial(corpus: Corpus, config: DPOConfig | OnlineDPOConfig, every: int) -> dict:
    """The history of one run, judged before and after it; stored.

    A run of DPO on the written pairs, or, by its configuration, on the policy's own answers.
    `steps` has what each step (or round) noted; `heldout` what the 72 held-out pairs show,
    before the training and after every so many steps, each with its `step`; `cards` two
    scorecards, the second with its `win_rate` against the first by the gold rubric;
    `shakespeare_loss` as in PPO's trials. The run starts from the SFT model of the same
    seed, and that seed's reward model judges; only the policy's own answers need it for
    training.
    """

    def train() -> tuple[dict[str, Tensor], dict]:
        sft, _ = sft_model(corpus, SFTConfig(seed=config.seed))
        judge, _ = reward_model(corpus, RewardConfig(seed=config.seed))
        policy, tokenizer = copy.deepcopy(sft), CharTokenizer()
        unseen = encode_pairs(datasets.heldout_preferences(), tokenizer, sft.config.context)
        known = pair_logprobs(sft, unseen, tokenizer.pad)  # (2, N)

        def heldout(step: int) -> dict:
            logprobs = pair_logprobs(policy, unseen, tokenizer.pad) if step else known
            return pair_report(logprobs, known, config.beta) | dict(step=step)

        if isinstance(config, OnlineDPOConfig):
            prompts = datasets.training_prompts()
            run, total = online_dpo_rounds(policy, sft, judge, prompts, config), config.rounds
        else:
            run, total = train_dpo(policy, sft, config), config.steps
        steps, seen = [], [heldout(0)]
        for noted in run:
            steps.append(noted)
            if len(steps) % every == 0 or len(steps) == total:
                seen.append(heldout(len(steps)))
        before = start_scorecard(corpus, config.seed)
        after = scorecard(policy, sft, judge, lexicon(corpus), config.seed)
        after["win_rate"] = win_rate(after["gold"], before["gold"])
        forgetting = validation_loss(policy, encode_split(corpus)[1], windows=32)
        noted = dict(steps=steps, heldout=seen, shakespeare_loss=forgetting)
        return {}, noted | dict(cards=[before, after])

    inputs = trial_inputs(corpus, config) | dict(every=every)
    return store.obtain("dpo-trial", inputs, train, source=__name__).history


def trial_inputs(corpus: Corpus, config: DPOConfig | OnlineDPOConfig) -> dict:
    """What a stored trial depends on, its judges included."""
    return dpo_inputs(corpus, config) | dict(
        online=isinstance(config, OnlineDPOConfig),
        reward=asdict(RewardConfig(seed=config.seed)), prompts=datasets.training_prompts(),
        judged_on=[datasets.heldout_prompts(), datasets.heldout_preferences()],
    )  # fmt: skip


def dpo_trials(
    corpus: Corpus, settings: dict[str, DPOConfig | OnlineDPOConfig], seeds: int, every: int,
    progress: Callable = lambda done, total: done,
) -> dict[str, list[dict]]:
    """The histories of every setting's runs, side by side, one per seed."""
    if every < 1:
        raise ValueError(f"every is {every}: use at least 1 step")
    base_model(corpus)  # once, before the workers all want it
    groups = {
        name: [(corpus, replace(config, seed=seed), every) for seed in range(seeds)]
        for name, config in settings.items()
    }
    return workers.run_groups(dpo_trial, groups, progress)
