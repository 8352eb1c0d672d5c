"""The scorecard: each entry by hand, one prompt and one token at a time; and where every run starts from, stored."""

import copy
import json
import math
import types
from dataclasses import replace

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
    stored,
    user,
)

from posttrain.chat import render_prompt
from posttrain.evaluate import gold_score, words_of
from posttrain.lab import scorecard as module
from posttrain.lab.scorecard import judge_answers, lexicon, scorecard, start_scorecard
from posttrain.logprobs import pack
from posttrain.reward_model import RewardConfig, sample_answers
from posttrain.sft import SFTConfig

PROMPTS = ["Who?", "Where is the duke?", "Say", "Why so?", "Ay", "No"]
WORDS = frozenset("ay my lord sir".split())


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch):
    monkeypatch.setattr(module.datasets, "heldout_prompts", lambda: PROMPTS)


# The scorecard


SAID = ["Ay, my lord.<|end|>", "No", "Ay, my lord.<|end|>", "Ay, ay, sir!<|end|>", "Ay sir<|end|>", "<|end|>"]


def answering(monkeypatch, texts):
    """Let every policy give these answers."""
    asked = [render_prompt([user(text)], TOKENIZER) for text in PROMPTS]
    responses = [[TOKENIZER.ids[token] for token in tokens_of(text)] for text in texts]
    monkeypatch.setattr(module, "sample_answers", lambda *arguments: (asked, responses))
    return asked, responses


def tokens_of(text):
    return [*text.removesuffix("<|end|>"), *(["<|end|>"] if text.endswith("<|end|>") else [])]


def test_a_card_has_one_entry_per_prompt_and_means_of_them(monkeypatch):
    asked, responses = answering(monkeypatch, SAID)
    reward_model = judge(config=LONG)
    card = scorecard(moved(config=LONG), moved(1, config=LONG), reward_model, WORDS, seed=0)
    assert card["answers"] == SAID
    alone = [reward_model(*pack([prompt], [response], PAD)).item() for prompt, response in zip(asked, responses)]
    assert card["scores"] == pytest.approx(alone, abs=1e-10)
    assert card["gold"] == [gold_score(text, WORDS) for text in SAID]
    assert card["score"] == pytest.approx(sum(alone) / 6) and card["gold_score"] == pytest.approx(sum(card["gold"]) / 6)
    assert card["finished"] == 3 / 6 and card["different"] == 5 / 6
    # "no" is no word; my follows ay, lord follows my, ay follows ay, sir follows ay, of seven
    assert card["non_words"] == 1 / 12 and card["distinct"] == 4 / 7
    assert json.loads(json.dumps(card)) == card


def test_the_kl_is_the_mean_of_whole_distributions_at_the_temperature(monkeypatch):
    asked, responses = answering(monkeypatch, SAID)
    policy, reference = moved(config=LONG), moved(1, config=LONG)
    for temperature in (0.8, 0.5):
        total = 0.0
        for prompt, response in zip(asked, responses):
            tokens = torch.tensor([prompt + response])
            p, q = ((model(tokens)[0] / temperature).softmax(-1) for model in (policy, reference))
            steps = range(len(prompt) - 1, len(prompt) + len(response) - 1)
            total += sum((p[t] * (p[t] / q[t]).log()).sum().item() for t in steps)
        card = scorecard(policy, reference, judge(config=LONG), WORDS, 0, temperature)
        assert card["kl"] == pytest.approx(total / 6, rel=1e-9) and card["kl"] > 1
    assert scorecard(policy, reference, judge(config=LONG), WORDS, 0)["kl"] != card["kl"]  # 0.8 unless told otherwise


def test_a_policy_is_no_nats_away_from_itself():
    policy = moved(config=LONG)
    assert scorecard(policy, moved(config=LONG), judge(config=LONG), WORDS, seed=0)["kl"] == 0


def test_the_answers_are_the_policys_own_and_depend_on_seed_and_temperature_alone():
    policy, reference, reward_model = moved(config=LONG), moved(1, config=LONG), judge(config=LONG)

    def card(seed, temperature=0.8, words=WORDS):
        torch.manual_seed(seed + 100)
        return scorecard(policy, reference, reward_model, words, seed, temperature)

    first = card(0)
    _, responses = sample_answers(policy, PROMPTS, 0, 0.8)
    assert first["answers"] == [TOKENIZER.decode(response) for response in responses]
    torch.manual_seed(7)
    assert scorecard(policy, reference, reward_model, WORDS, 0) == first
    assert card(1)["answers"] != first["answers"] != card(0, 0.5)["answers"]
    assert card(0, words=frozenset(words_of(" ".join(first["answers"]))))["gold"] != first["gold"]


def test_the_entropy_is_the_mean_over_all_answers_tokens_at_the_temperature(monkeypatch):
    asked, responses = answering(monkeypatch, SAID)
    policy, cards = moved(config=LONG), []
    for temperature in (0.8, 0.5):
        undecided = []
        for prompt, response in zip(asked, responses):
            for t in range(len(response)):
                p = (policy(torch.tensor([prompt + response[:t]]))[0, -1] / temperature).softmax(-1).tolist()
                undecided.append(-sum(each * math.log(each) for each in p))
        cards.append(scorecard(policy, moved(1, config=LONG), judge(config=LONG), WORDS, 0, temperature))
        # A long answer weighs more than a short one: the mean is over tokens
        assert len(undecided) == sum(map(len, responses))
        assert cards[-1]["entropy"] == pytest.approx(sum(undecided) / len(undecided), rel=1e-9)
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
    assert all(type(card[name]) is float for name in ("score", "gold_score", "kl", "entropy", "finished", "different"))
    assert all(parameter.grad is None for model in models for parameter in model.parameters())


