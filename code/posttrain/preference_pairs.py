"""Preference pairs as token ids: encoded, cut to the context, and packed for one
forward pass.
"""

from __future__ import annotations

import logging

from torch import Tensor

from posttrain.chat import render_question
from posttrain.logprobs import pack
from posttrain.tokenizer import CharTokenizer

log = logging.getLogger("posttrain")

Pair = tuple[list[int], list[int], list[int]]  # token ids: prompt, chosen, rejected


def encode_response(text: str, tokenizer: CharTokenizer) -> list[int]:
    """A written answer's token ids with <|end|>: in training and in use the same.

    Texts that lack their end, such as a broken-off answer, get it too: a score is asked
    for what is there. (A sampled answer that was cut has none, and is read at its last
    token.)
    """
    return [*tokenizer.encode(text), tokenizer.end]


def encode_pairs(
    pairs: list[dict], tokenizer: CharTokenizer, context: int
) -> list[Pair]:
    """The token ids of each pair, answers cut to what fits into the context.

    Pairs whose answers are the same after the cut are dropped, with a warning. Raises
    ValueError for a prompt that leaves no room for an answer, and where no pair is
    left.
    """
    encoded = []
    for pair in pairs:
        prompt = render_question(pair["prompt"], tokenizer)
        room = context - len(prompt)
        if room < 1:
            raise ValueError(
                f"the prompt of pair {pair['id']} has {len(prompt)} tokens and the "
                "context "
                f"{context}: shorten it"
            )
        chosen, rejected = (
            encode_response(pair[side], tokenizer)[:room]
            for side in ("chosen", "rejected")
        )
        if chosen == rejected:
            log.warning("pair %s is left out: its answers are the same", pair["id"])
            continue
        encoded.append((prompt, chosen, rejected))
    if not encoded:
        raise ValueError("there are no pairs to compare: give at least one")
    return encoded


def pack_pairs(pairs: list[Pair], pad: int) -> tuple[Tensor, Tensor]:
    """All chosen answers, then all rejected ones, after their prompts: tokens, mask
    (2B, T).
    """
    prompts = [prompt for prompt, _, _ in pairs]
    responses = [chosen for _, chosen, _ in pairs] + [
        rejected for _, _, rejected in pairs
    ]
    return pack(prompts * 2, responses, pad)
