"""DPO's trials: what is judged, when and against what, for both kinds of run, and the order of the runs."""

import copy
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
    pair,
    same,
    seeded,
    user,
    weights,
)

from posttrain import dpo as dpo_module
from posttrain.lab import dpo_trials as module
from posttrain.lab import scorecard as scorecards
from posttrain.tokenizer import ALPHABET
from posttrain.dpo import DPOConfig, pair_logprobs, pair_report
from posttrain.stages import train_dpo
from posttrain.lab.dpo_trials import dpo_trial, dpo_trials, trial_inputs
from posttrain.lab.scorecard import lexicon
from posttrain.evaluate import win_rate
from posttrain.online_dpo import OnlineDPOConfig, online_dpo_rounds
from posttrain.stages import encode_split
from posttrain.pretrain import validation_loss
from posttrain.reward_model import RewardConfig
from posttrain.preference_pairs import encode_pairs
from posttrain.lab.scorecard import scorecard, start_scorecard
from posttrain.sft import SFTConfig

PROMPTS = ["Who?", "Where is the duke?", "Say", "Why so?", "Ay", "No"]
PRACTICE = ["What now?", "Is it so?", "Where?"]
WRITTEN = [
    pair("a", "Who?", "I am.", "You"),
    pair("b", "Where is he?", "At sea, my lord.", "At"),
    pair("c", "Why", "No.", "No, no, no"),
]
UNSEEN = [
    pair("u", "Is he here?", "Ay, he is.", "Nay"),
    pair("v", "Say", "So be it.", "Be it, be it"),
    pair("w", "Now", "Sir, I know it not. " * 9, "What"),  # longer than the context
    pair("x", "Go", "I go.", "Hm."),
]
TALKS = [
    dict(id=str(i), messages=[user(question), dict(role="assistant", content=answer)])
    for i, (question, answer) in enumerate([("Who?", "I, sir."), ("", "Ay"), ("Now", "No, no.")])
]
DPO = DPOConfig(steps=5, batch_size=2, muon_lr=0.02, adamw_lr=0.004, beta=0.1, replay=2, seed=3)
ONLINE = OnlineDPOConfig(rounds=5, prompts=2, samples=3, max_new_tokens=6, lr=0.01, beta=0.3, seed=3)
KINDS = pytest.mark.parametrize("config", [DPO, ONLINE], ids=["dpo", "online"])
# Validation text of more than 32 windows, no two of them alike
LETTERS = torch.randint(len(ALPHABET), (60_000,), generator=seeded()).tolist()
PLAY = replace(CORPUS, text="".join(ALPHABET[i] for i in LETTERS))


@pytest.fixture(autouse=True)
def small_data(monkeypatch, tmp_path):
    empty_shelf(monkeypatch, tmp_path)
    rows = dict(
        heldout_prompts=PROMPTS, training_prompts=PRACTICE, preferences=WRITTEN, heldout_preferences=UNSEEN, conversations=TALKS
    )  # fmt: skip
    for name, some in rows.items():
        monkeypatch.setattr(module.datasets, name, lambda some=some: some)


@pytest.fixture
def tried(monkeypatch):
    """Tiny models, given out themselves and not as copies, cards of gold scores alone, and who asked for what."""
    tried = types.SimpleNamespace(
        sft=moved(dtype=torch.float32, config=LONG), judge=judge(5, torch.float32, LONG), asked_sft=[], asked_judge=[],
        start=dict(gold=[0.0, 1.0, 2.0, 3.0]), started=[], cards=[], read=[],
    )  # fmt: skip

    def card(policy, reference, reward_model, words, seed, temperature=0.8):
        tried.cards.append((weights(policy), weights(reference), reward_model, words, seed, temperature))
        return dict(gold=[1.0, 1.0, 1.0, 4.0])

    def read(model, data, **options):
        tried.read.append((weights(model), data, options))
        return 2.5

    monkeypatch.setattr(module, "sft_model", lambda *asked: tried.asked_sft.append(asked) or (tried.sft, {}))
    monkeypatch.setattr(module, "reward_model", lambda *asked: tried.asked_judge.append(asked) or (tried.judge, {}))
    monkeypatch.setattr(module, "start_scorecard", lambda *asked: tried.started.append(asked) or tried.start)
    monkeypatch.setattr(module, "scorecard", card)
    monkeypatch.setattr(module, "validation_loss", read)
    return tried


