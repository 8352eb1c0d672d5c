"""Several processes on trial: the book's SFT and DPO by each engine, against one
process.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch

from posttrain.chat import grow_vocabulary, render_question
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.dpo import DPOConfig, dpo_steps
from posttrain.gpt import GPT
from posttrain.preference_pairs import encode_pairs
from posttrain.scale.distributed import (
    ENGINES,
    distributed_dpo,
    distributed_sft,
    fully_shard,
    sharded_samples,
    whole_weights,
)
from posttrain.sft import SFTConfig, encode_conversations, sft_steps
from posttrain.stages import base_model, encode_split, sft_model
from posttrain.tokenizer import CharTokenizer


def ways() -> list[str]:
    """The engines that this PyTorch has."""
    return [engine for engine in ENGINES if engine != "fsdp" or fully_shard is not None]


def apart(model: GPT, steps: Iterator, losses: list[float], weights: dict) -> dict:
    """How far a run over several processes is from one process's, losses and
    weights.
    """
    noted = [step["loss"] for step in steps]
    ended = whole_weights(model)  # empty in other processes than 0
    differences = [
        (value - weights[key]).abs().max().item() for key, value in ended.items()
    ]
    return dict(
        loss=max(abs(one - other) for one, other in zip(noted, losses)),
        weights=max(differences, default=0.0),
    )


def sft_apart(corpus: Corpus, steps: int) -> dict[str, dict[str, float]]:
    """By engine: how far the first steps of the book's SFT are from `sft_steps`, in
    float64.

    "ring" and "ddp" train with Muon and AdamW, "fsdp" with AdamW alone and against
    that.
    """
    tokenizer, text = CharTokenizer(), encode_split(corpus)[0]
    base = grow_vocabulary(base_model(corpus)[0], tokenizer.vocab_size).double()
    examples = encode_conversations(
        datasets.conversations(), tokenizer, base.config.context
    )
    config, found = SFTConfig(steps=steps, batch_size=5, micro_batch_size=5), {}
    alone = copy.deepcopy(base)
    run = sft_steps(alone, examples, text, config, tokenizer.pad)
    losses = [noted["loss"] for noted in run]
    for engine in ways():
        model, options = copy.deepcopy(base), dict(engine=engine, muon=engine != "fsdp")
        if engine == "fsdp":
            # Compare with the ring, which has been compared with one process
            alone, settings = copy.deepcopy(base), dict(engine="ring", muon=False)
            run = distributed_sft(
                alone, examples, text, config, tokenizer.pad, **settings
            )
            losses = [noted["loss"] for noted in run]
        run = distributed_sft(model, examples, text, config, tokenizer.pad, **options)
        found[engine] = apart(model, run, losses, alone.state_dict())
    return found


def dpo_apart(corpus: Corpus, steps: int) -> dict[str, float]:
    """How far the first steps of the book's DPO by DDP are from `dpo_steps`, in
    float64.
    """
    reference, rows = sft_model(corpus)[0].double(), datasets.preferences()
    pairs = encode_pairs(rows, CharTokenizer(), reference.config.context)
    given = reference, pairs, DPOConfig(steps=steps)
    alone, policy = copy.deepcopy(reference), copy.deepcopy(reference)
    losses = [noted["loss"] for noted in dpo_steps(alone, *given)]
    return apart(policy, distributed_dpo(policy, *given), losses, alone.state_dict())


def answers(corpus: Corpus, prompts: int, seed: int) -> dict:
    """The SFT model's answers to some training prompts: all, and how likely they
    were.
    """
    tokenizer, model = CharTokenizer(), sft_model(corpus)[0]
    asked = [
        render_question(prompt, tokenizer)
        for prompt in datasets.training_prompts()[:prompts]
    ]
    samples = sharded_samples(
        model, asked, 96, seed=seed, temperature=0.8, stop=tokenizer.end
    )
    texts = [tokenizer.decode(response) for response in samples.responses()]
    return dict(texts=texts, logprobs=samples.logprobs.sum(-1).tolist())


def trial(corpus: Corpus, steps: int) -> dict:
    """All of the above, as one process of a group sees it."""
    torch.set_flush_denormal(True)
    sft, dpo = sft_apart(corpus, steps), dpo_apart(corpus, steps)
    return dict(sft=sft, dpo=dpo, answers=answers(corpus, 8, 0))
