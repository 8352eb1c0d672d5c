"""Where a pair's answers come from: four kinds of eighteen pairs, to the same prompts.

"own" are answers that SFT models gave, decided by reading: the book's pairs.
"elsewhere" were written for the purpose; "minimal" are one text in two manners;
"stronger" prefers PPO's answer to the SFT model's, whatever they say.
"""

from __future__ import annotations

from posttrain.data import datasets
from posttrain.data.corpus import Corpus
from posttrain.gpt import GPT
from posttrain.ppo import PPOConfig
from posttrain.preference_pairs import Pair, encode_pairs
from posttrain.reward_model import sample_answers
from posttrain.stages import ppo_model
from posttrain.tokenizer import CharTokenizer

KINDS = ("own", "elsewhere", "minimal", "stronger")
DRAWS = 8  # answers to each prompt, among which a stronger and a weaker one must differ


def pairs_of(corpus: Corpus, kind: str, sft: GPT, seed: int) -> list[Pair]:
    """The pairs of a kind, as token ids: eighteen; "stronger" are this seed's own."""
    if kind == "stronger":
        policy, _ = ppo_model(corpus, PPOConfig(seed=seed))
        return stronger_pairs(policy, sft, seed)
    rows = dict(
        own=datasets.preferences,
        elsewhere=datasets.elsewhere_preferences,
        minimal=datasets.minimal_preferences,
    )[kind]()
    return encode_pairs(rows, CharTokenizer(), sft.config.context)


def stronger_pairs(policy: GPT, sft: GPT, seed: int) -> list[Pair]:
    """A policy's answer to each prompt of the pairs, over an answer of the SFT model.

    The first of a few draws in which the two are not the same; a prompt that both
    always answer alike gives no pair. Raises ValueError where none gives one.
    """
    prompts = [row["prompt"] for row in datasets.preferences()]
    asked = [prompt for prompt in prompts for _ in range(DRAWS)]
    encoded, better = sample_answers(policy, asked, seed)
    _, worse = sample_answers(sft, asked, seed)
    pairs = []
    for first in range(0, len(asked), DRAWS):
        places = range(first, first + DRAWS)
        different = [i for i in places if better[i] != worse[i]]
        if different:
            i = different[0]
            pairs.append((encoded[i], better[i], worse[i]))
    if not pairs:
        raise ValueError("both models answer all prompts alike: there are no pairs")
    return pairs