def lasting(config, n):
    """The configuration with so many steps, or rounds."""
    return replace(config, **{"rounds" if isinstance(config, OnlineDPOConfig) else "steps": n})


def trained_by_hand(tried, config):
    """What each step noted, and the policies before the first step and after each."""
    policy, reference, reward_model = copy.deepcopy(tried.sft), copy.deepcopy(tried.sft), copy.deepcopy(tried.judge)
    if isinstance(config, OnlineDPOConfig):
        run = online_dpo_rounds(policy, reference, reward_model, PRACTICE, config)
    else:
        run = train_dpo(policy, reference, config)
    steps, policies = [], [copy.deepcopy(policy)]
    for noted in run:
        steps.append(noted)
        policies.append(copy.deepcopy(policy))
    return steps, policies


def walked(model, prompt, answer):
    """The log-probability of an answer at temperature 1, read by itself."""
    logprobs = model(torch.tensor([prompt + answer]))[0].double().log_softmax(-1)
    return sum(logprobs[len(prompt) + t - 1, token].item() for t, token in enumerate(answer))


# A trial


@KINDS
@pytest.mark.parametrize(
    ("n", "every", "expected"), [(5, 2, [0, 2, 4, 5]), (4, 2, [0, 2, 4]), (3, 5, [0, 3]), (2, 1, [0, 1, 2]), (1, 1, [0, 1])]
)
def test_held_out_pairs_are_read_before_every_so_many_steps_and_at_the_end_once(monkeypatch, tried, config, n, every, expected):
    for name in ("train_dpo", "online_dpo_rounds"):
        monkeypatch.setattr(module, name, lambda *arguments: (dict(loss=i) for i in range(n)))
    history = dpo_trial(CORPUS, lasting(config, n), every)
    assert [seen["step"] for seen in history["heldout"]] == expected
    assert history["steps"] == [dict(loss=i) for i in range(n)]
    assert len(history["cards"]) == 2 and len(tried.cards) == 1


@pytest.mark.parametrize("config", [DPO, replace(DPO, loss="kto"), ONLINE], ids=["dpo", "kto", "online"])
def test_a_trial_trains_as_its_configuration_says_and_notes_every_step(tried, config):
    history = dpo_trial(CORPUS, config, 2)
    steps, _ = trained_by_hand(tried, config)
    assert history["steps"] == steps and len(steps) == 5
    assert set(history) == {"steps", "heldout", "cards", "shakespeare_loss"}
    assert ("pairs" in steps[0]) == isinstance(config, OnlineDPOConfig)


@KINDS
def test_held_out_pairs_are_reported_of_the_policy_as_it_then_is_against_the_sft_model(tried, config):
    history = dpo_trial(CORPUS, config, 2)
    _, policies = trained_by_hand(tried, config)
    unseen = encode_pairs(UNSEEN, TOKENIZER, LONG.context)
    assert max(len(prompt) + len(chosen) for prompt, chosen, _ in unseen) == LONG.context
    known = [[walked(tried.sft, prompt, answer) for answer in answers] for prompt, *answers in unseen]
    for seen, step in zip(history["heldout"], (0, 2, 4, 5), strict=True):
        report = pair_report(pair_logprobs(policies[step], unseen, PAD), pair_logprobs(tried.sft, unseen, PAD), config.beta)
        assert seen == report | dict(step=step)
        # And by hand
        now = [[walked(policies[step], prompt, answer) for answer in answers] for prompt, *answers in unseen]
        rewards = [[config.beta * (p - q) for p, q in zip(*both)] for both in zip(now, known)]
        chosen, rejected = ([row[side] for row in rewards] for side in (0, 1))
        wanted = dict(
            chosen_reward=sum(chosen) / 4, rejected_reward=sum(rejected) / 4, margin=(sum(chosen) - sum(rejected)) / 4,
            accuracy=sum(c > r for c, r in rewards) / 4, chosen_logprob=sum(row[0] for row in now) / 4,
            rejected_logprob=sum(row[1] for row in now) / 4, step=step,
        )  # fmt: skip
        assert seen == pytest.approx(wanted, rel=1e-5, abs=1e-3)
    assert abs(history["heldout"][-1]["margin"]) > 0.01


