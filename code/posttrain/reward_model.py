"""Reward modelling: a transformer that scores answers, learned from pairs of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.batches import Part, device_of, epochs, follow, turns
from posttrain.chat import render_question
from posttrain.gpt import GPT
from posttrain.logprobs import masked_mean, pack
from posttrain.optim import Descent, adamw, linear_fall
from posttrain.preference_pairs import Pair, encode_pairs, encode_response, pack_pairs
from posttrain.sampling import generate
from posttrain.settings import at_least
from posttrain.tokenizer import CharTokenizer

HEAD_STD = 1e-3  # of the head's first weights


@dataclass(frozen=True)
class RewardConfig:
    """One run of reward modelling."""

    steps: int = 40  # optimiser steps
    batch_size: int = 18  # pairs per step
    micro_batch_size: int = 18  # pairs per forward pass; their gradients add up
    lr: float = 1e-3  # AdamW's, falling in a straight line to 0
    # Of the comparison token by token; 0 for the last tokens alone
    token_weight: float = 4.0
    centring: float = 0.01  # weight of (r_chosen + r_rejected)^2; 0 for none
    seed: int = 0

    def __post_init__(self):
        at_least(self, steps=1, batch_size=1, micro_batch_size=1)
        at_least(self, lr=0, token_weight=0, centring=0)


class RewardModel(nn.Module):
    """A language model's transformer with one number per token instead of logits.

    The number at a response's last token is its score. `shift` and `scale` fix the
    scores' zero and unit (`normalise`).
    """

    def __init__(self, body: GPT, generator: torch.Generator | None = None):
        super().__init__()
        self.body = copy.deepcopy(body)
        self.body.head = None  # the logits are gone
        width = body.config.width
        self.head = nn.Linear(width, 1)
        # Start near 0, so that the first steps outweigh the random direction
        nn.init.normal_(self.head.weight, std=HEAD_STD, generator=generator)
        nn.init.zeros_(self.head.bias)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.to(body.embedding.weight.dtype)

    def token_scores(self, tokens: Tensor) -> Tensor:
        """The head's number at each token: tokens (B, T) to (B, T)."""
        raw = self.head(self.body.hidden(tokens)).squeeze(-1)  # (B, T)
        return (raw - self.shift) / self.scale

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The score (B,) of each response: read at its last token.

        tokens and mask (B, T) as from `pack`: the mask is True on the response.
        """
        return last_of(self.token_scores(tokens), mask)  # (B,)


def last_of(values: Tensor, mask: Tensor) -> Tensor:
    """Each row's value where its mask is True for the last time: (B, T) to (B,)."""
    positions = torch.arange(mask.size(1), device=mask.device).expand_as(mask)  # (B, T)
    last = positions.masked_fill(~mask, -1).amax(-1, keepdim=True)  # (B, 1)
    if (last < 0).any():
        raise ValueError("a row's mask is False everywhere: it has no response to read")
    return values.gather(1, last).squeeze(1)  # (B,)


def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, centring: float = 0.0
) -> Tensor:
    """Mean surprise at the preferences: -log sigmoid(chosen - rejected), in nats.

    chosen, rejected: scores (B,) of the two answers of each pair. centring adds the
    mean of centring * (chosen + rejected) ** 2, which fixes where zero is. Sources:
    Bradley & Terry 1952; Ouyang et al. 2022, equation 1; for the centring Eisenstein et
    al. 2023, section 2. Raises ValueError for a score that is not a number.
    """
    if not (torch.isfinite(chosen).all() and torch.isfinite(rejected).all()):
        raise ValueError("a score is NaN or infinite: lower the learning rate")
    # Take logsigmoid, which keeps its digits where sigmoid rounds to 0 or 1
    loss = -F.logsigmoid(chosen - rejected).mean()
    return loss + centring * (chosen + rejected).square().mean()


def after_parting(tokens: Tensor, mask: Tensor) -> Tensor:
    """Where both answers of a pair go on after they have parted: (2B, T) to (B, T)."""
    a, b = tokens.chunk(2)
    both = mask.chunk(2)[0] & mask.chunk(2)[1]  # (B, T)
    return both & ((a != b).cumsum(1) > 0)  # (B, T)


def token_level_loss(
    scores: Tensor, tokens: Tensor, mask: Tensor, n: int | None = None
) -> Tensor:
    """Bradley-Terry at every token from where the two answers part, in nats.

    scores, tokens, mask: (2B, T), the chosen answers above the rejected ones. An answer
    that is worse in the end should look worse on the way there: the model has to carry
    what it has seen along, and cannot live on the last word alone. n: the tokens of the
    whole batch, where these are only a part of it. Source: the reward model of
    DeepSpeed-Chat (Yao et al. 2023); Cobbe et al. 2021, section 4.2, for verifiers.
    """
    chosen, rejected = scores.chunk(2)  # (B, T)
    compared = after_parting(tokens, mask)  # (B, T)
    if n is None:
        return -masked_mean(F.logsigmoid(chosen - rejected), compared)
    return -F.logsigmoid(chosen - rejected)[compared].sum() / n


def score_pairs(
    model: RewardModel, pairs: list[Pair], pad: int
) -> tuple[Tensor, Tensor]:
    """The scores (B,) of the chosen and of the rejected answers, from one forward
    pass.
    """
    return model(*pack_pairs(pairs, pad)).chunk(2)


@torch.no_grad()
def pair_accuracy(model: RewardModel, pairs: list[Pair], pad: int) -> float:
    """The share of pairs whose chosen answer has the higher score."""
    chosen, rejected = score_pairs(model, pairs, pad)
    return (chosen > rejected).double().mean().item()


