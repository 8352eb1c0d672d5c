"""Chapter 2's view: a conversation's tokens, what is graded, each one's surprise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from posttrain.show.interactive import Interactive
from posttrain.show.tokens import TokenView

if TYPE_CHECKING:
    from posttrain.gpt import GPT


def mask_view(
    conversations: Mapping[str, Sequence[dict]], models: Mapping[str, GPT]
) -> Interactive:
    """A view to walk along tokens: conversations by kind, models to be surprised."""
    examples = [
        example(f"{kind}: {row['messages'][0]['content']}", row["messages"], models)
        for kind, rows in conversations.items()
        for row in rows
    ]
    still = TokenView(examples[0]["tokens"], examples[0]["labels"])
    return Interactive("mask", still, examples=examples)


def example(name: str, messages: list[dict], models: Mapping[str, GPT]) -> dict:
    """A conversation's tokens, ids, labels and, by model, surprise in nats."""
    # PyTorch takes a second to import
    from posttrain.chat import build_labels, render
    from posttrain.tokenizer import CharTokenizer

    tokenizer = CharTokenizer()
    ids = render(messages, tokenizer)
    return dict(
        name=name,
        tokens=[tokenizer.tokens[token] for token in ids],
        ids=ids,
        labels=build_labels(ids, tokenizer),
        surprise={label: surprise(model, ids) for label, model in models.items()},
    )


def surprise(model: GPT, ids: list[int]) -> list[float | None]:
    """How surprising each token is, in nats; the first has nothing before it."""
    import torch

    from posttrain.logprobs import token_logprobs

    row = torch.tensor([ids])  # (1, T)
    with torch.no_grad():
        logprobs = token_logprobs(model(row), row)[0]  # (T - 1,)
    return [None, *(round(-value, 3) for value in logprobs.tolist())]
