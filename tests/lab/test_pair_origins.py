"""Where pairs come from: the rows of each kind, and a stronger model's answers over a
weaker one's.
"""

import copy
import types

import pytest
import torch
from tiny import CORPUS, END, LONG, TOKENIZER, moved, pair, seeded

from posttrain.chat import ask
from posttrain.data import datasets
from posttrain.lab import pair_origins as module
from posttrain.lab.pair_origins import DRAWS, pairs_of, stronger_pairs
from posttrain.ppo import PPOConfig

ASKED = ["Who?", "Where is the duke?", "Why so?"]
ROWS = dict(
    preferences=[
        pair("a", "Who?", "I am.", "You"),
        pair("b", "Where is the duke?", "At sea, my lord. " * 11, "At"),  # is cut
        pair("c", "Why so?", "No.", "No, no, no"),
    ],
    elsewhere_preferences=[
        pair("p", "Who?", "Ay, sir.", "Ay, knave."),
        pair("q", "Where is the duke?", "Here.", "Th"),
    ],
    minimal_preferences=[pair("e", "Why so?", "Go, kind sir.", "Go, vile dog.")],
)
ROWS_OF = dict(
    own="preferences", elsewhere="elsewhere_preferences", minimal="minimal_preferences"
)


@pytest.fixture
def small_data(monkeypatch):
    for name, some in ROWS.items():
        monkeypatch.setattr(datasets, name, lambda some=some: some)


@pytest.fixture
def tried(monkeypatch):
    """Tiny models of two seeds: SFT models, and the policies that PPO made of them."""
    tried = types.SimpleNamespace(
        sft={seed: moved(seed, torch.float32, LONG) for seed in (0, 3)},
        ppo={seed: moved(seed + 10, torch.float32, LONG) for seed in (0, 3)},
    )

    def find(corpus, config):
        assert corpus is CORPUS and config == PPOConfig(seed=config.seed)
        return tried.ppo[config.seed], {}

    monkeypatch.setattr(module, "ppo_model", find)
    return tried


def encoded(row):
    """A pair's token ids, spelt out, the answers cut to a context of 160."""
    prompt = [
        TOKENIZER.user,
        *map(TOKENIZER.ids.get, row["prompt"]),
        TOKENIZER.assistant,
    ]
    answers = [
        [*map(TOKENIZER.ids.get, row[side]), END][: 160 - len(prompt)]
        for side in ("chosen", "rejected")
    ]
    return (prompt, *answers)


# Pairs


@pytest.mark.parametrize("kind", ROWS_OF)
def test_the_pairs_of_a_kind_are_its_rows_as_token_ids(small_data, tried, kind):
    assert pairs_of(CORPUS, kind, tried.sft[3], 3) == [
        encoded(row) for row in ROWS[ROWS_OF[kind]]
    ]


def test_an_answer_that_is_too_long_is_cut_to_the_context(small_data, tried):
    prompt, chosen, _ = pairs_of(CORPUS, "own", tried.sft[3], 3)[1]
    assert len(prompt) + len(chosen) == LONG.context and chosen[-1] != END


@pytest.mark.parametrize("kind", ROWS_OF)
def test_each_kind_has_eighteen_pairs_on_the_same_prompts(tried, kind):
    prompts = [row["prompt"] for row in datasets.preferences()]
    assert len(set(prompts)) == 18
    assert [
        TOKENIZER.decode(prompt)
        for prompt, _, _ in pairs_of(CORPUS, kind, tried.sft[3], 3)
    ] == [f"<|user|>{prompt}<|assistant|>" for prompt in prompts]


def test_stronger_pairs_are_those_of_the_seed(small_data, tried):
    for seed in (0, 3):
        sft, policy = tried.sft[seed], tried.ppo[seed]
        pairs = pairs_of(CORPUS, "stronger", sft, seed)
        assert pairs == stronger_pairs(policy, sft, seed)
    assert pairs != stronger_pairs(tried.ppo[0], tried.sft[0], 0)


