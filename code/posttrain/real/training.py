"""The four stages on a real model: the book's losses, in steps that can be taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from posttrain.batches import epochs
from posttrain.chat import collate
from posttrain.dpo import dpo_loss, pair_report
from posttrain.logprobs import get_response_log_probs, pack, token_logprobs
from posttrain.optim import adamw, set_rates
from posttrain.ppo import (
    Models,
    PPOConfig,
    Rollout,
    estimate_advantages,
    next_beta,
    update,
)
from posttrain.preference_pairs import Pair, pack_pairs
from posttrain.real.model import LanguageModel, ModelError, ScoringModel
from posttrain.reward_model import bradley_terry_loss
from posttrain.sampling import draw, left_pad
from posttrain.sft import accumulate_gradients, count_graded


@dataclass(frozen=True)
class RealConfig:
    """One run of any stage on a real model."""

    stage: str = "sft"  # or "reward", "dpo", "ppo"
    steps: int = 100  # optimiser steps; for PPO, rounds
    batch_size: int = 8  # conversations, pairs or answers per step
    # Of them per forward pass; their gradients add up. For PPO each is a step of the optimiser
    micro_batch_size: int = 2
    lr: float = 2e-4  # AdamW's, falling in a straight line to 0
    max_length: int = 1024  # the longest row, in tokens
    max_gradient_norm: float = 1.0  # longer gradients are scaled down to it; not PPO's
    beta: float = 0.1  # "dpo" and "ppo": what a nat away from the reference counts
    centring: float = 0.01  # "reward" alone: weight of (r_chosen + r_rejected)^2
    max_new_tokens: int = 128  # "ppo" alone: an answer that has not ended by then is cut
    seed: int = 0


def check_config(config: RealConfig) -> None:
    """Raise ModelError for a setting that cannot work, naming it and the way out."""
    if config.stage not in ("sft", "reward", "dpo", "ppo"):
        raise ModelError(f"stage is {config.stage!r}: use 'sft', 'reward', 'dpo' or 'ppo'")
    for name in ("steps", "batch_size", "micro_batch_size", "max_length", "max_new_tokens"):
        if getattr(config, name) < 1:
            raise ModelError(f"{name} is {getattr(config, name)}: use at least 1")
    for name in ("lr", "max_gradient_norm", "beta"):
        if not getattr(config, name) > 0:
            raise ModelError(f"{name} is {getattr(config, name)}: use a number above 0")


def trained_parameters(*models: nn.Module) -> list[nn.Parameter]:
    """What gets gradients, each parameter once."""
    found = {id(p): p for model in models for p in model.parameters() if p.requires_grad}
    return list(found.values())


def build_optimizer(config: RealConfig, *models: nn.Module) -> torch.optim.Optimizer:
    """AdamW without weight decay; for PPO with its eps of 1e-5."""
    groups = [dict(params=trained_parameters(*models))]
    eps = 1e-5 if config.stage == "ppo" else 1e-8
    return adamw(groups, lr=config.lr, eps=eps, weight_decay=0.0)


def descend(optimizer: torch.optim.Optimizer, config: RealConfig, step: int) -> float:
    """Take one step along the gradients that have been added up; return their norm before."""
    set_rates(optimizer.param_groups, [config.lr], 1 - step / config.steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = nn.utils.clip_grad_norm_(parameters, config.max_gradient_norm)
    if not torch.isfinite(norm):
        raise ModelError(f"the gradient of step {step} is {norm.item()}: lower the rate")
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm.item()


def batches_from(n: int, config: RealConfig, first: int) -> Iterator[list[int]]:
    """The indices of each step's batch, from step `first` on, as if none had been left out."""
    generator = torch.Generator().manual_seed(config.seed)
    batches = epochs(n, min(config.batch_size, n), generator)
    return islice(batches, first, config.steps)


def sft_steps(
    model: LanguageModel, examples: list, config: RealConfig, pad: int,
    optimizer: torch.optim.Optimizer, first: int = 0,
) -> Iterator[dict[str, float]]:
    """Fine-tune in place; after each step, yield what that batch showed before it.

    examples: (tokens, labels) pairs. `loss` in nats per graded token; `graded`, how many.
    """
    batches = batches_from(len(examples), config, first)
    for step, rows in enumerate(batches, start=first):
        tokens, labels = collate([examples[i] for i in rows], pad)  # (B, T)
        tokens, labels = tokens.to(model.device), labels.to(model.device)
        loss = accumulate_gradients(model, tokens, labels, config.micro_batch_size)
        norm = descend(optimizer, config, step)
        yield dict(loss=float(loss), graded=count_graded(labels), gradient_norm=norm)


