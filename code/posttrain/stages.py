"""The trained stages by their names: how each is obtained, from which data, and how it went."""

from __future__ import annotations

from pathlib import Path

from posttrain.data.datasets import DatasetError, TrainingData, training_data
from posttrain.dpo import DPOConfig, dpo_model
from posttrain.ppo import PPOConfig, ppo_model
from posttrain.pretrain import PretrainConfig, base_model
from posttrain.reward_model import RewardConfig, reward_model
from posttrain.sft import SFTConfig, sft_model

STAGES = dict(
    base=base_model, sft=sft_model, reward=reward_model, ppo=ppo_model, dpo=dpo_model
)  # fmt: skip
CONFIGS = dict(
    base=PretrainConfig, sft=SFTConfig, reward=RewardConfig, ppo=PPOConfig, dpo=DPOConfig
)  # fmt: skip


def data_for(stage: str, data: Path | None, conversations: Path | None) -> TrainingData:
    """What a stage learns from: `data` is its own file, `conversations` that of the SFT model.

    The book's own where there is no file. Raises DatasetError for a file that cannot be used,
    or that the stage has no use for.
    """
    if stage == "base" and (data or conversations):
        raise DatasetError(
            "The base model learns from a text, not from conversations or pairs: choose that "
            "with POSTTRAIN_CORPUS=path/to/text.txt"
        )
    if stage == "sft" and conversations:
        raise DatasetError("The SFT model learns from one file alone: name it with --data")
    return training_data(data) if stage == "sft" else training_data(conversations, data)


def rows_of(stage: str, data: TrainingData) -> str:
    """What a stage has learned from, in words."""
    n, n_pairs = len(data.conversations), len(data.pairs)
    conversations = f"{n} conversation{'s' * (n != 1)}"
    pairs = f"{n_pairs} pair{'s' * (n_pairs != 1)}, after the SFT model's {conversations}"
    return dict(base="the corpus", sft=conversations).get(stage, pairs)


def course_of(stage: str, history: dict) -> str:
    """How a stage's training went, from its first steps to its last, and how long it took."""
    seconds = history["seconds"]
    if stage == "ppo":
        first, last = history["rounds"][0], history["rounds"][-1]
        course = (
            f"score {first['score']:+.2f} -> {last['score']:+.2f}, "
            f"KL to the SFT model {first['kl']:.1f} -> {last['kl']:.1f} nats per answer"
        )
    elif stage == "dpo":
        first, last = history["steps"][0], history["steps"][-1]
        course = (
            f"loss {first['loss']:.3f} -> {last['loss']:.3f} nats per pair, "
            f"{last['accuracy']:.0%} of the last batch's pairs ranked right"
        )
    else:
        course = f"loss {history['train'][0]:.3f} -> {history['train'][-1]:.3f}"
        if stage == "reward":
            course += f", {history['train_accuracy']:.0%} of the pairs ranked right"
        else:
            unit, seconds = dict(base="character", sft="graded token")[stage], seconds[-1]
            course += f" nats per {unit} (means of {history['step'][0]} steps)"
    return f"{course}; {seconds:.0f} s of training"