@KINDS
def test_before_the_training_the_policy_is_the_sft_model_to_the_last_bit(tried, config):
    first, last = dpo_trial(CORPUS, lasting(config, 1), 3)["heldout"]
    assert all(first[name] == 0 for name in ("step", "chosen_reward", "rejected_reward", "margin", "accuracy"))
    assert last["chosen_reward"] != 0 and last["chosen_logprob"] != first["chosen_logprob"]


@KINDS
def test_the_cards_are_the_shared_one_and_one_of_the_trained_policy(tried, config):
    config = replace(config, temperature=0.6) if isinstance(config, OnlineDPOConfig) else config
    tried.start |= dict(answers=["Ay."], entropy=0.75)
    shared, before = copy.deepcopy(tried.start), weights(tried.sft)
    history = dpo_trial(CORPUS, config, 2)
    # Wins, draws and losses against 0, 1, 2, 3: whatever the training was drawn at, both cards are at 0.8
    assert history["cards"] == [shared, dict(gold=[1.0, 1.0, 1.0, 4.0], win_rate=2.5 / 4)]
    assert tried.start == shared and tried.started == [(CORPUS, 3)]
    ((policy, reference, judged_by, *rest),) = tried.cards
    assert rest == [lexicon(CORPUS), 3, 0.8] and judged_by is tried.judge
    _, policies = trained_by_hand(tried, config)
    assert same(policy, policies[-1]) and same(reference, tried.sft) and same(before, tried.sft)
    assert not torch.equal(policy["head.weight"], before["head.weight"])


@KINDS
def test_the_loss_on_shakespeare_is_that_of_the_trained_policy(tried, config):
    history = dpo_trial(PLAY, config, 2)
    ((policy, data, options),) = tried.read
    assert history["shakespeare_loss"] == 2.5 and same(policy, trained_by_hand(tried, config)[1][-1])
    assert torch.equal(data, encode_split(PLAY)[1]) and options == dict(windows=32)


@KINDS
def test_neither_the_sft_model_nor_the_judge_is_trained(tried, config):
    before = weights(tried.sft), weights(tried.judge)
    dpo_trial(CORPUS, config, 2)
    assert same(before[0], tried.sft) and same(before[1], tried.judge)
    assert all(parameter.grad is None for model in (tried.sft, tried.judge) for parameter in model.parameters())


@KINDS
def test_start_and_judge_are_the_sft_model_and_the_reward_model_of_the_runs_own_seed(tried, config):
    for seed in (3, 0):
        dpo_trial(CORPUS, lasting(replace(config, seed=seed), 1), 1)
    assert tried.asked_judge == [(CORPUS, RewardConfig(seed=3)), (CORPUS, RewardConfig(seed=0))]
    assert tried.asked_sft == [(CORPUS, SFTConfig(seed=3)), (CORPUS, SFTConfig(seed=0))]
    assert tried.started == [(CORPUS, 3), (CORPUS, 0)] and [seed for *_, seed, _ in tried.cards] == [3, 0]


@KINDS
def test_a_whole_trial_runs_on_tiny_models(monkeypatch, tried, config):
    for name in ("sft_model", "reward_model"):
        monkeypatch.setattr(scorecards, name, getattr(module, name))
    for name, own in dict(start_scorecard=start_scorecard, scorecard=scorecard, validation_loss=validation_loss).items():
        monkeypatch.setattr(module, name, own)
    history = dpo_trial(PLAY, lasting(config, 2), 1)
    policy, words = trained_by_hand(tried, lasting(config, 2))[1][-1], lexicon(PLAY)
    before, after = history["cards"]
    assert before == scorecard(tried.sft, tried.sft, tried.judge, words, 3) and before["kl"] == 0
    expected = scorecard(policy, tried.sft, tried.judge, words, 3)
    assert after == expected | dict(win_rate=win_rate(expected["gold"], before["gold"])) and after["kl"] > 0
    validation = encode_split(PLAY)[1]
    assert history["shakespeare_loss"] == validation_loss(policy, validation, windows=32)
    assert history["shakespeare_loss"] != validation_loss(policy, validation)