def parts(rows: list, size: int) -> Iterator[tuple[list, float]]:
    """Some rows at a time, and the share of all that they are."""
    for start in range(0, len(rows), size):
        some = rows[start : start + size]
        yield some, len(some) / len(rows)


def packed(pairs: list[Pair], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """`pack_pairs` on a device: tokens and mask (2B, T), the chosen answers first."""
    tokens, mask = pack_pairs(pairs, pad)
    return tokens.to(device), mask.to(device)


def reward_steps(
    model: ScoringModel, pairs: list[Pair], config: RealConfig, pad: int,
    optimizer: torch.optim.Optimizer, first: int = 0,
) -> Iterator[dict[str, float]]:
    """Train a scoring model in place; after each step, yield what that batch showed before it.

    `loss` in nats per pair, `accuracy` the share of pairs ranked right.
    """
    for step, rows in enumerate(batches_from(len(pairs), config, first), start=first):
        total, right = 0.0, 0
        for some, share in parts([pairs[i] for i in rows], config.micro_batch_size):
            tokens, mask = packed(some, pad, model.device)  # (2B, T)
            chosen, rejected = model(tokens, mask).chunk(2)  # (B,)
            loss = share * bradley_terry_loss(chosen, rejected, config.centring)
            loss.backward()
            total, right = total + loss.item(), right + int((chosen > rejected).sum())
        norm = descend(optimizer, config, step)
        yield dict(loss=total, accuracy=right / len(rows), gradient_norm=norm)


def dpo_steps(
    policy: LanguageModel, reference: nn.Module, pairs: list[Pair], config: RealConfig,
    pad: int, optimizer: torch.optim.Optimizer, first: int = 0,
) -> Iterator[dict[str, float]]:
    """Train a policy in place; after each step, yield what that batch showed before it.

    reference: the policy as it was; with adapters `lora.Reference`, the policy while they are
    off. `loss` in nats per pair, and the means of `dpo.pair_report`.
    """
    for step, rows in enumerate(batches_from(len(pairs), config, first), start=first):
        total, seen = 0.0, []
        for some, share in parts([pairs[i] for i in rows], config.micro_batch_size):
            tokens, mask = packed(some, pad, policy.device)  # (2B, T)
            with torch.no_grad():
                asked = get_response_log_probs(reference, tokens, mask).view(2, -1)  # (2, B)
            logprobs = get_response_log_probs(policy, tokens, mask).view(2, -1)  # (2, B)
            loss = share * dpo_loss(*logprobs, *asked, config.beta)
            loss.backward()
            total += loss.item()
            seen.append(torch.stack([logprobs.detach(), asked]))  # (2, 2, B)
        norm = descend(optimizer, config, step)
        report = pair_report(*torch.cat(seen, dim=-1), config.beta)
        yield dict(loss=total, **report, gradient_norm=norm)


@torch.no_grad()
def write_answers(
    policy: LanguageModel, prompts: list[list[int]], max_new_tokens: int, stop: int,
    generator: torch.Generator, temperature: float = 1.0,
) -> list[list[int]]:
    """Each prompt's answer as tokens, its end included, drawn from the whole distribution.

    generator: on the policy's device. Prompts are padded on the left, with positions to match.
    """
    tokens, mask = (rows.to(policy.device) for rows in left_pad(prompts))  # (B, T)
    alive, answers, cache = mask.new_ones(len(prompts)), [], None
    policy.inner.eval()  # checkpointing would do without the cache
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.size(1) :]
        with policy.precision():
            output = policy.inner(
                input_ids=tokens, attention_mask=mask.long(), position_ids=positions,
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
        cache = output.past_key_values
        token, _ = draw(output.logits[:, -1].float(), temperature, generator)  # (B,)
        answers.append((token, alive))
        alive = alive & (token != stop)
        if not alive.any():
            break
        tokens, mask = token[:, None], torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
    policy.inner.train()
    drawn, kept = (torch.stack(columns, dim=1) for columns in zip(*answers))  # (B, N)
    return [row[keep].tolist() for row, keep in zip(drawn, kept)]


@torch.no_grad()
def collect_rollout(
    models: Models, prompts: list[list[int]], config: PPOConfig, pad: int, stop: int,
    generator: torch.Generator, size: int,
) -> Rollout:
    """Let the policy answer, and ask all four models about its answers, `size` rows at a time.

    As `ppo.collect_rollout`, but that all log-probabilities come from one kind of pass: in low
    precision a cached step and a whole pass differ, and the first ratio would not be 1.
    """
    answers = write_answers(
        models.policy, prompts, config.max_new_tokens, stop, generator, config.temperature
    )
    device = models.policy.device
    tokens, mask = (rows.to(device) for rows in pack(prompts, answers, pad))  # (B, T)
    actions = mask[:, 1:]  # (B, A)

    def asked(model: nn.Module) -> Tensor:
        pieces = [token_logprobs(model(t), t, config.temperature) for t in tokens.split(size)]
        return torch.cat(pieces) * actions

    logprobs, reference_logprobs = asked(models.policy), asked(models.reference)
    values = torch.cat([models.value_model(t)[:, :-1] for t in tokens.split(size)]) * actions
    scores = [models.reward_model(t, m) for t, m in zip(tokens.split(size), mask.split(size))]
    ended = (tokens.eq(stop) & mask).any(-1)  # (B,)
    scores = torch.where(ended, torch.cat(scores), config.no_end_score)
    return Rollout(tokens, actions, logprobs, reference_logprobs, values, scores, ended)


def ppo_config(config: RealConfig) -> PPOConfig:
    """The settings of the book's PPO for a run on a real model."""
    return PPOConfig(
        iterations=config.steps, batch_size=config.batch_size, temperature=1.0,
        max_new_tokens=config.max_new_tokens, lr=config.lr, beta=config.beta, seed=config.seed,
        minibatches=-(-config.batch_size // config.micro_batch_size), epochs=1,
    )  # fmt: skip


def seeded(config: RealConfig, step: int, device: torch.device | str) -> torch.Generator:
    """A generator that depends on the run's seed and the step alone, so that none is stored."""
    return torch.Generator(device).manual_seed((config.seed * 1_000_003 + step) % 2**63)


@torch.no_grad()
def normalise(
    models: Models, prompts: list[list[int]], config: RealConfig, pad: int, stop: int
) -> None:
    """Bring the scores of the untrained policy's answers to mean 0 and deviation 1."""
    judge, some = models.reward_model, prompts[: 4 * config.batch_size]
    generator, scores = seeded(config, -1, models.policy.device), []
    for batch, _ in parts(some, config.batch_size):
        answers = write_answers(
            models.policy, batch, config.max_new_tokens, stop, generator
        )
        for rows, _ in parts(list(zip(batch, answers)), config.micro_batch_size):
            tokens, mask = (t.to(judge.device) for t in pack(*map(list, zip(*rows)), pad))
            scores.append(judge(tokens, mask))
    every = torch.cat(scores)
    # A model that says the same of all gives no unit
    unit = every.std(unbiased=False).item() or 1.0
    for model in (judge, models.value_model.model):
        model.shift, model.scale = every.mean().item(), unit


def ppo_steps(
    models: Models, prompts: list[list[int]], config: RealConfig, pad: int, stop: int,
    optimizer: torch.optim.Optimizer, first: int = 0, beta: float | None = None,
) -> Iterator[dict[str, float]]:
    """Train policy and value model in place; after each round, yield what happened in it.

    prompts: token ids. beta: the penalty's weight at step `first`, where it has been steered.
    Yields what `ppo.ppo_steps` yields, and `next_beta`.
    """
    settings = ppo_config(config)
    beta = config.beta if beta is None else beta
    for step, rows in enumerate(batches_from(len(prompts), config, first), start=first):
        set_rates(optimizer.param_groups, [config.lr], 1 - step / config.steps)
        batch, device = [prompts[i] for i in rows], models.policy.device
        # Roll out, judge, update
        rollout = collect_rollout(
            models, batch, settings, pad, stop,
            seeded(config, step, device), config.micro_batch_size,
        )  # fmt: skip
        with device:
            advantages, returns = estimate_advantages(rollout, settings, beta)
        shuffling = seeded(config, step, "cpu")
        noted = update(
            models, rollout, advantages, returns, optimizer, settings, beta, shuffling
        )
        kl = (rollout.logprobs - rollout.reference_logprobs).sum(-1).mean().item()
        report = dict(
            score=rollout.scores.mean().item(), kl=kl, beta=beta,
            length=rollout.actions.sum(-1).double().mean().item(),
            ended=rollout.ended.double().mean().item(), **noted,
        )  # fmt: skip
        if settings.kl_target:
            beta = next_beta(
                beta, kl, settings.kl_target, len(rows), settings.kl_horizon
            )
        yield report | dict(next_beta=beta)
