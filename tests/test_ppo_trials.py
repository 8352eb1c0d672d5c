"""PPO's trials: a policy's scorecard, when it is taken, what a run is paid by, and the order of the runs."""

import copy
import json
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
    same,
    stored,
    user,
    weights,
)

from posttrain import ppo_trials as module
from posttrain.chat import render_prompt
from posttrain.evaluate import gold_score, lexicon, words_of
from posttrain.logprobs import pack
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.ppo_trials import ppo_trial, ppo_trials, scorecard
from posttrain.reward_model import RewardConfig, sample_answers

PROMPTS = ["Who?", "Where is the duke?", "Say", "Why so?", "Ay", "No"]
PRACTICE = ["What now?", "Is it so?"]
WORDS = frozenset("ay my lord sir".split())
TINY = PPOConfig(iterations=5, batch_size=4, max_new_tokens=6, lr=0.01, seed=3)


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch, tmp_path):
    empty_shelf(monkeypatch, tmp_path)
    monkeypatch.setattr(module.datasets, "heldout_prompts", lambda: PROMPTS)
    monkeypatch.setattr(module.datasets, "training_prompts", lambda: PRACTICE)


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
    assert json.loads(json.dumps(card)) == card


def test_the_kl_is_the_mean_over_responses_of_whole_distributions_at_the_temperature(monkeypatch):
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


# A trial


@pytest.fixture
def paid(monkeypatch):
    """Tiny models before PPO, and which reward models were asked for."""
    sft, reward_model = moved(dtype=torch.float32, config=LONG), judge(5, torch.float32, LONG)
    find_sft, _ = stored(sft)
    find_judge, asked = stored(reward_model)
    monkeypatch.setattr(module, "sft_model", find_sft)
    monkeypatch.setattr(module, "reward_model", find_judge)
    return sft, reward_model, asked


def noted_cards(monkeypatch, golds):
    """Let each card hold the next of these gold scores alone; return the list of what the cards are about."""
    cards = []

    def card(policy, *rest):
        cards.append((weights(policy), *rest))
        return dict(gold=golds[(len(cards) - 1) % len(golds)])

    monkeypatch.setattr(module, "scorecard", card)
    return cards


@pytest.mark.parametrize(
    ("iterations", "every", "expected"),
    [(5, 2, [0, 2, 4, 5]), (4, 2, [0, 2, 4]), (3, 5, [0, 3]), (2, 1, [0, 1, 2]), (1, 1, [0, 1])],
)
def test_cards_are_taken_before_every_so_many_rounds_and_at_the_end_once(monkeypatch, paid, iterations, every, expected):
    noted_cards(monkeypatch, [[1.0]])
    monkeypatch.setattr(module, "ppo_steps", lambda *arguments: (dict(score=i) for i in range(iterations)))
    history = ppo_trial(CORPUS, replace(TINY, iterations=iterations), every)
    assert [card["round"] for card in history["cards"]] == expected
    assert history["rounds"] == [dict(score=i) for i in range(iterations)]


def test_win_rates_are_against_the_first_card_which_draws_with_itself(monkeypatch, paid):
    noted_cards(monkeypatch, [[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0]])
    monkeypatch.setattr(module, "ppo_steps", lambda *arguments: iter([{}] * 2))
    history = ppo_trial(CORPUS, replace(TINY, iterations=2), 1)
    assert [card["win_rate"] for card in history["cards"]] == [0.5, 1.5 / 4, 1.0]


def test_each_card_is_about_the_policy_as_it_then_is(monkeypatch, paid):
    sft, reward_model, _ = paid
    cards = noted_cards(monkeypatch, [[1.0]])
    config = replace(TINY, temperature=0.6, normalised=False)
    history = ppo_trial(CORPUS, config, 2)
    by_hand, rounds, states = assemble(copy.deepcopy(sft), copy.deepcopy(reward_model), config), [], []
    for noted in ppo_steps(by_hand, PRACTICE, config):
        rounds.append(noted)
        states.append(weights(by_hand.policy))
    assert history["rounds"] == rounds and len(rounds) == 5
    expected = [weights(sft), states[1], states[3], states[4]]
    for (policy, reference, judged_by, words, seed, temperature), then in zip(cards, expected, strict=True):
        assert all(torch.equal(policy[name], value) for name, value in then.items())
        # The judge keeps its zero and unit, whatever the training is paid in
        assert same(weights(sft), reference) and same(weights(reward_model), judged_by)
        assert (words, seed, temperature) == (lexicon(CORPUS), 3, 0.6)
    assert not torch.equal(states[4]["head.weight"], states[3]["head.weight"])


def test_a_run_is_paid_by_the_reward_model_of_its_own_seed(monkeypatch, paid):
    noted_cards(monkeypatch, [[1.0]])
    for seed in (3, 0):
        ppo_trial(CORPUS, replace(TINY, iterations=1, seed=seed), 1)
    assert paid[2] == [(CORPUS, RewardConfig(seed=3)), (CORPUS, RewardConfig(seed=0))]


def test_a_trial_is_run_once_and_then_found_until_something_about_it_changes(monkeypatch, paid):
    cards = noted_cards(monkeypatch, [[1.0]])
    config, runs = replace(TINY, iterations=1), []

    def trained(*arguments):
        before = len(cards)
        runs.append(ppo_trial(*arguments))
        return len(cards) > before

    assert trained(CORPUS, config, 1) and not trained(CORPUS, config, 1) and runs[0] == runs[1]
    assert trained(CORPUS, config, 2)
    assert trained(CORPUS, replace(config, lr=0.02), 1)
    assert trained(replace(CORPUS, sha256="1" * 64), config, 1)
    for prompts in ("heldout_prompts", "training_prompts"):
        monkeypatch.setattr(module.datasets, prompts, lambda: ["Who?"])
        assert trained(CORPUS, config, 1)
    assert not trained(CORPUS, config, 1)


def test_a_whole_trial_runs_on_tiny_models(paid):
    history = ppo_trial(CORPUS, replace(TINY, iterations=2), 1)
    first, *later = history["cards"]
    sft, reward_model, _ = paid
    before = scorecard(sft, sft, reward_model, lexicon(CORPUS), TINY.seed, TINY.temperature)
    assert first == before | dict(round=0, win_rate=0.5) and first["kl"] == 0
    assert len(later) == 2 and all(card["kl"] > 0 and len(card["answers"]) == 6 for card in later)


# Trials side by side


def test_each_setting_gets_its_runs_back_in_order_with_seeds_counted_from_0(monkeypatch, paid):
    ran, asked = [], paid[2]

    def run_all(function, jobs, progress):
        # What the workers all want is there before the first of them starts
        assert function is ppo_trial and asked == [(CORPUS, RewardConfig(seed=seed)) for seed in range(3)]
        ran.extend(jobs)
        return [dict(lr=config.lr, seed=config.seed, every=every) for _, config, every in progress(jobs, total=len(jobs))]

    monkeypatch.setattr(module.workers, "run_all", run_all)
    settings = dict(b=replace(TINY, lr=0.2), a=replace(TINY, lr=0.1))
    histories = ppo_trials(CORPUS, settings, 3, 7, progress=lambda done, total: list(done)[:total])
    assert list(histories) == ["b", "a"]
    assert histories == {
        name: [dict(lr=config.lr, seed=seed, every=7) for seed in range(3)] for name, config in settings.items()
    }
    assert ran == [(CORPUS, replace(config, seed=seed), 7) for config in settings.values() for seed in range(3)]
