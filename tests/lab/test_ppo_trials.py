"""PPO's trials: where they start, when cards are taken, what a run is paid by, and the order of the runs."""

import copy
import types
from dataclasses import replace

import pytest
import torch
from tiny import (
    CORPUS,
    LONG,
    empty_shelf,
    judge,
    moved,
    same,
    seeded,
    stored,
    weights,
)

from posttrain.lab import ppo_trials as module
from posttrain.lab import scorecard as scorecards
from posttrain.tokenizer import ALPHABET
from posttrain.lab.scorecard import lexicon
from posttrain.evaluate import win_rate
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.lab.ppo_trials import ppo_trial, ppo_trials
from posttrain.stages import encode_split
from posttrain.pretrain import validation_loss
from posttrain.reward_model import RewardConfig
from posttrain.lab.scorecard import scorecard, start_scorecard

PROMPTS = ["Who?", "Where is the duke?", "Say", "Why so?", "Ay", "No"]
PRACTICE = ["What now?", "Is it so?"]
TINY = PPOConfig(iterations=5, batch_size=4, max_new_tokens=6, lr=0.01, seed=3)
# Validation text of more than 32 windows, no two of them alike
LETTERS = torch.randint(len(ALPHABET), (60_000,), generator=seeded()).tolist()
PLAY = replace(CORPUS, text="".join(ALPHABET[i] for i in LETTERS))


@pytest.fixture(autouse=True)
def few_prompts(monkeypatch, tmp_path):
    empty_shelf(monkeypatch, tmp_path)
    monkeypatch.setattr(module.datasets, "heldout_prompts", lambda: PROMPTS)
    monkeypatch.setattr(module.datasets, "training_prompts", lambda: PRACTICE)


# A trial


@pytest.fixture
def paid(monkeypatch):
    """Tiny models before PPO, their shared card, who asked for which, and what was read at the end."""
    paid = types.SimpleNamespace(
        sft=moved(dtype=torch.float32, config=LONG), judge=judge(5, torch.float32, LONG), start=dict(gold=[1.0]),
        started=[], read=[],
    )  # fmt: skip
    find_sft, paid.asked_sft = stored(paid.sft)
    find_judge, paid.asked = stored(paid.judge)
    monkeypatch.setattr(module, "sft_model", find_sft)
    monkeypatch.setattr(module, "reward_model", find_judge)
    monkeypatch.setattr(module, "start_scorecard", lambda *arguments: paid.started.append(arguments) or paid.start)

    def read(model, data, **options):
        paid.read.append((weights(model), data, options))
        return 2.5

    monkeypatch.setattr(module, "validation_loss", read)
    return paid


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
    paid.start["gold"] = [0.0, 1.0, 2.0, 3.0]
    noted_cards(monkeypatch, [[1.0, 1.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0]])
    monkeypatch.setattr(module, "ppo_steps", lambda *arguments: iter([{}] * 2))
    history = ppo_trial(CORPUS, replace(TINY, iterations=2), 1)
    assert [card["win_rate"] for card in history["cards"]] == [0.5, 1.5 / 4, 1.0]


def test_the_first_card_is_the_shared_one_of_the_seed_and_the_temperature(monkeypatch, paid):
    cards = noted_cards(monkeypatch, [[2.0]])
    paid.start |= dict(answers=["Ay."], kl=0.0, entropy=0.75)
    shared = copy.deepcopy(paid.start)
    history = ppo_trial(CORPUS, replace(TINY, iterations=2, temperature=0.6), 1)
    assert history["cards"][0] == shared | dict(round=0, win_rate=0.5)
    assert paid.started == [(CORPUS, 3, 0.6)] and len(cards) == 2  # no second look at the SFT model
    assert paid.start == shared


def test_the_loss_on_shakespeare_is_that_of_the_trained_policy(monkeypatch, paid):
    noted_cards(monkeypatch, [[1.0]])
    history = ppo_trial(PLAY, TINY, 5)
    by_hand = assemble(copy.deepcopy(paid.sft), copy.deepcopy(paid.judge), TINY)
    list(ppo_steps(by_hand, PRACTICE, TINY))
    ((policy, data, options),) = paid.read
    assert history["shakespeare_loss"] == 2.5 and same(policy, by_hand.policy) and not same(policy, paid.sft)
    assert torch.equal(data, encode_split(PLAY)[1]) and options == dict(windows=32)