def test_answers_are_judged_without_a_model():
    answers = ["Ay, my lord.<|end|>", "No", "No", "Ay sir<|end|>"]
    responses = [[TOKENIZER.ids[token] for token in tokens_of(text)] for text in answers]
    gold = [gold_score(text, WORDS) for text in answers]
    assert judge_answers(responses, torch.tensor([1.0, -2.0, 0.5, 2.5]), WORDS) == dict(
        answers=answers, scores=[1.0, -2.0, 0.5, 2.5], gold=gold, score=0.5,
        gold_score=pytest.approx(sum(gold) / 4), finished=1 / 4, different=3 / 4,
    )  # fmt: skip


# Where every run starts from


TALKS = [dict(id="a", messages=[user("Who?"), dict(role="assistant", content="I, sir.")]), dict(id="b", messages=[user("Say")])]
WRITTEN = [dict(id=name, prompt="Who?", chosen="Ay, sir.", rejected=name) for name in ("a", "b")]


@pytest.fixture
def shelf(monkeypatch, tmp_path):
    """An empty stages folder, tiny models, who asked for them, and what the cards are about."""
    shelf = types.SimpleNamespace(sft=moved(dtype=torch.float32, config=LONG), judge=judge(5, torch.float32, LONG), cards=[])
    empty_shelf(monkeypatch, tmp_path)
    find_sft, shelf.asked_sft = stored(shelf.sft)
    find_judge, shelf.asked_judge = stored(shelf.judge)
    monkeypatch.setattr(module, "sft_model", find_sft)
    monkeypatch.setattr(module, "reward_model", find_judge)
    monkeypatch.setattr(module.datasets, "conversations", lambda: TALKS)
    monkeypatch.setattr(module.datasets, "preferences", lambda: WRITTEN)

    def noted(*arguments):
        shelf.cards.append(arguments)
        return scorecard(*arguments)

    monkeypatch.setattr(module, "scorecard", noted)
    return shelf


def test_the_sft_models_card_compares_it_with_itself_at_the_same_seed(shelf):
    found = [start_scorecard(CORPUS, 3), start_scorecard(CORPUS, 3, 0.6), start_scorecard(CORPUS, 1)]
    for card, (seed, temperature) in zip(found, [(3, 0.8), (3, 0.6), (1, 0.8)]):
        sft, judged_by = copy.deepcopy(shelf.sft), copy.deepcopy(shelf.judge)
        assert card == scorecard(sft, sft, judged_by, lexicon(CORPUS), seed, temperature)
        assert card["kl"] == 0 < card["entropy"] and len(card["answers"]) == 6
    assert shelf.asked_sft == [(CORPUS, SFTConfig(seed=seed)) for seed in (3, 3, 1)]
    assert shelf.asked_judge == [(CORPUS, RewardConfig(seed=seed)) for seed in (3, 3, 1)]
    assert [words for _, _, _, words, *_ in shelf.cards] == [lexicon(CORPUS)] * 3


def test_the_sft_models_card_is_stored_once(shelf, tmp_path):
    first, again = start_scorecard(CORPUS, 3), start_scorecard(CORPUS, 3)
    assert first == again == start_scorecard(CORPUS, 3, 0.8)
    assert len(shelf.cards) == len(shelf.asked_sft) == len(shelf.asked_judge) == 1
    (path,) = tmp_path.glob("*.json")
    assert path.name.startswith("start-scorecard-")
    # Who writes into a card that was found does not write into the stored one
    again["round"] = 0
    assert start_scorecard(CORPUS, 3) == first


def test_the_base_models_card_is_measured_against_the_sft_model(shelf, monkeypatch):
    base, asked = moved(7, config=LONG), []
    monkeypatch.setattr(module, "starting_point", lambda *arguments: asked.append(arguments) or copy.deepcopy(base))
    card = start_scorecard(CORPUS, 3, 0.6, "base")
    sft, judged_by = copy.deepcopy(shelf.sft), copy.deepcopy(shelf.judge)
    assert card == scorecard(base, sft, judged_by, lexicon(CORPUS), 3, 0.6) and card["kl"] > 0
    assert asked == [(CORPUS, "base", 3)] and start_scorecard(CORPUS, 3, 0.6) != card


def test_another_seed_temperature_model_or_text_is_another_card(shelf, monkeypatch):
    monkeypatch.setattr(module, "scorecard", lambda *arguments: shelf.cards.append(arguments) or dict(gold=[1.0]))

    def judged(corpus=CORPUS, seed=0, temperature=0.8):
        before = len(shelf.cards)
        start_scorecard(corpus, seed, temperature)
        return len(shelf.cards) > before

    assert judged() and not judged()
    assert judged(seed=1) and judged(temperature=0.5) and judged(replace(CORPUS, sha256="1" * 64))
    rows = dict(
        heldout_prompts=["Who?"], training_prompts=["Who?"], preferences=WRITTEN[:1], conversations=TALKS[:1]
    )  # fmt: skip
    for name, fewer in rows.items():
        monkeypatch.setattr(module.datasets, name, lambda fewer=fewer: fewer)
        assert judged() and not judged()
    for name in ("RewardConfig", "SFTConfig", "PretrainConfig"):
        plain = getattr(module, name)
        monkeypatch.setattr(module, name, lambda plain=plain, **changes: replace(plain(**changes), steps=7))
        assert judged() and not judged()
