"""The four stages on a real model: the book's steps, which can be taken up again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from posttrain.batches import ALONE, Part, device_of, epochs, follow, turns
from posttrain.chat import IGNORE, collate
from posttrain.dpo import DPOConfig, pair_report, preference_loss
from posttrain.logprobs import pack, token_logprobs
from posttrain.optim import Descent, adamw, linear_fall
from posttrain.ppo import Models, PPOConfig, Rollout, ask_models, ppo_rounds
from posttrain.preference_pairs import Pair, pack_pairs
from posttrain.pretrain import random_batch
from posttrain.real.graded import graded_log_probs, graded_sft_loss
from posttrain.real.model import LanguageModel, ScoringModel
from posttrain.reward_model import RewardConfig, reward_batches, set_unit
from posttrain.sampling import draw, left_pad
from posttrain.settings import above_zero, at_least, one_of
from posttrain.sft import batch_graded, count_graded, rehearsed


@dataclass(frozen=True)
class RealConfig:
    """One run of any stage on a real model."""

    stage: str = "sft"  # or "reward", "dpo", "ppo"
    steps: int = 100  # optimiser steps; for PPO, rounds
    batch_size: int = 8  # conversations, pairs or answers per step
    # Of them per forward pass; their gradients add up. For PPO each is a step of the
    # optimiser
    micro_batch_size: int = 2
    lr: float = 2e-4  # AdamW's, falling in a straight line to 0
    max_length: int = 1024  # the longest row, in tokens
    max_gradient_norm: float = 1.0  # longer gradients are scaled down to it; not PPO's
    beta: float = 0.1  # "dpo" and "ppo": what a nat away from the reference counts
    nll_weight: float = 0.0  # "dpo" alone: of the chosen answers' own loss, per token
    label_smoothing: float = 0.0  # "dpo" alone: the share of labels taken to be wrong
    replay_length: int = 64  # "sft" alone: tokens of plain text beside each batch
    replay_weight: float = 0.3  # of their loss beside the conversations'
    centring: float = 0.01  # "reward" alone: weight of (r_chosen + r_rejected)^2
    # "ppo" alone: an answer that has not ended by then is cut
    max_new_tokens: int = 128
    temperature: float = 1.0  # "ppo" alone: at which answers are drawn
    seed: int = 0

    def __post_init__(self):
        one_of(self, stage=("sft", "reward", "dpo", "ppo"))
        at_least(self, steps=1, batch_size=1, micro_batch_size=1, max_length=1)
        at_least(self, max_new_tokens=1, centring=0, replay_length=1, replay_weight=0)
        at_least(self, nll_weight=0, label_smoothing=0)
        if self.label_smoothing >= 0.5:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}: use less than 0.5"
            )
        above_zero(self, "lr", "max_gradient_norm", "beta", "temperature")


@dataclass(frozen=True)
class Replay:
    """Plain text to rehearse: its tokens, 1-d, and those that a tokenizer puts before
    any text.
    """

    text: Tensor
    opening: list[int]

    def part(self, length: int, generator: torch.Generator, pad: int) -> Part:
        """The loss of a random excerpt of so many graded tokens."""
        (inputs,), (targets,) = random_batch(self.text, 1, length, generator)  # (T,)
        excerpt = [*inputs.tolist(), int(targets[-1])]
        labels = [IGNORE] * len(self.opening) + [IGNORE] + excerpt[1:]
        return talk_part([([*self.opening, *excerpt], labels)], length, pad)


def build_descent(config: RealConfig, *models: nn.Module) -> Descent:
    """AdamW without weight decay, for what gets gradients; for PPO with its eps of
    1e-5.
    """
    found = {
        id(p): p for model in models for p in model.parameters() if p.requires_grad
    }
    ppo = config.stage == "ppo"
    optimizer = adamw(
        [dict(params=list(found.values()))],
        lr=config.lr,
        eps=1e-5 if ppo else 1e-8,
        weight_decay=0.0,
    )
    norm = None if ppo else config.max_gradient_norm
    return Descent([optimizer], linear_fall(config.steps), norm)


def shared_settings(config: RealConfig, n: int) -> dict[str, int]:
    """What the configurations of SFT, the reward model and DPO have in common, for n
    rows.
    """
    return dict(
        steps=config.steps,
        batch_size=min(config.batch_size, n),
        micro_batch_size=config.micro_batch_size,
        seed=config.seed,
    )


def real_sft_steps(
    model: LanguageModel,
    examples: list,
    config: RealConfig,
    pad: int,
    descent: Descent,
    first: int = 0,
    replay: Replay | None = None,
) -> Iterator[dict[str, float]]:
    """`sft.sft_steps` from step `first` on, replay where there is any; with
    `gradient_norm`.
    """
    batches = real_sft_batches(examples, replay, config, pad)
    return follow(model, batches, descent, first=first)


def real_sft_batches(
    examples: list, replay: Replay | None, config: RealConfig, pad: int
) -> Iterator[list[Part]]:
    """The batches of `sft.sft_batches`, in parts, with one excerpt to replay."""
    generator = torch.Generator().manual_seed(config.seed)
    size = min(config.batch_size, len(examples))
    for rows in islice(epochs(len(examples), size, generator), config.steps):
        batch = [examples[i] for i in rows]
        n_graded = batch_graded(batch, ALONE)
        some = turns(batch, config.micro_batch_size)
        parts = [talk_part(each, n_graded, pad) for each, _ in some]
        if replay is not None:
            excerpt = replay.part(config.replay_length, generator, pad)
            parts.append(rehearsed(excerpt, config.replay_weight))
        yield parts


def talk_part(examples: list, n_graded: int, pad: int) -> Part:
    """`sft.conversation_part`, with logits where a token is graded alone."""

    def part(model: LanguageModel) -> tuple[Tensor, dict[str, float]]:
        tokens, labels = (rows.to(model.device) for rows in collate(examples, pad))
        loss = graded_sft_loss(model, tokens, labels, n_graded)
        return loss, dict(loss=loss.item(), graded=count_graded(labels))

    return part


def real_reward_steps(
    model: ScoringModel,
    pairs: list[Pair],
    config: RealConfig,
    pad: int,
    descent: Descent,
    first: int = 0,
) -> Iterator[dict[str, float]]:
    """`reward_model.reward_steps` on last tokens, from step `first` on; with
    `gradient_norm`.
    """
    shared = shared_settings(config, len(pairs))
    settings = RewardConfig(**shared, token_weight=0.0, centring=config.centring)
    return follow(model, reward_batches(pairs, settings, pad), descent, first=first)


def real_dpo_steps(
    policy: LanguageModel,
    reference: nn.Module,
    pairs: list[Pair],
    config: RealConfig,
    pad: int,
    descent: Descent,
    first: int = 0,
) -> Iterator[dict[str, float]]:
    """`dpo.dpo_steps`, from step `first` on; with `gradient_norm`.

    reference: the policy as it was; with adapters `lora.adapters.Reference`, the policy
    while they are off.
    """
    shared = shared_settings(config, len(pairs))
    brakes = dict(label_smoothing=config.label_smoothing, nll_weight=config.nll_weight)
    settings = DPOConfig(**shared, beta=config.beta, **brakes)
    batches = real_dpo_batches(reference, pairs, settings, pad)
    return follow(policy, batches, descent, first=first)


def real_dpo_batches(
    reference: nn.Module, pairs: list[Pair], config: DPOConfig, pad: int
) -> Iterator[list[Part]]:
    """The batches of `dpo.dpo_batches`, in parts; the reference is asked once a
    pair.
    """
    generator, known = torch.Generator().manual_seed(config.seed), {}
    batches = epochs(len(pairs), config.batch_size, generator)
    for batch in islice(batches, config.steps):
        parts = []
        for rows, share in turns(batch, config.micro_batch_size):
            new = [i for i in dict.fromkeys(rows) if i not in known]
            if new:
                with torch.no_grad():
                    said = pair_log_probs(reference, [pairs[i] for i in new], pad)
                known.update(zip(new, said.T))
            asked = torch.stack([known[i] for i in rows], dim=1)  # (2, B)
            parts.append(
                choice_part([pairs[i] for i in rows], share, asked, config, pad)
            )
        yield parts


def pair_log_probs(model: nn.Module, pairs: list[Pair], pad: int) -> Tensor:
    """As `dpo.pair_logprobs`, (2, B), with logits in the answers alone."""
    tokens, mask = (rows.to(device_of(model)) for rows in pack_pairs(pairs, pad))
    return graded_log_probs(model, tokens, mask).view(2, -1)  # (2, B)


def choice_part(
    pairs: list[Pair], share: float, asked: Tensor, config: DPOConfig, pad: int
) -> Part:
    """`dpo.pair_part`, with logits in the answers alone; asked: the reference's
    log-probabilities (2, B).
    """

    def part(policy: nn.Module) -> tuple[Tensor, dict[str, float]]:
        logprobs = pair_log_probs(policy, pairs, pad)  # (2, B)
        sides = zip(*((len(chosen), len(rejected)) for _, chosen, rejected in pairs))
        lengths = logprobs.new_tensor([*sides])  # (2, B)
        loss = preference_loss(logprobs, asked, lengths, config)
        surprise = -(logprobs[0] / lengths[0]).mean()
        noted = dict(loss=loss.item(), nll=surprise.item())
        noted |= pair_report(logprobs, asked, config.beta)
        return share * loss, {name: share * value for name, value in noted.items()}

    return part


@torch.no_grad()
def write_answers(
    policy: LanguageModel,
    prompts: list[list[int]],
    max_new_tokens: int,
    stop: int,
    generator: torch.Generator,
    temperature: float = 1.0,
) -> list[list[int]]:
    """Each prompt's answer as tokens, its end included, drawn from all tokens at a
    temperature.

    generator: on the policy's device. Prompts are padded on the left, with positions to
    match.
    """
    tokens, mask = (rows.to(policy.device) for rows in left_pad(prompts))  # (B, T)
    alive, answers, cache = mask.new_ones(len(prompts)), [], None
    policy.inner.eval()  # checkpointing would do without the cache
    for _ in range(max_new_tokens):
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -tokens.size(1) :]
        with policy.precision():
            output = policy.inner(
                input_ids=tokens,
                attention_mask=mask.long(),
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
            )
        cache = output.past_key_values
        logits = output.logits[:, -1].float()  # (B, V)
        token, _ = draw(logits, temperature, generator)  # (B,)
        answers.append((token, alive))
        alive = alive & (token != stop)
        if not alive.any():
            break
        tokens, mask = (
            token[:, None],
            torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1),
        )
    policy.inner.train()
    drawn, kept = (torch.stack(columns, dim=1) for columns in zip(*answers))  # (B, N)
    return [row[keep].tolist() for row, keep in zip(drawn, kept)]


@torch.no_grad()
def collect_real_rollout(
    models: Models,
    prompts: list[list[int]],
    config: PPOConfig,
    pad: int,
    stop: int,
    generator: torch.Generator,
    size: int,
) -> Rollout:
    """Let the policy answer, and ask all four models about its answers, `size` rows at
    a time.

    As `ppo.collect_rollout`, but that all log-probabilities come from one kind of pass:
    in low precision a cached step and a whole pass differ, and the first ratio would
    not be 1.
    """
    policy = models.policy
    longest, temperature = config.max_new_tokens, config.temperature
    answers = write_answers(policy, prompts, longest, stop, generator, temperature)
    tokens, mask = (
        rows.to(policy.device) for rows in pack(prompts, answers, pad)
    )  # (B, T)
    pieces = [
        token_logprobs(policy(t), t, config.temperature) for t in tokens.split(size)
    ]
    logprobs = torch.cat(pieces) * mask[:, 1:]  # (B, T-1)
    ended = (tokens.eq(stop) & mask).any(-1)  # (B,)
    return ask_models(models, tokens, mask, logprobs, ended, config, size)


def ppo_config(config: RealConfig, n: int) -> PPOConfig:
    """The settings of the book's PPO for a run on a real model, with n prompts."""
    return PPOConfig(
        iterations=config.steps,
        batch_size=min(config.batch_size, n),
        temperature=config.temperature,
        max_new_tokens=config.max_new_tokens,
        lr=config.lr,
        beta=config.beta,
        seed=config.seed,
        minibatches=-(-config.batch_size // config.micro_batch_size),
        epochs=1,
    )


def reseed(
    generator: torch.Generator, config: RealConfig, step: int
) -> torch.Generator:
    """Let a generator depend on the run's seed and the step alone, so that none is
    stored.
    """
    return generator.manual_seed((config.seed * 1_000_003 + step) % 2**63)


@torch.no_grad()
def normalise_scores(
    models: Models, prompts: list[list[int]], config: RealConfig, pad: int, stop: int
) -> None:
    """Set reward and value model's unit by the untrained policy's answers to some
    prompts.
    """
    asked, device, scores = prompts[: 4 * config.batch_size], models.policy.device, []
    generator = reseed(torch.Generator(device), config, -1)
    for batch, _ in turns(asked, config.batch_size):
        answers = write_answers(
            models.policy,
            batch,
            config.max_new_tokens,
            stop,
            generator,
            config.temperature,
        )
        for some, _ in turns(list(zip(batch, answers)), config.micro_batch_size):
            tokens, mask = (
                rows.to(device) for rows in pack(*map(list, zip(*some)), pad)
            )
            scores.append(models.reward_model(tokens, mask))
    set_unit(torch.cat(scores), models.reward_model, models.value_model.model)


def real_ppo_steps(
    models: Models,
    prompts: list[list[int]],
    config: RealConfig,
    pad: int,
    stop: int,
    descent: Descent,
    first: int = 0,
    beta: float | None = None,
) -> Iterator[dict[str, float]]:
    """`ppo.ppo_steps` from round `first` on.

    prompts: token ids. beta: the penalty's weight by then, where it has been steered.
    """
    settings, shuffling = ppo_config(config, len(prompts)), torch.Generator()
    drawing = torch.Generator(models.policy.device)

    def rollouts() -> Iterator[Rollout]:
        generator = torch.Generator().manual_seed(config.seed)
        batches = epochs(len(prompts), settings.batch_size, generator)
        for step, rows in islice(enumerate(batches), first, config.steps):
            batch, size = [prompts[i] for i in rows], config.micro_batch_size
            reseed(drawing, config, step)
            reseed(shuffling, config, step)
            yield collect_real_rollout(
                models, batch, settings, pad, stop, drawing, size
            )

    return ppo_rounds(
        models, rollouts(), settings, descent, shuffling, first=first, beta=beta
    )
