"""What `python -m posttrain train` shows when it is done: answers before and after, how
far the model has gone, how many pairs it ranks right, and what looks wrong.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from posttrain.chat import ask
from posttrain.data import datasets
from posttrain.data.datasets import TrainingData
from posttrain.dpo import pair_logprobs, pair_report
from posttrain.evaluate import answered
from posttrain.gpt import GPT
from posttrain.logprobs import pack, sequence_kl
from posttrain.preference_pairs import encode_pairs
from posttrain.reward_model import RewardModel, pair_accuracy, sample_answers
from posttrain.tokenizer import CharTokenizer

TEMPERATURE, MAX_NEW_TOKENS = 0.8, 96
FAR, HIGH, FEW = 30.0, 10.0, 0.6  # nats per answer, deviations, a share


def said(model: GPT, prompts: list[str]) -> list[str]:
    """A model's answers, at the book's temperature, with seed 0."""
    draw = torch.Generator().manual_seed(0)
    return ask(
        model,
        prompts,
        generator=draw,
        temperature=TEMPERATURE,
        max_new_tokens=MAX_NEW_TOKENS,
    )


def policy_report(
    stage: str, policy: GPT, before: GPT, history: dict, prompts: list[str]
) -> Iterator[str]:
    """Lines about a model that talks, and the one that it started from.

    before: the SFT model, or the base model where SFT is reported on, which knows no
    chat format. prompts: what to ask; answers to the first three are shown.
    """
    old, new = said(before, prompts), said(policy, prompts)
    for prompt, one, other in list(zip(prompts, old, new))[:3]:
        yield f"  {prompt}\n    before: {one!r}\n    after:  {other!r}"
    ended = sum(map(answered, new)) / len(new)
    line = f"{ended:.0%} of {len(new)} answers come to their end"
    if stage in ("ppo", "dpo"):
        asked, answers = sample_answers(policy, prompts, seed=0)
        rows = pack(asked, answers, CharTokenizer().pad)
        kl = sequence_kl(policy, before, *rows, TEMPERATURE).mean().item()
        line += f"; KL to the SFT model {kl:.1f} nats per answer"
        if kl > FAR:
            yield warning(f"{kl:.0f} nats are far: read the answers", "smaller steps")
    yield line + "."
    if ended < FEW:
        yield warning("few answers end", "fewer steps, or a lower rate")
    if stage == "ppo" and abs(history["rounds"][-1]["score"]) > HIGH:
        yield warning(
            f"the score is beyond {HIGH:g} deviations: an accident of the reward model",
            "a KL penalty (beta, kl_target), or better pairs",
        )


def dpo_ranking(
    policy: GPT, reference: GPT, data: TrainingData, beta: float
) -> Iterator[str]:
    """Lines about the pairs that DPO's policy ranks right, its own and held-out."""
    pad, context = CharTokenizer().pad, policy.config.context
    shares = {}
    for name, rows in pairs_of(data).items():
        pairs = encode_pairs(rows, CharTokenizer(), context)
        logprobs = [pair_logprobs(each, pairs, pad) for each in (policy, reference)]
        shares[name] = pair_report(*logprobs, beta)["accuracy"]
    yield from ranking(shares)


def reward_ranking(model: RewardModel, data: TrainingData) -> Iterator[str]:
    """Lines about the pairs that a reward model ranks right."""
    tokenizer, context = CharTokenizer(), model.body.config.context
    yield from ranking(
        {
            name: pair_accuracy(
                model, encode_pairs(rows, tokenizer, context), tokenizer.pad
            )
            for name, rows in pairs_of(data).items()
        }
    )


def pairs_of(data: TrainingData) -> dict[str, list[dict]]:
    """The pairs that were trained on, and the book's held-out ones."""
    held = datasets.heldout_preferences()
    return {"its own pairs": data.pairs, f"the book's {len(held)} held-out pairs": held}


def ranking(shares: dict[str, float]) -> Iterator[str]:
    """Ranked right, of each kind of pairs; the first kind are those trained on."""
    told = ", ".join(f"{share:.0%} of {name}" for name, share in shares.items())
    yield f"Ranked right: {told}."
    if next(iter(shares.values())) < FEW:
        yield warning("the pairs taught next to nothing", "more steps, or other pairs")


def warning(what: str, way_out: str) -> str:
    """A line that says what looks wrong, and what to try."""
    return f"Look at this: {what}. Try {way_out}."
