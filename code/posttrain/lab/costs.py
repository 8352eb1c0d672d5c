"""What each method costs on one core: seconds, and the most memory its process held."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from posttrain.best_of_n import draw_answers
from posttrain.chat import grow_vocabulary
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.dpo import DPOConfig
from posttrain.lab.policy_trials import SIZES
from posttrain.online_dpo import OnlineDPOConfig, online_dpo_rounds
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.preference_pairs import encode_pairs
from posttrain.reward_model import RewardConfig, reward_steps
from posttrain.sft import SFTConfig, encode_conversations, sft_steps
from posttrain.stages import (
    base_model,
    encode_split,
    reward_model,
    sft_model,
    train_dpo,
)
from posttrain.tokenizer import CharTokenizer

WATCHED = 3  # steps or rounds that are timed, after a first one that is not


def peak_memory() -> float:
    """The most memory this process has held so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():
        # Linux: ru_maxrss would count the parent's memory from before this program
        # began
        (line,) = (x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) * 1024 / 1e6
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e6
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def begin(corpus: Corpus, method: str) -> tuple[Iterator, int]:
    """A run of a method that has not begun, step by step, and the steps in the whole of
    it.

    A step of best of n is 16 answers to each of four prompts; it has no training, so
    the number is 0. Raises ValueError for a method that is none of METHODS.
    """
    tokenizer, prompts = CharTokenizer(), datasets.training_prompts()
    if method == "SFT":
        model = grow_vocabulary(base_model(corpus)[0], tokenizer.vocab_size)
        rows = encode_conversations(
            datasets.conversations(), tokenizer, model.config.context
        )
        config, text = SFTConfig(), encode_split(corpus)[0]
        return sft_steps(model, rows, text, config, tokenizer.pad), config.steps
    sft, _ = sft_model(corpus)
    if method == "DPO":
        return train_dpo(copy.deepcopy(sft), sft, DPOConfig()), DPOConfig().steps
    judge, _ = reward_model(corpus)
    if method == "reward model":
        pairs = encode_pairs(datasets.preferences(), tokenizer, sft.config.context)
        return reward_steps(
            judge, pairs, RewardConfig(), tokenizer.pad
        ), RewardConfig().steps
    if method == "PPO":
        models = assemble(sft, judge)
        return ppo_steps(models, prompts, PPOConfig()), PPOConfig().iterations
    if method == "on-policy DPO":
        config = OnlineDPOConfig()
        run = online_dpo_rounds(copy.deepcopy(sft), sft, judge, prompts, config)
        return run, config.rounds
    if method == "best of n":
        draws = (
            draw_answers(sft, judge, prompts[:4], max(SIZES), seed) for seed in count()
        )
        return draws, 0
    raise ValueError(f"{method!r} is none of {', '.join(METHODS)}")


METHODS = ("SFT", "reward model", "PPO", "DPO", "on-policy DPO", "best of n")


def measure(corpus: Corpus, method: str) -> dict[str, float]:
    """Run a few steps of a method, and note what they take.

    `seconds`: one step's, the mean of WATCHED. `steps`: how many a whole run has.
    `memory`: the most this process has held, in MB; `before`: the most before the first
    step, with Python, PyTorch, the data and the models.
    """
    run, steps = begin(corpus, method)
    before = peak_memory()
    next(run)
    started = time.perf_counter()
    for _ in range(WATCHED):
        next(run)
    seconds = (time.perf_counter() - started) / WATCHED
    return dict(seconds=seconds, steps=steps, memory=peak_memory(), before=before)


def cost_trial(corpus: Corpus, method: str, seed: int) -> dict[str, float]:
    """`measure` of one method, for which it wants a process of its own and nothing
    beside it.
    """
    sft_model(corpus), reward_model(corpus)  # before anything is timed
    return measure(corpus, method)
