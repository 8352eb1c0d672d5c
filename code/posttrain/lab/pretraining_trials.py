"""Pre-training on trial: GPT-2's block turned into this book's, one change at a
time.
"""

from __future__ import annotations

from dataclasses import replace

from posttrain.data.corpus import Corpus
from posttrain.gpt import GPTConfig
from posttrain.pretrain import PretrainConfig, pretrain
from posttrain.stages import encode_split


def pretrain_trial(corpus: Corpus, config: PretrainConfig, seed: int) -> dict:
    """The history of one short run: `pretrain`'s."""
    return pretrain(replace(config, seed=seed), *encode_split(corpus))[1]


def ladder(steps: int = 300) -> dict[str, PretrainConfig]:
    """From GPT-2's block to this book's, each run with one change more than the one
    before.
    """
    rungs = {}
    switches = dict.fromkeys(("rope", "qk_norm", "relu2", "bare", "zero_init"), False)
    for rung, change in [
        ("GPT-2 block, AdamW", None),
        ("+ RoPE", "rope"),
        ("+ QK-norm", "qk_norm"),
        ("+ ReLU²", "relu2"),
        ("+ bare layers", "bare"),
        ("+ zero init", "zero_init"),
    ]:
        switches |= {change: True} if change else {}
        model, rate = GPTConfig(**switches), 4e-3 if change else 2e-3
        rungs[rung] = PretrainConfig(
            model,
            steps,
            muon=False,
            adamw_lr=rate,
            weight_decay=0.1,
            warmup=0.05,
            evaluations=6,
            whole_split=False,
        )
    rungs["+ Muon"] = PretrainConfig(steps=steps, evaluations=6, whole_split=False)
    return rungs


def taken_away(steps: int = 300) -> dict[str, PretrainConfig]:
    """This book's model and optimiser with one of the changes since GPT-2 taken
    back.
    """
    taken = dict(rope="RoPE", qk_norm="QK-norm", relu2="ReLU²", zero_init="zero init")
    return {
        f"without {name}": PretrainConfig(
            GPTConfig(**{switch: False}), steps, evaluations=1, whole_split=False
        )
        for switch, name in taken.items()
    }


def nanogpt_recipe() -> PretrainConfig:
    """nanoGPT's recipe for a laptop CPU (its README): GPT-2 blocks, AdamW, small
    steps.
    """
    return PretrainConfig(
        GPTConfig.gpt2(context=64, n_head=4),
        steps=2000,
        batch_size=12,
        sequence_length=64,
        muon=False,
        adamw_lr=1e-3,
        weight_decay=0.1,
        warmup=0.05,
        cooldown=0.95,
        evaluations=20,
        whole_split=False,
    )


def sprint() -> PretrainConfig:
    """A short run of this book's recipe, at higher rates."""
    return PretrainConfig(
        steps=240, muon_lr=0.03, adamw_lr=0.01, evaluations=24, whole_split=False
    )


def seconds_until(history: dict, loss: float) -> float:
    """Seconds of training until the validation loss was first measured at most `loss`.

    Raises ValueError for a run that never got there.
    """
    for seconds, measured in zip(history["seconds"], history["validation"]):
        if measured <= loss:
            return seconds
    least = min(history["validation"])
    raise ValueError(f"the loss never came down to {loss}: it was {least} at the least")
