"""Pre-training: batches of plain text, the training loop, and the loss on unseen
text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.batches import Part, device_of, follow
from posttrain.gpt import GPT, GPTConfig
from posttrain.optim import Descent, Muon, adamw
from posttrain.settings import at_least


@dataclass(frozen=True)
class PretrainConfig:
    """One pre-training run: the model, the data it sees, and the optimiser."""

    model: GPTConfig = field(default_factory=GPTConfig)
    steps: int = 3600  # optimiser steps
    batch_size: int = 4  # B, sequences per step
    sequence_length: int = 256  # T, tokens per sequence
    # Muon for the matrices inside the blocks; AdamW for everything otherwise
    muon: bool = True
    muon_lr: float = 0.01
    # For the head, thrice that for the embedding; without Muon, for all
    adamw_lr: float = 6e-3
    weight_decay: float = 0.0  # AdamW's, on matrices
    warmup: float = 0.0  # share of the steps over which the rates rise from 0
    cooldown: float = 0.8  # share of the steps, at the end, over which they fall to 0
    # How often the validation loss is measured, at equal distances
    evaluations: int = 12
    whole_split: bool = True  # at the end once more, over all of the validation text
    seed: int = 0

    def __post_init__(self):
        at_least(self, steps=1, batch_size=1, sequence_length=1, evaluations=1)
        at_least(self, muon_lr=0, adamw_lr=0, weight_decay=0, warmup=0, cooldown=0)

    @property
    def tokens(self) -> int:
        """Tokens seen in the whole run."""
        return self.steps * self.batch_size * self.sequence_length


def random_batch(
    data: Tensor, batch_size: int, length: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random excerpts of data, and the token after each token: inputs and targets (B,
    T).
    """
    starts = torch.randint(
        len(data) - length, (batch_size, 1), generator=generator
    )  # (B, 1)
    excerpts = data[starts + torch.arange(length + 1)]  # (B, T + 1)
    return excerpts[:, :-1], excerpts[:, 1:]


def next_token_loss(model: GPT, inputs: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the next token, in nats: -log p(target), averaged over (B,
    T).
    """
    logits = model(inputs)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def validation_loss(
    model: GPT, data: Tensor, length: int | None = None, windows: int | None = None
) -> float:
    """Nats per character over data, in windows that do not overlap (but for a short
    last one).

    length: tokens per window, the model's context unless given.
    windows: how many of them, spread evenly; all unless given.
    """
    length = length or model.config.context
    starts = torch.arange(0, len(data) - length, length)
    if windows is not None and windows < len(starts):
        starts = starts[torch.linspace(0, len(starts) - 1, windows).long()]
    total = 0.0
    for some in starts.split(32):
        excerpts = data[some[:, None] + torch.arange(length + 1)]  # (B, T + 1)
        total += next_token_loss(model, excerpts[:, :-1], excerpts[:, 1:]).item() * len(
            some
        )
    return total / len(starts)


def build_optimizers(model: GPT, config: PretrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks and AdamW for the rest, or AdamW for
    all.
    """
    inside = [
        parameter for parameter in model.blocks.parameters() if parameter.dim() == 2
    ]
    chosen = {id(parameter) for parameter in [*inside, model.head.weight]}
    others = [
        parameter for parameter in model.parameters() if id(parameter) not in chosen
    ]
    head = [model.head.weight]
    if config.muon:
        rest = [dict(params=head), dict(params=others, lr=3 * config.adamw_lr)]
        options = dict(lr=config.adamw_lr, betas=(0.9, 0.95), weight_decay=0.0)
        return [Muon(inside, lr=config.muon_lr), adamw(rest, **options)]
    decayed = dict(params=inside, weight_decay=config.weight_decay)
    groups = [decayed, dict(params=head + others, weight_decay=0.0)]
    return [adamw(groups, lr=config.adamw_lr, betas=(0.9, 0.99))]


def learning_rate_scale(step: int, config: PretrainConfig) -> float:
    """The factor of the learning rates: a straight rise, a plateau, a straight fall to
    0.
    """
    rise = (step + 1) / (config.warmup * config.steps) if config.warmup else 1.0
    fall = (
        (config.steps - step) / (config.cooldown * config.steps)
        if config.cooldown
        else 1.0
    )
    return min(1.0, rise, fall)


def text_part(excerpt: tuple[Tensor, Tensor], share: float = 1.0) -> Part:
    """The loss of an excerpt, inputs and targets (B, T); share: the part of a batch it
    is.
    """

    def part(model: GPT) -> tuple[Tensor, dict[str, float]]:
        inputs, targets = (rows.to(device_of(model)) for rows in excerpt)  # (B, T)
        loss = share * next_token_loss(model, inputs, targets)
        return loss, dict(loss=loss.item())

    return part


def text_batches(data: Tensor, config: PretrainConfig) -> Iterator[list[Part]]:
    """Each step's random excerpts of the text."""
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.steps):
        excerpt = random_batch(
            data, config.batch_size, config.sequence_length, generator
        )
        yield [text_part(excerpt)]


def training_steps(
    model: GPT, data: Tensor, config: PretrainConfig
) -> Iterator[dict[str, float]]:
    """Train the model in place; after each step, yield that batch's `loss` (before the
    step).
    """
    scale = partial(learning_rate_scale, config=config)
    descent = Descent(build_optimizers(model, config), scale)
    return follow(model, text_batches(data, config), descent)


def pretrain(
    config: PretrainConfig,
    training: Tensor,
    validation: Tensor,
    progress: Callable = lambda steps, total: steps,
    stop_at: float | None = None,
) -> tuple[GPT, dict]:
    """Train a new model; return it and its history.

    The history has lists `step`, `tokens`, `seconds` (of training, not of measuring),
    `train` (the mean batch loss since the entry before) and `validation` (over 16,384
    characters), and `final_validation`, over the whole split or as the last entry;
    losses in nats per character. Training ends early once the validation loss is at
    most `stop_at`.
    """
    model = GPT(config.model, torch.Generator().manual_seed(config.seed))
    history = {
        name: [] for name in ("step", "tokens", "seconds", "train", "validation")
    }
    spacing = config.steps / config.evaluations
    entries = {round(spacing * i) for i in range(1, config.evaluations + 1)}
    total, since, seconds, started = 0.0, 0, 0.0, time.perf_counter()
    steps = progress(training_steps(model, training, config), total=config.steps)
    for step, noted in enumerate(steps, start=1):
        total, since = total + noted["loss"], since + 1
        if step not in entries:
            continue
        seconds += time.perf_counter() - started
        length = config.sequence_length
        measured = validation_loss(model, validation, length, windows=16_384 // length)
        tokens = step * config.batch_size * length
        entry = (step, tokens, seconds, total / since, measured)
        for name, value in zip(history, entry):
            history[name].append(value)
        total, since, started = 0.0, 0, time.perf_counter()
        if stop_at is not None and measured <= stop_at:
            break
    history["final_validation"] = (
        validation_loss(model, validation, config.sequence_length)
        if config.whole_split
        else history["validation"][-1]
    )
    return model, history
