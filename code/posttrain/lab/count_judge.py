"""A judge that is no model, to be paid by: each word of an answer votes, every time it
occurs.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from posttrain.data import datasets
from posttrain.evaluate import words_of
from posttrain.gpt import GPT
from posttrain.lab.reward_probes import word_votes
from posttrain.logprobs import pack
from posttrain.ppo import Models, ValueModel
from posttrain.reward_model import sample_answers, set_unit
from posttrain.tokenizer import CharTokenizer


class CountJudge(nn.Module):
    """Scores an answer by the votes of its words; `shift` and `scale` as a reward
    model's.
    """

    def __init__(self, pairs: list[dict]):
        super().__init__()
        self.votes = word_votes(pairs)
        self.register_buffer("shift", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The score (B,) of each response; tokens and mask (B, T) as from `pack`."""
        tokenizer = CharTokenizer()
        texts = [
            tokenizer.decode(row[kept].tolist()) for row, kept in zip(tokens, mask)
        ]
        counts = [sum(self.votes[word] for word in words_of(text)) for text in texts]
        return (torch.tensor(counts, dtype=torch.float32) - self.shift) / self.scale


def paid_by_count(sft: GPT, seed: int) -> Models:
    """Four models of which the judge counts words, and the value model starts at 0.

    The judge's zero and unit are set on the SFT model's answers to the prompts to
    practise on, as a reward model's are.
    """
    judge = CountJudge(datasets.preferences())
    answers = sample_answers(sft, datasets.training_prompts(), seed)
    set_unit(judge(*pack(*answers, CharTokenizer().pad)), judge)
    values = ValueModel(copy.deepcopy(sft))
    return Models(copy.deepcopy(sft), values, sft, judge)
