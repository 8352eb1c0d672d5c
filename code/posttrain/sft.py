"""Supervised fine-tuning: the masked loss, the loop, and replay of pre-training
text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.batches import ALONE, Alone, Part, device_of, epochs, follow, turns
from posttrain.chat import IGNORE, build_labels, collate, grow_vocabulary, render
from posttrain.gpt import GPT
from posttrain.optim import Descent, linear_fall
from posttrain.pretrain import (
    PretrainConfig,
    build_optimizers,
    random_batch,
    text_part,
)
from posttrain.settings import at_least
from posttrain.tokenizer import CharTokenizer


@dataclass(frozen=True)
class SFTConfig:
    """One fine-tuning run."""

    steps: int = 350  # optimiser steps
    batch_size: int = 4  # B, conversations per step
    micro_batch_size: int = 4  # conversations per forward pass; their gradients add up
    # Both rates as in pre-training, falling in a straight line to 0
    muon_lr: float = 0.01
    adamw_lr: float = 6e-3
    replay: int = 2  # excerpts of pre-training text beside each batch; 0 for none
    replay_length: int = 256  # tokens per excerpt
    replay_weight: float = 0.3  # of their loss beside the conversations'
    mask: bool = True  # grade the assistant's tokens alone; otherwise every token
    evaluations: int = 5  # how often something is measured, at equal distances
    seed: int = 0

    def __post_init__(self):
        at_least(self, steps=1, batch_size=1, micro_batch_size=1, evaluations=1)
        at_least(
            self, muon_lr=0, adamw_lr=0, replay=0, replay_length=1, replay_weight=0
        )


def sft_loss(logits: Tensor, labels: Tensor, n_graded: int | None = None) -> Tensor:
    """Mean surprise at the graded tokens, in nats: -log p(label), averaged over them.

    logits: (B, T, V). labels: (B, T), the tokens themselves, or IGNORE. n_graded: the
    graded tokens of the whole batch, where these are only a part of it, so that the
    parts' losses add up to the batch's. Raises ValueError when there are none.
    """
    # Compare what is said at each position with the token that comes after it
    logits, targets = logits[:, :-1], labels[:, 1:]  # (B, T - 1, V), (B, T - 1)
    n_graded = count_graded(labels) if n_graded is None else n_graded
    if n_graded == 0:
        raise ValueError(
            "no token of this batch is graded: all labels are IGNORE, the mean is "
            "undefined. "
            "Does each conversation have an assistant's turn?"
        )
    surprise = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum"
    )
    return surprise / n_graded


def count_graded(labels: Tensor) -> int:
    """How many tokens of labels (B, T) are graded; the first has nothing before it."""
    return int((labels[:, 1:] != IGNORE).sum())


def encode_conversations(
    conversations: list[dict], tokenizer: CharTokenizer, context: int, mask: bool = True
) -> list[tuple[list[int], list[int]]]:
    """Tokens and labels of each conversation; without the mask, every token is a label.

    Raises ValueError where there are none, and, naming the conversation, where one is
    longer than the context or has no answer.
    """
    if not conversations:
        raise ValueError("there are no conversations: give at least one")
    examples = []
    for conversation in conversations:
        tokens = render(conversation["messages"], tokenizer)
        labels = build_labels(tokens, tokenizer)
        if max(labels, default=IGNORE) == IGNORE:
            raise ValueError(
                f"conversation {conversation['id']} has no answer: there is nothing "
                "to learn"
            )
        if len(tokens) > context:
            raise ValueError(
                f"conversation {conversation['id']} has {len(tokens)} tokens and the "
                "context "
                f"{context}: shorten it or split it"
            )
        examples.append((tokens, labels if mask else list(tokens)))
    return examples


def conversation_parts(
    examples: list, size: int, pad: int, crew: Alone = ALONE
) -> list[Part]:
    """The SFT loss of a batch, of which a forward pass reads `size` conversations at
    most.

    Each part's sum is divided by the graded tokens of all. Raises ValueError where
    there are none.
    """
    n_graded = batch_graded(examples, crew)
    return [
        conversation_part(some, share, n_graded, pad)
        for some, share in turns(examples, size, crew)
    ]


def batch_graded(examples: list, crew: Alone) -> int:
    """The graded tokens of a batch, whichever process reads them."""
    return sum(count_graded(torch.tensor([labels])) for _, labels in examples)


def conversation_part(examples: list, share: float, n_graded: int, pad: int) -> Part:
    """The loss of a batch's part, and its graded tokens as `graded`; of no share, 0."""

    def part(model: nn.Module) -> tuple[Tensor, dict[str, float]]:
        tokens, labels = (rows.to(device_of(model)) for rows in collate(examples, pad))
        labels = labels if share else torch.full_like(labels, IGNORE)  # (B, T)
        loss = sft_loss(model(tokens), labels, n_graded)
        return loss, dict(loss=loss.item(), graded=count_graded(labels))

    return part


