"""The scorecard: each entry by hand, one prompt and one token at a time; and where
every run starts from, stored.
"""

import copy
import json
import math
import types

import pytest
import torch
from tiny import (
    CORPUS,
    LONG,
    PAD,
    TOKENIZER,
    empty_shelf,
    judge,
    moved,
    user,
)

from posttrain.chat import render_prompt
from posttrain.evaluate import gold_parts, gold_score, words_of
from posttrain.keep import code
from posttrain.keep.store import Stage
from posttrain.lab import scorecard as module
from posttrain.lab.scorecard import (
    against,
    judge_answers,
    lexicon,
    scorecard,
    start_scorecard,
)
from posttrain.logprobs import pack
from posttrain.reward_model import RewardConfig, sample_answers
from posttrain.sft import SFTConfig

PROMPTS = ["Who?", "Where is the duke?", "Say", "Why so?", "Ay", "No"]
WORDS = frozenset("ay my lord sir".split())


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch):
    monkeypatch.setattr(module.datasets, "heldout_prompts", lambda: PROMPTS)


# The scorecard


SAID = [
    "Ay, my lord.<|end|>",
    "No",
    "Ay, my lord.<|end|>",
    "Ay, ay, sir!<|end|>",
    "Ay sir<|end|>",
    "<|end|>",
]


def answering(monkeypatch, texts):
    """Let every policy give these answers."""
    asked = [render_prompt([user(text)], TOKENIZER) for text in PROMPTS]
    responses = [[TOKENIZER.ids[token] for token in tokens_of(text)] for text in texts]
    monkeypatch.setattr(module, "sample_answers", lambda *arguments: (asked, responses))
    return asked, responses


def tokens_of(text):
    return [
        *text.removesuffix("<|end|>"),
        *(["<|end|>"] if text.endswith("<|end|>") else []),
    ]


def test_a_card_has_one_entry_per_prompt_and_means_of_them(monkeypatch):
    asked, responses = answering(monkeypatch, SAID)
    reward_model = judge(config=LONG)
    card = scorecard(
        moved(config=LONG), moved(1, config=LONG), reward_model, WORDS, seed=0
    )
    assert card["answers"] == SAID
    alone = [
        reward_model(*pack([prompt], [response], PAD)).item()
        for prompt, response in zip(asked, responses)
    ]
    assert card["scores"] == pytest.approx(alone, abs=1e-10)
    assert card["gold"] == [gold_score(text, WORDS) for text in SAID]
    assert card["score"] == pytest.approx(sum(alone) / 6) and card[
        "gold_score"
    ] == pytest.approx(sum(card["gold"]) / 6)
    assert card["finished"] == 3 / 6 and card["different"] == 5 / 6
    # "no" is no word; my follows ay, lord follows my, ay follows ay, sir follows ay, of
    # seven
    assert card["non_words"] == 1 / 12 and card["distinct"] == 4 / 7
    assert card["words"] == 12 / 6 and card["recited"] == 0
    parts = [gold_parts(text, WORDS) for text in SAID]
    for name, mean in card["parts"].items():
        assert mean == pytest.approx(sum(part[name] for part in parts) / 6)
    assert sum(card["parts"].values()) == pytest.approx(card["gold_score"])
    assert json.loads(json.dumps(card)) == card


def test_the_kl_is_the_mean_of_whole_distributions_at_the_temperature(monkeypatch):
    asked, responses = answering(monkeypatch, SAID)
    policy, reference = moved(config=LONG), moved(1, config=LONG)
    for temperature in (0.8, 0.5):
        total = 0.0
        for prompt, response in zip(asked, responses):
            tokens = torch.tensor([prompt + response])
            p, q = (
                (model(tokens)[0] / temperature).softmax(-1)
                for model in (policy, reference)
            )
            steps = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            total += sum((p[t] * (p[t] / q[t]).log()).sum().item() for t in steps)
        card = scorecard(policy, reference, judge(config=LONG), WORDS, 0, temperature)
        assert card["kl"] == pytest.approx(total / 6, rel=1e-9) and card["kl"] > 1
    assert (
        scorecard(policy, reference, judge(config=LONG), WORDS, 0)["kl"] != card["kl"]
    )  # 0.8 unless told otherwise


def test_a_policy_is_no_nats_away_from_itself():
    policy = moved(config=LONG)
    assert (
        scorecard(policy, moved(config=LONG), judge(config=LONG), WORDS, seed=0)["kl"]
        == 0
    )


