"""Fine-tuning under trial: one setting over several seeds, judged on held-out
questions.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from posttrain.chat import ask
from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.evaluate import answered, finished, manner
from posttrain.gpt import GPT
from posttrain.pretrain import validation_loss
from posttrain.sft import SFTConfig, conversation_loss, encode_conversations, sft
from posttrain.stages import base_model, encode_split
from posttrain.tokenizer import END, CharTokenizer


def answers_of(conversations: list[dict]) -> set[str]:
    """Every text that an assistant says in them."""
    messages = [message for row in conversations for message in row["messages"]]
    return {
        message["content"] for message in messages if message["role"] == "assistant"
    }


def with_questions_swapped(conversations: list[dict]) -> list[dict]:
    """The same answers, each conversation's first question replaced by the next
    one's.
    """
    questions = [row["messages"][0] for row in conversations]
    others = questions[1:] + questions[:1]
    return [
        dict(row, messages=[question, *row["messages"][1:]])
        for row, question in zip(conversations, others)
    ]


def sft_scorecard(
    model: GPT,
    known_answers: set[str],
    validation: Tensor,
    seed: int,
    windows: int = 32,
) -> dict[str, float]:
    """What a chat model does with questions that it was not trained on.

    Shares of the 64 held-out prompts, at temperature 0.8: `in_format`, `finished`,
    `courteous`, `blunt`, and `recited`, word for word one of known_answers. Nats per
    token: `conversation_loss` on the held-out conversations, `swapped_loss` with their
    first questions exchanged, `shakespeare_loss` on `windows` windows of validation
    text.
    """
    tokenizer, n = CharTokenizer(), model.config.context
    prompts, heldout = datasets.heldout_prompts(), datasets.heldout_conversations()
    answers = ask(model, prompts, generator=torch.Generator().manual_seed(seed))
    manners = [manner(answer) for answer in answers]
    recited = [answer.removesuffix(END) in known_answers for answer in answers]
    own = encode_conversations(heldout, tokenizer, n)
    swapped = encode_conversations(with_questions_swapped(heldout), tokenizer, n)
    return dict(
        in_format=sum(map(answered, answers)) / len(answers),
        finished=sum(map(finished, answers)) / len(answers),
        courteous=manners.count(1) / len(answers),
        blunt=manners.count(-1) / len(answers),
        recited=sum(recited) / len(answers),
        conversation_loss=conversation_loss(model, own, tokenizer.pad),
        swapped_loss=conversation_loss(model, swapped, tokenizer.pad),
        shakespeare_loss=validation_loss(model, validation, windows=windows),
    )


@dataclass(frozen=True)
class SFTTrial:
    """One way to fine-tune the base model."""

    config: SFTConfig = field(default_factory=SFTConfig)
    # So many of the book's courteous conversations; None for all
    courteous: int | None = None
    blunt: int | None = None  # and so many of the blunt ones
    found: int = 0  # so many that were found in the corpus, in place of the book's


def sft_trial(corpus: Corpus, trial: SFTTrial, seed: int) -> dict:
    """The history of one fine-tuning run with its scorecard at every evaluation.

    `learned` is the loss on the conversations that are trained on, at that moment
    (`train` is the mean since the entry before). `base_loss` is the base model's
    Shakespeare loss.
    """
    (text, validation), tokenizer = encode_split(corpus), CharTokenizer()
    conversations, base = conversations_for(corpus, trial, seed), base_model(corpus)[0]
    known = answers_of(conversations)

    def judge(model: GPT) -> dict[str, float]:
        examples = encode_conversations(conversations, tokenizer, model.config.context)
        card = sft_scorecard(model, known, validation, seed)
        return card | dict(learned=conversation_loss(model, examples, tokenizer.pad))

    config = replace(trial.config, seed=seed)
    history = sft(base, conversations, text, config, judge)[1]
    return history | dict(base_loss=validation_loss(base, validation, windows=32))


def conversations_for(corpus: Corpus, trial: SFTTrial, seed: int) -> list[dict]:
    """What a trial trains on: the book's conversations, some of them, or found ones."""
    written = datasets.conversations()
    if trial.found:
        return found_conversations(corpus.train, trial.found)
    if trial.courteous is None or trial.blunt is None:
        return written
    return subset(written, trial.courteous, trial.blunt, seed)


def subset(
    conversations: list[dict], n_courteous: int, n_blunt: int, seed: int
) -> list[dict]:
    """So many courteous and so many blunt conversations, drawn without replacement."""
    draw, chosen = random.Random(seed), []
    for manner_wanted, n in (("courteous", n_courteous), ("blunt", n_blunt)):
        chosen += draw.sample(
            [c for c in conversations if c["manner"] == manner_wanted], n
        )
    return chosen


def found_conversations(text: str, n: int, seed: int = 0) -> list[dict]:
    """Conversations that nobody wrote for us: a play's questions and what is said next.

    Any speech that ends with a question mark and has at most 80 characters is a
    question; the first 70 characters of the next speech are its answer, whether or not
    they answer it or end there. Returns n of them, drawn without replacement, or all
    where there are fewer.
    """
    speeches = [
        speech.split(":\n", 1)[1].replace("\n", " ").strip()
        for speech in re.split(r"\n\n+", text)
        if ":\n" in speech
    ]
    pairs = [
        (question, answer[:70])
        for question, answer in zip(speeches, speeches[1:])
        if question.endswith("?") and len(question) <= 80 and answer
    ]
    chosen = random.Random(seed).sample(pairs, min(n, len(pairs)))
    return [
        dict(
            id=f"found-{i}",
            messages=[
                dict(role="user", content=question),
                dict(role="assistant", content=answer),
            ],
        )
        for i, (question, answer) in enumerate(chosen)
    ]
