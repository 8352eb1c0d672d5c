"""PPO under trial: one setting over several seeds, judged on held-out prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from posttrain import store, workers
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.evaluate import finished, gold_score, lexicon, win_rate
from posttrain.gpt import GPT
from posttrain.logprobs import pack, sequence_kl
from posttrain.ppo import PPOConfig, assemble, ppo_inputs, ppo_steps
from posttrain.reward_model import RewardConfig, RewardModel, reward_model, sample_answers
from posttrain.sft import sft_model
from posttrain.tokenizer import CharTokenizer


@torch.no_grad()
def scorecard(
    policy: GPT, reference: GPT, reward_model: RewardModel, real_words: frozenset[str],
    seed: int, temperature: float = 0.8,
) -> dict:
    """What a policy answers to the 64 held-out prompts, and what is to be said of it.

    Lists, one entry per prompt: `answers`, `scores` (the reward model's), `gold` (the
    rubric's). Means: `score`, `gold_score`, `kl` (to the reference, nats per response),
    `finished` and `different` (shares of the answers).
    """
    tokenizer, prompts = CharTokenizer(), datasets.heldout_prompts()
    asked, responses = sample_answers(policy, prompts, seed, temperature)
    tokens, mask = pack(asked, responses, tokenizer.pad)  # (B, T)
    answers = [tokenizer.decode(response) for response in responses]
    scores = reward_model(tokens, mask).tolist()
    gold = [gold_score(answer, real_words) for answer in answers]
    n = len(answers)
    return dict(
        answers=answers, scores=scores, gold=gold, score=sum(scores) / n,
        gold_score=sum(gold) / n,
        kl=sequence_kl(policy, reference, tokens, mask, temperature).mean().item(),
        finished=sum(map(finished, answers)) / n, different=len(set(answers)) / n,
    )  # fmt: skip


def ppo_trial(corpus: Corpus, config: PPOConfig, every: int) -> dict:
    """The history of one run, with a scorecard after every so many rounds; stored.

    Seed i is also the reward model's: each run is paid by another one. `rounds` has what each
    round noted, `cards` the scorecards, the first from before the training and each with its
    `round`, and with its `win_rate` against the first by the gold rubric.
    """

    def train() -> tuple[dict[str, Tensor], dict]:
        sft, _ = sft_model(corpus)
        judge, _ = reward_model(corpus, RewardConfig(seed=config.seed))
        models, real_words = assemble(sft, judge, config), lexicon(corpus)

        def card(done: int) -> dict:
            judged = scorecard(
                models.policy, sft, judge, real_words, config.seed, config.temperature
            )
            return judged | dict(round=done)

        rounds, cards = [], [card(0)]
        for noted in ppo_steps(models, datasets.training_prompts(), config):
            rounds.append(noted)
            if len(rounds) % every == 0 or len(rounds) == config.iterations:
                cards.append(card(len(rounds)))
        for each in cards:
            each["win_rate"] = win_rate(each["gold"], cards[0]["gold"])
        return {}, dict(rounds=rounds, cards=cards)

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
    # Train once what the workers all want
    for seed in range(seeds):
        reward_model(corpus, RewardConfig(seed=seed))
    jobs = [
        (corpus, replace(config, seed=seed), every)
        for config in settings.values()
        for seed in range(seeds)
    ]
    histories = iter(workers.run_all(ppo_trial, jobs, progress))
    return {name: [next(histories) for _ in range(seeds)] for name in settings}