def test_the_answers_are_the_policys_own_and_depend_on_seed_and_temperature_alone():
    policy, reference, reward_model = (
        moved(config=LONG),
        moved(1, config=LONG),
        judge(config=LONG),
    )

    def card(seed, temperature=0.8, words=WORDS):
        torch.manual_seed(seed + 100)
        return scorecard(policy, reference, reward_model, words, seed, temperature)

    first = card(0)
    _, responses = sample_answers(policy, PROMPTS, 0, 0.8)
    assert first["answers"] == [TOKENIZER.decode(response) for response in responses]
    torch.manual_seed(7)
    assert scorecard(policy, reference, reward_model, WORDS, 0) == first
    assert card(1)["answers"] != first["answers"] != card(0, 0.5)["answers"]
    assert (
        card(0, words=frozenset(words_of(" ".join(first["answers"]))))["gold"]
        != first["gold"]
    )


def test_the_entropy_is_the_mean_over_all_answers_tokens_at_the_temperature(
    monkeypatch,
):
    asked, responses = answering(monkeypatch, SAID)
    policy, cards = moved(config=LONG), []
    for temperature in (0.8, 0.5):
        undecided = []
        for prompt, response in zip(asked, responses):
            for t in range(len(response)):
                p = (
                    (policy(torch.tensor([prompt + response[:t]]))[0, -1] / temperature)
                    .softmax(-1)
                    .tolist()
                )
                undecided.append(-sum(each * math.log(each) for each in p))
        cards.append(
            scorecard(
                policy, moved(1, config=LONG), judge(config=LONG), WORDS, 0, temperature
            )
        )
        # A long answer weighs more than a short one: the mean is over tokens
        assert len(undecided) == sum(map(len, responses))
        assert cards[-1]["entropy"] == pytest.approx(
            sum(undecided) / len(undecided), rel=1e-9
        )
    other = scorecard(moved(2, config=LONG), policy, judge(config=LONG), WORDS, 0)
    assert len({card["entropy"] for card in (*cards, other)}) == 3


def test_a_policy_that_draws_blindly_has_the_entropy_of_the_alphabet():
    policy = moved(config=LONG)
    with torch.no_grad():
        policy.head.weight.zero_()
    card = scorecard(policy, moved(config=LONG), judge(config=LONG), WORDS, seed=0)
    assert card["entropy"] == pytest.approx(math.log(69), rel=1e-12)


def test_a_card_leaves_no_gradient_behind():
    models = moved(config=LONG), moved(1, config=LONG), judge(config=LONG)
    card = scorecard(*models, WORDS, seed=0)
    assert all(
        type(card[name]) is float
        for name in ("score", "gold_score", "kl", "entropy", "finished", "different")
    )
    assert all(
        parameter.grad is None for model in models for parameter in model.parameters()
    )


def test_answers_are_judged_without_a_model():
    answers = ["Ay, my lord.<|end|>", "No", "No", "Ay sir<|end|>"]
    responses = [
        [TOKENIZER.ids[token] for token in tokens_of(text)] for text in answers
    ]
    gold = [gold_score(text, WORDS) for text in answers]
    parts = [gold_parts(text, WORDS) for text in answers]
    assert judge_answers(responses, torch.tensor([1.0, -2.0, 0.5, 2.5]), WORDS) == dict(
        answers=answers,
        scores=[1.0, -2.0, 0.5, 2.5],
        gold=gold,
        score=0.5,
        gold_score=pytest.approx(sum(gold) / 4),
        finished=1 / 4,
        different=3 / 4,
        # Neighbours: ay my, my lord, ay sir; "no" twice among the seven words is none
        distinct=1.0,
        non_words=2 / 7,
        recited=0.0,
        words=7 / 4,
        parts={
            name: pytest.approx(sum(part[name] for part in parts) / 4)
            for name in ("courtesy", "ending", "length", "repetition", "spelling")
        },
    )


def test_recited_is_who_says_an_answer_of_the_conversations_word_for_word(monkeypatch):
    said = dict(role="assistant", content="Ay, my lord.")
    talk = dict(id="0", messages=[user("Who?"), said])
    monkeypatch.setattr(module.datasets, "conversations", lambda: [talk])
    texts = ["Ay, my lord.<|end|>", "Ay, my lord.", "Ay, my lord<|end|>", "No<|end|>"]
    responses = [[TOKENIZER.ids[token] for token in tokens_of(text)] for text in texts]
    assert judge_answers(responses, torch.zeros(4), WORDS)["recited"] == 2 / 4