# Stronger and weaker


def scripted(monkeypatch, answers):
    """Let models answer from lists, told apart by their identity; return who was asked
    what.
    """
    asked = []

    def answer(model, prompts, seed):
        asked.append((model, prompts, seed))
        return [[TOKENIZER.user, *TOKENIZER.encode(text)] for text in prompts], [
            TOKENIZER.encode(text) for text in answers[id(model)]
        ]

    monkeypatch.setattr(module, "sample_answers", answer)
    return asked


@pytest.mark.parametrize(
    ("better", "worse", "expected"),
    [
        ("abcdefgh", "ijklmnop", ("a", "i")),  # all differ
        ("abcdefgh", "aacdexgh", ("b", "a")),  # the second, and the sixth too
        ("aaaaaaab", "aaaaaaac", ("b", "c")),  # the last alone
        ("abababab", "abababaa", ("b", "a")),  # not one draw with another
        ("abcdefgh", "abcdefgh", None),
    ],
)
def test_a_pair_is_the_first_draw_that_differs_ppos_answer_over_the_sft_models(
    monkeypatch, small_data, tried, better, worse, expected
):
    policy, sft = tried.ppo[3], tried.sft[3]
    # Between two prompts, of which one has its pair at once and one at the third draw
    before, after = ("qrstuvwx", "yrstuvwx"), ("ABCDEFGH", "ABZDEFGH")
    asked = scripted(
        monkeypatch,
        {
            id(policy): before[0] + better + after[0],
            id(sft): before[1] + worse + after[1],
        },
    )
    pairs = stronger_pairs(policy, sft, 3)
    wanted = [("Who?", "q", "y"), ("Why so?", "C", "Z")]
    if expected:
        wanted.insert(1, ("Where is the duke?", *expected))
    assert pairs == [
        (
            [TOKENIZER.user, *TOKENIZER.encode(prompt)],
            TOKENIZER.encode(chosen),
            TOKENIZER.encode(rejected),
        )
        for prompt, chosen, rejected in wanted
    ]
    # Both are asked each prompt eight times in a row, with the seed of the run
    prompts = ["Who?"] * 8 + ["Where is the duke?"] * 8 + ["Why so?"] * 8
    assert [(id(model), *rest) for model, *rest in asked] == [
        (id(policy), prompts, 3),
        (id(sft), prompts, 3),
    ]


def test_models_that_always_answer_alike_give_no_pair(small_data, tried):
    policy = copy.deepcopy(tried.sft[3])
    with pytest.raises(ValueError, match="^both models answer all prompts alike"):
        stronger_pairs(policy, tried.sft[3], 3)


@pytest.mark.parametrize(("seed", "nudge"), [(0, 0.008), (3, 0.004)])
def test_stronger_pairs_are_what_two_models_say_when_they_are_asked(
    small_data, tried, seed, nudge
):
    # A policy that has hardly moved gives some of the same answers
    policy = copy.deepcopy(tried.sft[seed])
    with torch.no_grad():
        for parameter in policy.parameters():
            noise = torch.randn(parameter.shape, generator=seeded(1))
            parameter += nudge * noise
    questions = [prompt for prompt in ASKED for _ in range(DRAWS)]
    better, worse = (
        ask(model, questions, generator=seeded(seed), max_new_tokens=96)
        for model in (policy, tried.sft[seed])
    )
    expected, places = [], []
    for place, both in enumerate(zip(questions, better, worse)):
        known = [question for question, _, _ in expected]
        if both[1] != both[2] and both[0] not in known:
            expected.append(both)
            places.append(place % DRAWS)
    assert any(places) and len(expected) > 1
    pairs = stronger_pairs(policy, tried.sft[seed], seed)
    found = [tuple(map(TOKENIZER.decode, ids)) for ids in pairs]
    assert found == [
        (f"<|user|>{question}<|assistant|>", chosen, rejected)
        for question, chosen, rejected in expected
    ]