def test_each_card_is_about_the_policy_as_it_then_is(monkeypatch, paid):
    sft, reward_model = paid.sft, paid.judge
    cards = noted_cards(monkeypatch, [[1.0]])
    config = replace(TINY, temperature=0.6, normalised=False)
    history = ppo_trial(CORPUS, config, 2)
    by_hand, rounds, states = assemble(copy.deepcopy(sft), copy.deepcopy(reward_model), config), [], []
    for noted in ppo_steps(by_hand, PRACTICE, config):
        rounds.append(noted)
        states.append(weights(by_hand.policy))
    assert history["rounds"] == rounds and len(rounds) == 5
    expected = [states[1], states[3], states[4]]
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
    assert paid.asked == [(CORPUS, RewardConfig(seed=3)), (CORPUS, RewardConfig(seed=0))]
    assert paid.started == [(CORPUS, 3, 0.8), (CORPUS, 0, 0.8)]


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


def test_a_whole_trial_runs_on_tiny_models(monkeypatch, paid):
    for name in ("sft_model", "reward_model"):
        monkeypatch.setattr(scorecards, name, getattr(module, name))
    monkeypatch.setattr(module, "start_scorecard", start_scorecard)
    monkeypatch.setattr(module, "validation_loss", validation_loss)
    config = replace(TINY, iterations=2)
    history = ppo_trial(PLAY, config, 1)
    assert set(history) == {"rounds", "cards", "shakespeare_loss"} and len(history["rounds"]) == 2
    first, *later = history["cards"]
    before = scorecard(paid.sft, paid.sft, paid.judge, lexicon(PLAY), TINY.seed, TINY.temperature)
    assert first == before | dict(round=0, win_rate=0.5) and first["kl"] == 0
    assert len(later) == 2 and all(card["kl"] > 0 and len(card["answers"]) == 6 for card in later)
    assert all(card["win_rate"] == win_rate(card["gold"], before["gold"]) for card in later)
    by_hand = assemble(copy.deepcopy(paid.sft), copy.deepcopy(paid.judge), config)
    list(ppo_steps(by_hand, PRACTICE, config))
    validation = encode_split(PLAY)[1]
    assert history["shakespeare_loss"] == validation_loss(by_hand.policy, validation, windows=32)
    assert history["shakespeare_loss"] != validation_loss(by_hand.policy, validation)


# Trials side by side


def test_each_setting_gets_its_runs_back_in_order_with_seeds_counted_from_0(monkeypatch, paid):
    ran, found = [], []

    def run_all(function, jobs, progress):
        # What the workers all want is there before the first of them starts
        assert function is ppo_trial and found == [CORPUS]
        ran.extend(jobs)
        return [dict(lr=config.lr, seed=config.seed, every=every) for _, config, every in progress(jobs, total=len(jobs))]

    monkeypatch.setattr(module, "base_model", found.append)
    monkeypatch.setattr(module.workers, "run_all", run_all)
    settings = dict(b=replace(TINY, lr=0.2), a=replace(TINY, lr=0.1))
    histories = ppo_trials(CORPUS, settings, 3, 7, progress=lambda done, total: list(done)[:total])
    assert list(histories) == ["b", "a"]
    assert histories == {
        name: [dict(lr=config.lr, seed=seed, every=7) for seed in range(3)] for name, config in settings.items()
    }
    assert ran == [(CORPUS, replace(config, seed=seed), 7) for config in settings.values() for seed in range(3)]


@pytest.mark.parametrize("every", [0, -2])
def test_cards_every_less_than_one_round_are_refused_before_anything_is_trained(monkeypatch, paid, every):
    monkeypatch.setattr(module, "base_model", paid.started.append)
    monkeypatch.setattr(module.workers, "run_all", lambda *arguments: paid.started.append(arguments))
    with pytest.raises(ValueError, match=f"^every is {every}: use at least 1 round"):
        ppo_trials(CORPUS, dict(a=TINY), 2, every)
    assert paid.started == paid.asked == []
