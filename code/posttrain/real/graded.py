"""Logits where a token is graded, and nowhere else: the same losses, for less."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.chat import IGNORE
from posttrain.logprobs import get_response_log_probs
from posttrain.sft import sft_loss


def graded_columns(graded: Tensor) -> tuple[Tensor, Tensor]:
    """The columns that a loss reads, in order, and which of them are graded: (B, K).

    graded: (B, T), True where a token is graded. Read are the token's own column, and
    the one before it, where it is foretold; so in the shorter row, too, a graded token
    stands behind the one that it stood behind. K is the largest row's number, at least
    1. Shorter rows are filled up on the right with columns that grade nothing. The
    first token has nothing before it: it is never graded.
    """
    graded = F.pad(graded[:, 1:], (1, 0))  # (B, T)
    kept = graded | F.pad(graded[:, 1:], (0, 1))  # (B, T)
    K = max(1, int(kept.sum(-1).max()))
    # Bring what is kept to the left, and leave its order
    columns = kept.int().argsort(dim=-1, descending=True, stable=True)[:, :K]  # (B, K)
    return columns, graded.gather(1, columns)


@contextmanager
def head_reads(inner: nn.Module, columns: Tensor, length: int) -> Iterator[list]:
    """Within it, a model's head is given the hidden states of some columns alone.

    inner: a causal language model of transformers. columns: (B, K), of rows of `length`
    tokens. The list that it gives has an entry as soon as the head was given less;
    where the model has no head to find, or gives it another shape, it stays empty.
    """
    head, asked = inner.get_output_embeddings(), []

    def choose(module: nn.Module, inputs: tuple) -> tuple | None:
        hidden = inputs[0] if inputs else None  # (B, T, C)
        if hidden is None or hidden.shape[:-1] != (len(columns), length):
            return None
        asked.append(True)
        return torch.take_along_dim(hidden, columns[..., None], 1), *inputs[1:]

    hook = None if head is None else head.register_forward_pre_hook(choose)
    try:
        yield asked
    finally:
        if hook is not None:
            hook.remove()


def logits_at(inner: nn.Module, tokens: Tensor, columns: Tensor) -> Tensor:
    """A model's logits at columns (B, K) of tokens (B, T): (B, K, V).

    The whole row goes through the blocks, and those columns through the head, and
    through all that a model does behind it, such as capping or scaling its logits.
    """
    with head_reads(inner, columns, tokens.size(1)) as asked:
        logits = inner(input_ids=tokens, use_cache=False).logits  # (B, K or T, V)
    return logits if asked else torch.take_along_dim(logits, columns[..., None], 1)


def graded_sft_loss(
    model: nn.Module, tokens: Tensor, labels: Tensor, n_graded: int
) -> Tensor:
    """`sft.sft_loss` of a real model's logits, computed where they are needed.

    tokens, labels: (B, T). n_graded: as there.
    """
    columns, graded = graded_columns(labels != IGNORE)  # (B, K)
    targets = labels.gather(1, columns).masked_fill(~graded, IGNORE)  # (B, K)
    return sft_loss(model(tokens, columns), targets, n_graded)


def graded_log_probs(model: nn.Module, tokens: Tensor, mask: Tensor) -> Tensor:
    """`logprobs.get_response_log_probs` of a real model: (B,), in nats.

    tokens and mask (B, T) as from `pack`.
    """
    columns, graded = graded_columns(mask)  # (B, K)

    def at_columns(kept: Tensor) -> Tensor:
        return model(tokens, columns)  # (B, K, V)

    return get_response_log_probs(at_columns, tokens.gather(1, columns), graded)