def rehearsed(part: Part, weight: float) -> Part:
    """A part whose loss counts with a weight, and is noted as `replay`."""

    def rehearsal(model: nn.Module) -> tuple[Tensor, dict[str, float]]:
        loss, noted = part(model)
        return weight * loss, dict(replay=noted["loss"])

    return rehearsal


def replay_part(excerpt: tuple[Tensor, Tensor], crew: Alone = ALONE) -> Part:
    """The loss of some pre-training text: inputs and targets (B, T)."""
    n = len(excerpt[0])
    ((rows, share),) = turns(range(n), n, crew)
    return text_part(tuple(x[list(rows)] for x in excerpt), share)


def sft_batches(
    examples: list, text: Tensor, config: SFTConfig, pad: int, crew: Alone = ALONE
) -> Iterator[list[Part]]:
    """Each step's conversations, in parts, and text to replay."""
    generator = torch.Generator().manual_seed(config.seed)
    batches = epochs(len(examples), config.batch_size, generator)
    for _ in range(config.steps):
        batch = [examples[i] for i in next(batches)]
        parts = conversation_parts(batch, config.micro_batch_size, pad, crew)
        if config.replay:
            excerpt = random_batch(text, config.replay, config.replay_length, generator)
            parts.append(rehearsed(replay_part(excerpt, crew), config.replay_weight))
        yield parts


def sft_steps(
    model: GPT, examples: list, text: Tensor, config: SFTConfig, pad: int
) -> Iterator[dict[str, float]]:
    """Fine-tune the model in place; after each step, yield what it noted before it.

    examples: (tokens, labels) pairs. text: pre-training tokens to replay, 1-d. Yields
    `loss`, the conversations' alone, in nats per graded token; `graded`, how many these
    are; and with replay its own loss, `replay`. Raises ValueError where the loss is not
    a number.
    """
    rates = PretrainConfig(muon_lr=config.muon_lr, adamw_lr=config.adamw_lr)
    descent = Descent(build_optimizers(model, rates), linear_fall(config.steps))
    return follow(model, sft_batches(examples, text, config, pad), descent)


@torch.no_grad()
def conversation_loss(model: GPT, examples: list, pad: int) -> float:
    """The SFT loss over examples, in nats per graded token."""
    tokens, labels = collate(examples, pad)
    return sft_loss(model(tokens), labels).item()


def sft(
    base: GPT,
    conversations: list[dict],
    text: Tensor,
    config: SFTConfig,
    measure: Callable[[GPT], dict] = lambda model: {},
    progress: Callable = lambda steps, total: steps,
) -> tuple[GPT, dict]:
    """Fine-tune a copy of the base model; return it, and the history of `fine_tune`."""
    model = grow_vocabulary(base, CharTokenizer().vocab_size)
    return model, fine_tune(model, conversations, text, config, measure, progress)


def fine_tune(
    model: GPT,
    conversations: list[dict],
    text: Tensor,
    config: SFTConfig,
    measure: Callable[[GPT], dict] = lambda model: {},
    progress: Callable = lambda steps, total: steps,
) -> dict:
    """Fine-tune a model with room for the chat's tokens, in place; return its history.

    text: pre-training tokens to replay, 1-d. measure(model) returns numbers to note at
    each of the evaluations. The history has lists `step`, `seconds` (of training),
    `train` (the mean SFT loss since the entry before, in nats per graded token) and
    what measure returned.
    """
    tokenizer, context = CharTokenizer(), model.config.context
    examples = encode_conversations(conversations, tokenizer, context, config.mask)
    spacing = config.steps / config.evaluations
    entries = {round(spacing * i) for i in range(1, config.evaluations + 1)}
    history: dict[str, list] = {}
    total, since, seconds, started = 0.0, 0, 0.0, time.perf_counter()
    steps = sft_steps(model, examples, text, config, tokenizer.pad)
    for step, noted in enumerate(progress(steps, total=config.steps), start=1):
        total, since = total + noted["loss"], since + 1
        if step not in entries:
            continue
        seconds += time.perf_counter() - started
        entry = dict(step=step, seconds=seconds, train=total / since, **measure(model))
        for name, value in entry.items():
            history.setdefault(name, []).append(value)
        total, since, started = 0.0, 0, time.perf_counter()
    return history


def plain_sft(**changes) -> SFTConfig:
    """Fine-tuning on conversations alone: no replay, and fewer steps."""
    return SFTConfig(**{**dict(steps=100, replay=0), **changes})
