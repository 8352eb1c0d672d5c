"""PPO under trial: one setting over several seeds, judged on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.evaluate import win_rate
from posttrain.keep import store, workers
from posttrain.lab.scorecard import lexicon, scorecard, start_scorecard
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.pretrain import validation_loss
from posttrain.reward_model import RewardConfig
from posttrain.sft import SFTConfig
from posttrain.stages import base_model, encode_split, ppo_inputs, reward_model, sft_model


def ppo_trial(corpus: Corpus, config: PPOConfig, every: int) -> dict:
    """The history of one run, with a scorecard after every so many rounds; stored.

    Seed i is also the SFT model's and the reward model's: each run starts from another one and
    is paid by another one. `rounds` has what each
    round noted, `cards` the scorecards, the first from before the training and each with its
    `round`, and with its `win_rate` against the first by the gold rubric. `shakespeare_loss`
    is the loss at the end on 32 windows of validation text, in nats per character.
    """

    def train() -> tuple[dict[str, Tensor], dict]:
        sft, _ = sft_model(corpus, SFTConfig(seed=config.seed))
        judge, _ = reward_model(corpus, RewardConfig(seed=config.seed))
        models, real_words = assemble(sft, judge, config), lexicon(corpus)

        def card(done: int) -> dict:
            judged = scorecard(
                models.policy, sft, judge, real_words, config.seed, config.temperature
            )
            return judged | dict(round=done)

        start = start_scorecard(corpus, config.seed, config.temperature)
        rounds, cards = [], [start | dict(round=0)]
        for noted in ppo_steps(models, datasets.training_prompts(), config):
            rounds.append(noted)
            if len(rounds) % every == 0 or len(rounds) == config.iterations:
                cards.append(card(len(rounds)))
        for each in cards:
            each["win_rate"] = win_rate(each["gold"], cards[0]["gold"])
        forgetting = validation_loss(models.policy, encode_split(corpus)[1], windows=32)
        return {}, dict(rounds=rounds, cards=cards, shakespeare_loss=forgetting)

    judged = dict(judged_on=datasets.heldout_prompts(), every=every)
    inputs = ppo_inputs(corpus, config) | judged
    return store.obtain("ppo-trial", inputs, train, source=__name__).history


def ppo_trials(
    corpus: Corpus, settings: dict[str, PPOConfig], seeds: int, every: int,
    progress: Callable = lambda done, total: done,
) -> dict[str, list[dict]]:
    """The histories of every setting's runs, side by side, one per seed."""
    if every < 1:
        raise ValueError(f"every is {every}: use at least 1 round")
    base_model(corpus)  # once, before the workers all want it
    groups = {
        name: [(corpus, replace(config, seed=seed), every) for seed in range(seeds)]
        for name, config in settings.items()
    }
    return workers.run_groups(ppo_trial, groups, progress)