# What is stored


@KINDS
def test_a_trial_is_run_once_and_then_found_until_something_about_it_changes(monkeypatch, tried, config):
    config, runs = lasting(config, 1), []

    def trained(corpus=CORPUS, config=config, every=1):
        before = [len(asked) for asked in (tried.cards, tried.asked_sft, tried.asked_judge, tried.started, tried.read)]
        runs.append(dpo_trial(corpus, config, every))
        after = [len(asked) for asked in (tried.cards, tried.asked_sft, tried.asked_judge, tried.started, tried.read)]
        assert after in (before, [n + 1 for n in before])
        return after != before

    assert trained() and not trained() and runs[0] == runs[1]
    assert trained(every=2)
    assert trained(config=replace(config, beta=0.2)) and trained(config=replace(config, seed=1))
    assert trained(replace(CORPUS, sha256="1" * 64))
    rows = dict(
        heldout_prompts=["Who?"], training_prompts=PRACTICE[:2], preferences=WRITTEN[:2], heldout_preferences=UNSEEN[:2],
        conversations=TALKS[:2],
    )  # fmt: skip
    for name, fewer in rows.items():
        monkeypatch.setattr(module.datasets, name, lambda fewer=fewer: fewer)
        assert trained() and not trained()
    for owner, name in ((module, "RewardConfig"), (dpo_module, "SFTConfig"), (dpo_module, "PretrainConfig")):
        plain = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda plain=plain, **changes: replace(plain(**changes), steps=7))
        assert trained() and not trained()


def test_a_run_on_written_pairs_and_one_on_own_answers_are_two_stages(monkeypatch, tried, tmp_path):
    assert trial_inputs(CORPUS, DPO) != trial_inputs(CORPUS, ONLINE)
    assert trial_inputs(CORPUS, DPO) == trial_inputs(CORPUS, replace(DPO))
    for config in (DPO, ONLINE):
        dpo_trial(CORPUS, lasting(config, 1), 1)
    assert len(tried.cards) == len(list(tmp_path.glob("dpo-trial-*.json"))) == 2
    # By what kind of run it is, too, and not by its settings' names alone
    monkeypatch.setattr(module, "dpo_inputs", lambda *arguments: {})
    assert trial_inputs(CORPUS, DPO) != trial_inputs(CORPUS, ONLINE)


# Trials side by side


def test_each_setting_gets_its_runs_back_in_order_with_seeds_counted_from_0(monkeypatch, tried):
    ran, found = [], []

    def run_all(function, jobs, progress):
        # What the workers all want is there before the first of them starts
        assert function is dpo_trial and found == [CORPUS]
        ran.extend(jobs)
        return [dict(beta=config.beta, seed=config.seed, every=every) for _, config, every in progress(jobs, total=len(jobs))]

    monkeypatch.setattr(module, "base_model", found.append)
    monkeypatch.setattr(module.workers, "run_all", run_all)
    settings = dict(b=replace(DPO, beta=0.2), online=ONLINE, a=replace(DPO, beta=0.1))
    histories = dpo_trials(CORPUS, settings, 3, 7, progress=lambda done, total: list(done)[:total])
    assert list(histories) == ["b", "online", "a"]
    assert histories == {
        name: [dict(beta=config.beta, seed=seed, every=7) for seed in range(3)] for name, config in settings.items()
    }
    assert ran == [(CORPUS, replace(config, seed=seed), 7) for config in settings.values() for seed in range(3)]


@pytest.mark.parametrize("every", [0, -2])
def test_reading_every_less_than_one_step_is_refused_before_anything_is_trained(monkeypatch, tried, every):
    monkeypatch.setattr(module, "base_model", tried.started.append)
    monkeypatch.setattr(module.workers, "run_all", lambda *arguments: tried.started.append(arguments))
    with pytest.raises(ValueError, match=f"^every is {every}: use at least 1 step"):
        dpo_trials(CORPUS, dict(a=DPO, b=ONLINE), 2, every)
    assert tried.started == tried.asked_sft == tried.asked_judge == []