# Where every run starts from


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """An empty stages folder, tiny models, who asked for them, and what the cards are
    about.
    """
    shelf = types.SimpleNamespace(
        sft=moved(dtype=torch.float32, config=LONG),
        judge=judge(5, torch.float32, LONG),
        keys=dict(sft="1", reward="2"),
        asked=dict(sft=[], reward=[]),
        cards=[],
    )
    empty_shelf(monkeypatch, tmp_path)
    for name in shelf.asked:

        def find(*arguments, name=name):
            shelf.asked[name].append(arguments)
            return Stage(name, shelf.keys[name], {}, {})

        monkeypatch.setattr(module, f"{name}_stage", find)

    def noted(*arguments):
        shelf.cards.append(arguments)
        return scorecard(*arguments)

    monkeypatch.setattr(module, "language_model", lambda _: copy.deepcopy(shelf.sft))
    monkeypatch.setattr(module, "scoring_model", lambda _: copy.deepcopy(shelf.judge))
    monkeypatch.setattr(module, "scorecard", noted)
    # What stands in the place of others is kept all the same
    monkeypatch.setattr(code, "changed", lambda function: [])
    return shelf


def test_the_sft_models_card_compares_it_with_itself_at_the_same_seed(shelf):
    wanted, found = [(3, 0.8), (3, 0.6), (1, 0.8)], []
    for seed, temperature in wanted:
        shelf.keys = dict(sft=f"sft {seed}", reward=f"reward {seed}")
        found.append(start_scorecard(CORPUS, seed, temperature))
    for card, (seed, temperature) in zip(found, wanted):
        sft, judged_by = copy.deepcopy(shelf.sft), copy.deepcopy(shelf.judge)
        assert card == scorecard(
            sft, sft, judged_by, lexicon(CORPUS), seed, temperature
        )
        assert card["kl"] == 0 < card["entropy"] and len(card["answers"]) == 6
    assert shelf.asked == dict(
        sft=[(CORPUS, SFTConfig(seed=seed)) for seed in (3, 3, 1)],
        reward=[(CORPUS, RewardConfig(seed=seed)) for seed in (3, 3, 1)],
    )
    assert [words for _, _, _, words, *_ in shelf.cards] == [lexicon(CORPUS)] * 3


def test_the_sft_models_card_is_stored_once(shelf, tmp_path):
    first, again = start_scorecard(CORPUS, 3), start_scorecard(CORPUS, 3)
    assert first == again == start_scorecard(CORPUS, 3, 0.8)
    assert len(shelf.cards) == 1
    (path,) = tmp_path.glob("*.json")
    assert path.name.startswith("scorecard-")
    # Who writes into a card that was found does not write into the stored one
    again["round"] = 0
    assert start_scorecard(CORPUS, 3) == first


def test_the_base_models_card_is_measured_against_the_sft_model(shelf, monkeypatch):
    base, asked = moved(7, config=LONG), []
    monkeypatch.setattr(
        module,
        "starting_point",
        lambda *given: asked.append(given) or copy.deepcopy(base),
    )
    card = start_scorecard(CORPUS, 3, 0.6, "base")
    sft, judged_by = copy.deepcopy(shelf.sft), copy.deepcopy(shelf.judge)
    assert card == scorecard(base, sft, judged_by, lexicon(CORPUS), 3, 0.6)
    assert card["kl"] > 0 and asked == [(CORPUS, "base", 3)]
    assert start_scorecard(CORPUS, 3, 0.6) != card


def test_another_temperature_model_prompt_or_start_is_another_card(shelf, monkeypatch):
    monkeypatch.setattr(
        module,
        "scorecard",
        lambda *given: shelf.cards.append(given) or dict(gold=[1.0]),
    )
    monkeypatch.setattr(module, "starting_point", lambda *_: copy.deepcopy(shelf.sft))

    def judged(temperature=0.8, start="sft"):
        before = len(shelf.cards)
        start_scorecard(CORPUS, 0, temperature, start)
        return len(shelf.cards) > before

    assert judged() and not judged()
    assert judged(temperature=0.5) and judged(start="base")
    # Corpus, data and seed change the keys of the two models
    for name in ("sft", "reward"):
        shelf.keys = shelf.keys | {name: "3"}
        assert judged() and not judged()
    monkeypatch.setattr(module.datasets, "heldout_prompts", lambda: ["Who?"])
    assert judged() and not judged()


def test_a_card_against_another_counts_wins_and_ties_prompt_by_prompt():
    card = dict(gold=[1.0, 0.5, -1.0, 0.0])
    first = dict(gold=[1.0, 0.0, -1.0, 0.5])
    assert against(card, first) == dict(win_rate=2 / 4, tied=2 / 4)
    assert against(card, card) == dict(win_rate=0.5, tied=1.0)
