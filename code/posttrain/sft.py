"""Supervised fine-tuning: the masked loss, the loop, and replay of pre-training text."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from posttrain.batches import epochs
from posttrain.chat import IGNORE, build_labels, collate, grow_vocabulary, render
from posttrain.gpt import GPT
from posttrain.optim import set_rates
from posttrain.pretrain import (
    PretrainConfig,
    build_optimizers,
    next_token_loss,
    random_batch,
)
from posttrain.tokenizer import CharTokenizer


@dataclass(frozen=True)
class SFTConfig:
    """One fine-tuning run."""

    steps: int = 350  # optimiser steps
    batch_size: int = 4  # B, conversations per step
    micro_batch_size: int = 4  # conversations per forward pass; their gradients add up
    muon_lr: float = 0.01  # both rates as in pre-training, falling in a straight line to 0
    adamw_lr: float = 6e-3
    replay: int = 2  # excerpts of pre-training text beside each batch; 0 for none
    replay_length: int = 256  # tokens per excerpt
    replay_weight: float = 0.3  # of their loss beside the conversations'
    mask: bool = True  # grade the assistant's tokens alone; otherwise every token
    evaluations: int = 5  # how often something is measured, at equal distances
    seed: int = 0


def sft_loss(logits: Tensor, labels: Tensor, n_graded: int | None = None) -> Tensor:
    r"""Mean surprise at the graded tokens, in nats: $-\frac1n\sum \log p(label)$.

    logits: (B, T, V). labels: (B, T), the tokens themselves, or IGNORE.
    n_graded: the graded tokens of the whole batch, where these are only a part of it, so that
    the parts' losses add up to the batch's. Raises ValueError when there are none.
    """
    # Compare what is said at each position with the token that comes after it
    logits, targets = logits[:, :-1], labels[:, 1:]  # (B, T - 1, V), (B, T - 1)
    n_graded = count_graded(labels) if n_graded is None else n_graded
    if n_graded == 0:
        raise ValueError(
            "no token of this batch is graded: all labels are IGNORE, the mean is undefined. "
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

    Raises ValueError where there are none, and, naming the conversation, where one is longer
    than the context or has no answer.
    """
    if not conversations:
        raise ValueError("there are no conversations: give at least one")
    examples = []
    for conversation in conversations:
        tokens = render(conversation["messages"], tokenizer)
        labels = build_labels(tokens, tokenizer)
        if max(labels, default=IGNORE) == IGNORE:
            raise ValueError(
                f"conversation {conversation['id']} has no answer: there is nothing to learn"
            )
        if len(tokens) > context:
            raise ValueError(
                f"conversation {conversation['id']} has {len(tokens)} tokens and the context "
                f"{context}: shorten it or split it"
            )
        examples.append((tokens, labels if mask else list(tokens)))
    return examples


def accumulate_gradients(model: GPT, tokens: Tensor, labels: Tensor, size: int) -> Tensor:
    """Add the gradient of a batch's SFT loss, `size` rows at a time; return the loss.

    The result is that of one pass over the whole batch: each part's sum is divided by the
    graded tokens of all.
    """
    n_graded, total = count_graded(labels), 0.0
    for some_tokens, some_labels in zip(tokens.split(size), labels.split(size)):
        loss = sft_loss(model(some_tokens), some_labels, n_graded)
        loss.backward()
        total = total + loss.detach()
    return total


def sft_steps(
    model: GPT, examples: list, text: Tensor, config: SFTConfig, pad: int
) -> Iterator[Tensor]:
    """Fine-tune the model in place; after each step, yield its SFT loss (before the step).

    examples: (tokens, labels) pairs. text: pre-training tokens to replay, 1-d.
    """
    # Flush denormals, as in pre-training
    torch.set_flush_denormal(True)
    generator = torch.Generator().manual_seed(config.seed)
    rates = PretrainConfig(muon_lr=config.muon_lr, adamw_lr=config.adamw_lr)
    optimizers = build_optimizers(model, rates)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    batches = epochs(len(examples), config.batch_size, generator)
    for step in range(config.steps):
        set_rates(groups, peaks, 1 - step / config.steps)
        # Follow the gradient of the conversations' loss
        tokens, labels = collate([examples[i] for i in next(batches)], pad)
        loss = accumulate_gradients(model, tokens, labels, config.micro_batch_size)
        # And of the loss of some pre-training text
        if config.replay:
            excerpt = random_batch(text, config.replay, config.replay_length, generator)
            (config.replay_weight * next_token_loss(model, *excerpt)).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield loss


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
    """Fine-tune a copy of the base model; return it and its history.

    text: pre-training tokens to replay, 1-d. measure(model) returns numbers to note at each of
    the evaluations. The history has lists `step`, `seconds` (of training), `train` (the mean
    SFT loss since the entry before, in nats per graded token) and what measure returned.
    """
    tokenizer = CharTokenizer()
    model = grow_vocabulary(base, tokenizer.vocab_size)
    context = model.config.context
    examples = encode_conversations(conversations, tokenizer, context, config.mask)
    spacing = config.steps / config.evaluations
    entries = {round(spacing * i) for i in range(1, config.evaluations + 1)}
    history: dict[str, list] = {}
    total, since, seconds, started = 0.0, 0, 0.0, time.perf_counter()
    steps = sft_steps(model, examples, text, config, tokenizer.pad)
    for step, loss in enumerate(progress(steps, total=config.steps), start=1):
        total, since = total + loss, since + 1
        if step not in entries:
            continue
        seconds += time.perf_counter() - started
        entry = dict(step=step, seconds=seconds, train=float(total) / since, **measure(model))
        for name, value in entry.items():
            history.setdefault(name, []).append(value)
        total, since, started = 0.0, 0, time.perf_counter()
    return model, history


def plain_sft(**changes) -> SFTConfig:
    """Fine-tuning on conversations alone: no replay, and fewer steps."""
    return SFTConfig(**{**dict(steps=100, replay=0), **changes})
