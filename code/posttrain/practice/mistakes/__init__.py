"""Typical mistakes, a file for each chapter, and small inputs that tell them apart."""

from posttrain.practice.mistakes import (
    comparison,
    dpo,
    lora,
    pairs,
    ppo,
    pretraining,
    real,
    reward,
    scale,
    sft,
)

CHAPTERS = (pretraining, sft, reward, ppo, dpo, comparison, lora, pairs, real, scale)
EXERCISES = {
    each.function.__name__: each for chapter in CHAPTERS for each in chapter.EXERCISES
}
