"""What fine-tuning draws: a conversation's tokens and their surprise, forgetting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from posttrain.show.charts import curves
from posttrain.show.figures import GREY
from posttrain.show.interactive import Interactive
from posttrain.show.tokens import TokenView

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from posttrain.gpt import GPT
    from posttrain.show.runs import Runs


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


def forgetting(groups: Mapping[str, Runs]) -> Figure:
    """The loss on Shakespeare from before the first step on, a line per run.

    groups: label to runs as `sft_trial` returns them; the first have SFT's colour, all
    others are grey. A line begins at its run's `base_loss`; the mean of them is dotted.
    Losses in nats per character.
    """
    lines, starts = {}, []
    for label, runs in groups.items():
        lines[label] = [
            ([0, *run["step"]], [run["base_loss"], *run["shakespeare_loss"]])
            for run in runs
        ]
        starts += runs["base_loss"].values
    panels = {
        "loss on Shakespeare (nats per character)": lines
        | {"base model": sum(starts) / len(starts)}
    }
    colours = dict(zip(groups, ["SFT"] + [GREY] * (len(groups) - 1)))
    return curves(panels, x="step of fine-tuning", colours=colours)
