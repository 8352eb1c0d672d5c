"""Log-probabilities of responses, and how far two policies are apart: KL divergence."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def pack(
    prompts: list[list[int]], responses: list[list[int]], pad: int
) -> tuple[Tensor, Tensor]:
    """Prompts and responses as rows of one tensor: tokens (B, T), and mask (B, T).

    Rows are padded on the right, where no real token looks, so a row's numbers do not
    depend on its neighbours. The mask is True on the response's tokens, its <|end|>
    included. Raises ValueError for an empty prompt or response, naming its row.
    """
    for name, rows in (("prompt", prompts), ("response", responses)):
        empty = [i for i, row in enumerate(rows) if len(row) == 0]
        if empty:
            raise ValueError(f"{name} {empty[0]} is empty: it needs at least one token")
    T = max(len(p) + len(r) for p, r in zip(prompts, responses))
    tokens = torch.full((len(prompts), T), pad)  # (B, T)
    mask = torch.zeros(len(prompts), T, dtype=torch.bool)  # (B, T)
    for row, (prompt, response) in enumerate(zip(prompts, responses)):
        end = len(prompt) + len(response)
        tokens[row, :end] = torch.tensor([*prompt, *response])
        mask[row, len(prompt) : end] = True
    return tokens, mask


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float = 1.0) -> Tensor:
    """Log-probability of each token but the first, given those before it: (B, T - 1),
    in nats.

    logits: (B, T, V), of tokens (B, T). temperature: the one the tokens were drawn at.
    """
    logprobs = (logits[:, :-1] / temperature).log_softmax(-1)  # (B, T - 1, V)
    return logprobs.gather(-1, tokens[:, 1:, None]).squeeze(-1)  # (B, T - 1)


def get_response_log_probs(
    model: nn.Module, tokens: Tensor, mask: Tensor, temperature: float = 1.0
) -> Tensor:
    """The log-probability of each response, given its prompt, in nats: (B,).

    The sum over its tokens. tokens and mask (B, T) as from `pack`: the response's
    <|end|> counts, the prompt and the padding do not. A sum and no mean: it is the
    logarithm of a probability.
    """
    logprobs = token_logprobs(model(tokens), tokens, temperature)  # (B, T - 1)
    return logprobs.masked_fill(~mask[:, 1:], 0.0).sum(-1)  # (B,)


def entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy of each next-token distribution, in nats: logits (..., V) to (...)."""
    logprobs = (logits / temperature).log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of values where the mask is True. Raises ValueError where it is True
    nowhere.
    """
    if not mask.any():
        raise ValueError(
            "the mask is False everywhere: there is nothing to take the mean of"
        )
    return values[mask].mean()


def kl_estimate(
    logprobs: Tensor, reference_logprobs: Tensor, kind: str = "k1"
) -> Tensor:
    """Estimate KL(policy || reference) at each token drawn from the policy, in nats.

    With d = log policy - log reference: k1 is d, k2 is d ** 2 / 2, k3 is exp(-d) - 1 +
    d. The means of k1 and k3 are the KL divergence, where the two are close k3's with
    less noise, and there k2's is nearly that (Schulman 2020, "Approximating KL
    divergence").
    """
    d = logprobs - reference_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d.square()
    if kind == "k3":
        # Keep the digits that exp(-d) - 1 would lose where d is near 0
        return torch.expm1(-d) + d
    raise ValueError(f"{kind!r} is no KL estimator: use 'k1', 'k2' or 'k3'")


@torch.no_grad()
def sequence_kl(
    policy: nn.Module,
    reference: nn.Module,
    tokens: Tensor,
    mask: Tensor,
    temperature: float = 1.0,
) -> Tensor:
    """KL(policy || reference) of each response, in nats: (B,), the sum over its tokens.

    At each token of a response drawn from the policy, the two next-token distributions
    are compared whole, which takes the chance of the single token out of the estimate.
    tokens and mask (B, T) as from `pack`; temperature as the responses were drawn.
    """
    p, q = (
        (model(tokens)[:, :-1] / temperature).log_softmax(-1)
        for model in (policy, reference)
    )  # (B, T - 1, V)
    divergence = (p.exp() * (p - q)).sum(-1)  # (B, T - 1)
    return (divergence * mask[:, 1:]).sum(-1)  # (B,)