def comparison_part(
    pairs: list[Pair], share: float, n_compared: int, config: RewardConfig, pad: int
) -> Part:
    """The loss of a batch's part, and as `accuracy` the share of pairs that are ranked
    right.
    """

    def part(model: RewardModel) -> tuple[Tensor, dict[str, float]]:
        tokens, mask = (rows.to(device_of(model)) for rows in pack_pairs(pairs, pad))
        # Raise the chosen answers' scores over the rejected ones'
        scores = model.token_scores(tokens)  # (2B, T)
        chosen, rejected = last_of(scores, mask).chunk(2)  # (B,)
        loss = share * bradley_terry_loss(chosen, rejected, config.centring)
        if config.token_weight:
            by_token = token_level_loss(scores, tokens, mask, n_compared)
            loss = loss + config.token_weight * by_token
        right = (chosen > rejected).double().mean().item()
        return loss, dict(loss=loss.item(), accuracy=share * right)

    return part


def reward_batches(
    pairs: list[Pair], config: RewardConfig, pad: int
) -> Iterator[list[Part]]:
    """Each step's pairs, in parts."""
    generator = torch.Generator().manual_seed(config.seed)
    batches = epochs(len(pairs), min(config.batch_size, len(pairs)), generator)
    for _ in range(config.steps):
        batch = [pairs[i] for i in next(batches)]
        n_compared = int(after_parting(*pack_pairs(batch, pad)).sum())
        yield [
            comparison_part(some, share, n_compared, config, pad)
            for some, share in turns(batch, config.micro_batch_size)
        ]


def reward_steps(
    model: RewardModel, pairs: list[Pair], config: RewardConfig, pad: int
) -> Iterator[dict[str, float]]:
    """Train the model in place; after each step, yield what that batch showed before
    it.

    Yields `loss`, in nats per pair, and `accuracy`, the share of pairs that are ranked
    right. Raises ValueError where a score is not a number.
    """
    parameters = dict(params=list(model.parameters()))
    optimizer = adamw([parameters], lr=config.lr, weight_decay=0.0)
    descent = Descent([optimizer], linear_fall(config.steps))
    return follow(model, reward_batches(pairs, config, pad), descent)


def train_reward_model(
    body: GPT,
    pairs: list[dict],
    config: RewardConfig,
    progress: Callable = lambda steps, total: steps,
) -> tuple[RewardModel, dict]:
    """Train a reward model that starts as a copy of a language model; return it, its
    history.

    The history has the lists `train` (each step's loss, in nats per pair) and the
    numbers `train_accuracy` and `seconds` (of training).
    """
    tokenizer, started = CharTokenizer(), time.perf_counter()
    encoded = encode_pairs(pairs, tokenizer, body.config.context)
    model = RewardModel(body, torch.Generator().manual_seed(config.seed))
    steps = reward_steps(model, encoded, config, tokenizer.pad)
    losses = [noted["loss"] for noted in progress(steps, total=config.steps)]
    seconds = time.perf_counter() - started
    accuracy = pair_accuracy(model, encoded, tokenizer.pad)
    return model, dict(train=losses, train_accuracy=accuracy, seconds=seconds)


@torch.no_grad()
def normalise(model: RewardModel, tokens: Tensor, mask: Tensor) -> None:
    """Set the scores' zero and unit so that these responses have mean 0 and deviation
    1.

    tokens and mask (B, T) as from `pack`: answers of the policy that PPO will start
    from (Ziegler et al. 2019, section 2.1). Raises as `set_unit` does.
    """
    set_unit(model(tokens, mask), model)


def set_unit(scores: Tensor, *models: nn.Module) -> None:
    """Move the models' zero and unit by what brings these scores to mean 0 and
    deviation 1.

    scores (B,). Raises ValueError where all are the same, and for one that is not a
    number.
    """
    if not torch.isfinite(scores).all():
        raise ValueError(
            "a response's score is NaN or infinite: there is no unit to set"
        )
    if (scores == scores[0]).all():
        raise ValueError("all responses have the same score: there is no unit to set")
    mean, unit = scores.mean().item(), scores.std().item()
    for model in models:
        model.shift = model.shift + mean * model.scale
        model.scale = model.scale * unit


@torch.no_grad()
def score_answer(model: RewardModel, prompt: str, response: str) -> float:
    """The score of one answer to one prompt, both as text.

    Raises ValueError for an empty response, and for texts that do not fit into the
    context.
    """
    tokenizer, context = CharTokenizer(), model.body.config.context
    asked = render_question(prompt, tokenizer)
    if not response:
        raise ValueError("the response is empty: give at least one character")
    answer = encode_response(response, tokenizer)
    if len(asked) + len(answer) > context:
        raise ValueError(
            f"prompt and response have {len(asked) + len(answer)} tokens together and "
            "the "
            f"context {context}: shorten them"
        )
    return model(*pack([asked], [answer], tokenizer.pad)).item()


def sample_answers(
    model: GPT, prompts: list[str], seed: int, temperature: float = 0.8
) -> tuple[list[list[int]], list[list[int]]]:
    """A model's answers to prompts: token ids of the prompts in chat format, of the
    answers.
    """
    tokenizer, generator = CharTokenizer(), torch.Generator().manual_seed(seed)
    asked = [render_question(text, tokenizer) for text in prompts]
    samples = generate(
        model,
        asked,
        96,
        generator=generator,
        temperature=temperature,
        stop=tokenizer.end,
    )
    return asked, samples.responses()
