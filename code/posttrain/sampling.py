"""Sampling: continue many prompts at once, one token at a time, with a KV cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.gpt import GPT, KVCache


@dataclass(frozen=True)
class Samples:
    """What `generate` returns: N new tokens for each of B prompts.

    tokens (B, N) int64; mask (B, N), True up to and including the stop token; logprobs
    (B, N), log-probability of each token under the distribution it was drawn from, in
    nats, 0 where the mask is False.
    """

    tokens: Tensor
    mask: Tensor
    logprobs: Tensor

    def responses(self) -> list[list[int]]:
        """Each prompt's new tokens, stop token included, as lists of their true
        lengths.
        """
        return [row[kept].tolist() for row, kept in zip(self.tokens, self.mask)]


def left_pad(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Stack prompts so that all end in the last column: tokens (B, T), and mask (B, T).

    The mask is False on the padding.
    """
    if not prompts or not all(len(prompt) for prompt in prompts):
        raise ValueError(
            "an empty prompt leaves nothing to continue: give each prompt at least "
            "one token"
        )
    width = max(len(prompt) for prompt in prompts)
    tokens = torch.tensor(
        [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    )  # (B, T)
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    return tokens, torch.arange(width) >= width - lengths[:, None]


def visible(mask: Tensor) -> Tensor:
    """Which token may look at which: (B, 1, T, T).

    True for a real token at or before it, and always for itself.
    """
    T = mask.size(1)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    allowed = causal & (mask[:, None, :] | torch.eye(T, dtype=torch.bool))  # (B, T, T)
    return allowed[:, None]


def draw(
    logits: Tensor, temperature: float, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Draw one token per row of logits (B, V): tokens (B,) and their log-probabilities
    (B,).

    Temperature 0 takes the likeliest token, and reports its log-probability at
    temperature 1.
    """
    logprobs = (logits / (temperature or 1.0)).log_softmax(-1)  # (B, V)
    if temperature == 0:
        tokens = logprobs.argmax(-1)  # (B,)
    else:
        # Race exponential clocks of rates p: the first to ring is a draw from p
        clocks = torch.empty_like(logprobs).exponential_(generator=generator).log_()
        tokens = (logprobs - clocks).argmax(-1)  # (B,)
    return tokens, logprobs.gather(-1, tokens[:, None]).squeeze(-1)


def check_request(prompt: int, new: int, context: int, temperature: float) -> None:
    """Raise ValueError for what `generate` cannot do; prompt, new and context are in
    tokens.
    """
    if temperature < 0:
        raise ValueError(
            f"temperature {temperature} is negative: use 0 for the likeliest token, "
            "1 for the model's own odds"
        )
    if new < 1:
        raise ValueError(f"{new} new tokens were asked for: ask for at least one")
    # Count one more than the context: the last token drawn is never read
    if prompt + new > context + 1:
        raise ValueError(
            f"a prompt of {prompt} tokens and {new} new ones do not fit into the "
            "context of "
            f"{context}: shorten the prompt or ask for fewer tokens"
        )


@torch.no_grad()
def sample_steps(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    stop: int | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield, step by step, one more token of every row: tokens, log-probs, alive, all
    (B,).

    alive is False for a row that has drawn its `stop` token before; the steps end when
    all have. Arguments and errors as in `generate`.
    """
    tokens, mask = left_pad(prompts)
    (B, T), length = tokens.shape, tokens.size(1) + max_new_tokens
    check_request(T, max_new_tokens, model.config.context, temperature)
    # Work out once where each token stands and which columns hold padding
    padded = not bool(mask.all())
    mask = torch.cat([mask, mask.new_ones(B, max_new_tokens)], dim=1)  # (B, T + N)
    positions = (mask.cumsum(1) - 1).clamp_min(0)  # (B, T + N)
    # Read the prompts
    cache = KVCache(model.config, B, length, model.head.weight.dtype)
    allowed = visible(mask[:, :T]) if padded else None
    logits = model(tokens, positions[:, :T], allowed, cache)[:, -1]  # (B, V)
    alive = torch.ones(B, dtype=torch.bool)
    rows = torch.arange(B)  # those still read: R of them
    for t in range(T, length):
        # Draw a token for every row
        token, logprob = draw(logits, temperature, generator)
        yield token, logprob, alive
        alive = alive & (token != stop) if stop is not None else alive
        if t == length - 1 or not alive.any():
            break
        # Drop the rows that have ended, once they are half of those still read
        kept = alive[rows]  # (R,)
        if kept.sum() <= len(rows) / 2:
            rows = rows[kept]
            cache.keep(kept)
        # Read the token, looking back through the cache, for the next logits
        allowed = mask[rows, None, None, : t + 1] if padded else None
        read = model(token[rows, None], positions[rows, t : t + 1], allowed, cache)[
            :, -1
        ]
        logits = logits.index_copy(
            0, rows, read
        )  # (B, V), old ones for rows that have ended


def generate(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    generator: torch.Generator | None = None,
    temperature: float = 1.0,
    stop: int | None = None,
) -> Samples:
    """Continue every prompt by up to max_new_tokens tokens, ending a row at its `stop`
    token.

    Randomness comes from `generator` alone. Nothing is cut from the distribution (no
    top-k, no top-p). Raises ValueError for an empty prompt, a negative temperature, or
    what does not fit into the context.
    """
    steps = sample_steps(
        model,
        prompts,
        max_new_tokens,
        generator=generator,
        temperature=temperature,
        stop=stop,
    )
    tokens, logprobs, alive = (
        torch.stack(rows, dim=1) for rows in zip(*steps)
    )  # (B, N) each
    return Samples(tokens, alive, logprobs * alive)
