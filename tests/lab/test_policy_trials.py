"""Policies on trial: where they start, when they are judged, by whom and against what;
and best of n.
"""

import copy
import json
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
    stored,
    user,
    weights,
)

from posttrain.best_of_n import best_of_n, best_of_n_kl, draw_answers
from posttrain.data.corpus import ALPHABET
from posttrain.dpo import DPOConfig, dpo_steps, pair_logprobs, pair_report
from posttrain.evaluate import win_rate
from posttrain.keep.store import UNKEPT, Stage
from posttrain.lab import policy_trials as module
from posttrain.lab import scorecard as scorecards
from posttrain.lab.policy_trials import (
    SIZES,
    PolicyTrial,
    base_trial,
    best_of_n_trial,
    dpo_trial,
    ppo_trial,
)
from posttrain.lab.ppo_variants import NoValues, variant
from posttrain.lab.scorecard import (
    against,
    judge_answers,
    lexicon,
    scorecard,
    start_scorecard,
)
from posttrain.online_dpo import OnlineDPOConfig, online_dpo_rounds
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.preference_pairs import encode_pairs
from posttrain.pretrain import validation_loss
from posttrain.reward_model import RewardConfig
from posttrain.sft import SFTConfig
from posttrain.stages import encode_split

PROMPTS = ["Who?", "Where is the duke?", "Say", "Why so?", "Ay", "No"]
PRACTICE = ["What now?", "Is it so?", "Where?"]
TINY = PPOConfig(iterations=5, batch_size=4, max_new_tokens=6, lr=0.01, seed=3)
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
OTHERS = [
    pair("o", "Who goes?", "A friend, sir.", "No friend"),
    pair("p", "What is it?", "It is a rose.", "A"),
]
TALKS = [
    dict(id=str(i), messages=[user(question), dict(role="assistant", content=answer)])
    for i, (question, answer) in enumerate(
        [("Who?", "I, sir."), ("", "Ay"), ("Now", "No, no.")]
    )
]
DPO = DPOConfig(steps=5, batch_size=2, lr=0.004, beta=0.1, seed=3)
ONLINE = OnlineDPOConfig(
    rounds=5, prompts=2, samples=3, max_new_tokens=6, lr=0.01, beta=0.3, seed=3
)
KINDS = pytest.mark.parametrize("config", [DPO, ONLINE], ids=["dpo", "online"])
# Validation text of more than 32 windows, no two of them alike
LETTERS = torch.randint(len(ALPHABET), (60_000,), generator=seeded()).tolist()
PLAY = replace(CORPUS, text="".join(ALPHABET[i] for i in LETTERS))


@pytest.fixture(autouse=True)
def small_data(monkeypatch, tmp_path):
    empty_shelf(monkeypatch, tmp_path)
    rows = dict(
        heldout_prompts=PROMPTS,
        training_prompts=PRACTICE,
        preferences=WRITTEN,
        elsewhere_preferences=OTHERS,
        heldout_preferences=UNSEEN,
        heldout_elsewhere_preferences=OTHERS,
        conversations=TALKS,
    )
    for name, some in rows.items():
        monkeypatch.setattr(module.datasets, name, lambda some=some: some)


def ppo(corpus, config, every):
    return ppo_trial(corpus, PolicyTrial(replace(config, seed=99), every), config.seed)


def dpo(corpus, config, every):
    return dpo_trial(corpus, PolicyTrial(replace(config, seed=99), every), config.seed)


def start_from(monkeypatch, sft, judge):
    """Let the scorecard of the start be that of these models, and kept nowhere."""
    for name in ("sft_stage", "reward_stage"):
        monkeypatch.setattr(
            scorecards, name, lambda *asked: Stage("none", UNKEPT, {}, {})
        )
    monkeypatch.setattr(scorecards, "language_model", lambda stage: copy.deepcopy(sft))
    monkeypatch.setattr(scorecards, "scoring_model", lambda stage: copy.deepcopy(judge))


# PPO


@pytest.fixture
def paid(monkeypatch):
    """Tiny models before PPO, their shared card, who asked for which, and what was read
    at the end.
    """
    paid = types.SimpleNamespace(
        sft=moved(dtype=torch.float32, config=LONG),
        judge=judge(5, torch.float32, LONG),
        start=dict(gold=[1.0]),
        started=[],
        read=[],
    )
    find_sft, paid.asked_sft = stored(paid.sft)
    find_judge, paid.asked = stored(paid.judge)
    monkeypatch.setattr(module, "sft_model", find_sft)
    monkeypatch.setattr(module, "reward_model", find_judge)
    monkeypatch.setattr(
        module,
        "start_scorecard",
        lambda *arguments: paid.started.append(arguments) or paid.start,
    )

    def read(model, data, **options):
        paid.read.append((weights(model), data, options))
        return 2.5

    monkeypatch.setattr(module, "validation_loss", read)
    return paid


def noted_cards(monkeypatch, golds):
    """Let each card hold the next of these gold scores alone; return the list of what
    the cards are about.
    """
    cards = []

    def card(policy, *rest):
        cards.append((weights(policy), *rest))
        return dict(gold=golds[(len(cards) - 1) % len(golds)])

    monkeypatch.setattr(module, "scorecard", card)
    return cards


@pytest.mark.parametrize(
    ("iterations", "every", "expected"),
    [
        (5, 2, [0, 2, 4, 5]),
        (4, 2, [0, 2, 4]),
        (3, 5, [0, 3]),
        (2, 1, [0, 1, 2]),
        (1, 1, [0, 1]),
    ],
)
def test_cards_are_taken_before_every_so_many_rounds_and_at_the_end_once(
    monkeypatch, paid, iterations, every, expected
):
    noted_cards(monkeypatch, [[1.0]])
    monkeypatch.setattr(
        module,
        "ppo_steps",
        lambda *arguments: (dict(score=i) for i in range(iterations)),
    )
    history = ppo(CORPUS, replace(TINY, iterations=iterations), every)
    assert [card["round"] for card in history["cards"]] == expected
    assert history["rounds"] == [dict(score=i) for i in range(iterations)]


def test_each_of_the_first_rounds_is_judged_where_the_trial_says_so(monkeypatch, paid):
    noted_cards(monkeypatch, [[1.0]])
    monkeypatch.setattr(
        module, "ppo_steps", lambda *arguments: (dict(score=i) for i in range(5))
    )
    trial = module.PolicyTrial(replace(TINY, iterations=5), every=4, early=2)
    cards = module.ppo_trial(CORPUS, trial, 3)["cards"]
    assert [card["round"] for card in cards] == [0, 1, 2, 4, 5]


def test_win_rates_are_against_the_first_card_which_draws_with_itself(
    monkeypatch, paid
):
    paid.start["gold"] = [0.0, 1.0, 2.0, 3.0]
    noted_cards(monkeypatch, [[1.0, 1.0, 1.0, 1.0], [4.0, 4.0, 4.0, 4.0]])
    monkeypatch.setattr(module, "ppo_steps", lambda *arguments: iter([{}] * 2))
    history = ppo(CORPUS, replace(TINY, iterations=2), 1)
    assert [card["win_rate"] for card in history["cards"]] == [0.5, 1.5 / 4, 1.0]


def test_the_first_card_is_the_shared_one_of_the_seed_and_the_temperature(
    monkeypatch, paid
):
    cards = noted_cards(monkeypatch, [[2.0]])
    paid.start |= dict(answers=["Ay."], kl=0.0, entropy=0.75)
    shared = copy.deepcopy(paid.start)
    history = ppo(CORPUS, replace(TINY, iterations=2, temperature=0.6), 1)
    assert history["cards"][0] == shared | dict(round=0, win_rate=0.5, tied=1.0)
    assert (
        paid.started == [(CORPUS, 3, 0.6)] and len(cards) == 2
    )  # no second look at the SFT model
    assert paid.start == shared


def test_the_loss_on_shakespeare_is_that_of_the_trained_policy_of_ppo(
    monkeypatch, paid
):
    noted_cards(monkeypatch, [[1.0]])
    history = ppo(PLAY, TINY, 5)
    by_hand = assemble(copy.deepcopy(paid.sft), copy.deepcopy(paid.judge))
    list(ppo_steps(by_hand, PRACTICE, TINY))
    ((policy, data, options),) = paid.read
    assert (
        history["shakespeare_loss"] == 2.5
        and same(policy, by_hand.policy)
        and not same(policy, paid.sft)
    )
    assert torch.equal(data, encode_split(PLAY)[1]) and options == dict(windows=32)


def test_each_card_is_about_the_policy_as_it_then_is(monkeypatch, paid):
    sft, reward_model = paid.sft, paid.judge
    cards = noted_cards(monkeypatch, [[1.0]])
    config = replace(TINY, temperature=0.6)
    history = ppo(CORPUS, config, 2)
    by_hand, rounds, states = (
        assemble(copy.deepcopy(sft), copy.deepcopy(reward_model)),
        [],
        [],
    )
    for noted in ppo_steps(by_hand, PRACTICE, config):
        rounds.append(noted)
        states.append(weights(by_hand.policy))
    assert history["rounds"] == rounds and len(rounds) == 5
    expected = [states[1], states[3], states[4]]
    for (policy, reference, judged_by, words, seed, temperature), then in zip(
        cards, expected, strict=True
    ):
        assert all(torch.equal(policy[name], value) for name, value in then.items())
        assert same(weights(sft), reference) and same(weights(reward_model), judged_by)
        assert (words, seed, temperature) == (lexicon(CORPUS), 3, 0.6)
    assert not torch.equal(states[4]["head.weight"], states[3]["head.weight"])


def test_a_run_is_paid_by_the_reward_model_of_its_own_seed(monkeypatch, paid):
    noted_cards(monkeypatch, [[1.0]])
    for seed in (3, 0):
        ppo(CORPUS, replace(TINY, iterations=1, seed=seed), 1)
    assert paid.asked == [
        (CORPUS, RewardConfig(seed=3)),
        (CORPUS, RewardConfig(seed=0)),
    ]
    assert paid.started == [(CORPUS, 3, 0.8), (CORPUS, 0, 0.8)]


def test_a_whole_trial_runs_on_tiny_models_of_ppo(monkeypatch, paid):
    start_from(monkeypatch, paid.sft, paid.judge)
    monkeypatch.setattr(module, "start_scorecard", start_scorecard)
    monkeypatch.setattr(module, "validation_loss", validation_loss)
    config = replace(TINY, iterations=2)
    history = ppo(PLAY, config, 1)
    assert (
        set(history) == {"rounds", "cards", "shakespeare_loss"}
        and len(history["rounds"]) == 2
    )
    first, *later = history["cards"]
    before = scorecard(
        paid.sft, paid.sft, paid.judge, lexicon(PLAY), TINY.seed, TINY.temperature
    )
    assert first == before | dict(round=0, win_rate=0.5, tied=1.0)
    assert first["kl"] == 0
    assert len(later) == 2 and all(card["kl"] > 0 for card in later)
    # What there is of each prompt is kept of the first card and of the last
    assert (
        len(later[1]["answers"]) == 6
        and not {"answers", "scores", "gold"} & later[0].keys()
    )
    assert later[1]["win_rate"] == win_rate(later[1]["gold"], before["gold"])
    by_hand = assemble(copy.deepcopy(paid.sft), copy.deepcopy(paid.judge))
    list(ppo_steps(by_hand, PRACTICE, config))
    validation = encode_split(PLAY)[1]
    assert history["shakespeare_loss"] == validation_loss(
        by_hand.policy, validation, windows=32
    )
    assert history["shakespeare_loss"] != validation_loss(by_hand.policy, validation)


# DPO


@pytest.fixture
def tried(monkeypatch):
    """Tiny models, given out themselves and not as copies, cards of gold scores alone,
    and who asked for what.
    """
    tried = types.SimpleNamespace(
        sft=moved(dtype=torch.float32, config=LONG),
        judge=judge(5, torch.float32, LONG),
        asked_sft=[],
        asked_judge=[],
        start=dict(gold=[0.0, 1.0, 2.0, 3.0]),
        started=[],
        cards=[],
        read=[],
    )

    def card(policy, reference, reward_model, words, seed, temperature=0.8):
        tried.cards.append(
            (
                weights(policy),
                weights(reference),
                reward_model,
                words,
                seed,
                temperature,
            )
        )
        return dict(gold=[1.0, 1.0, 1.0, 4.0])

    def read(model, data, **options):
        tried.read.append((weights(model), data, options))
        return 2.5

    monkeypatch.setattr(
        module,
        "sft_model",
        lambda *asked: tried.asked_sft.append(asked) or (tried.sft, {}),
    )
    monkeypatch.setattr(
        module,
        "reward_model",
        lambda *asked: tried.asked_judge.append(asked) or (tried.judge, {}),
    )
    monkeypatch.setattr(
        module,
        "start_scorecard",
        lambda *asked: tried.started.append(asked) or tried.start,
    )
    monkeypatch.setattr(module, "scorecard", card)
    monkeypatch.setattr(module, "validation_loss", read)
    return tried


def lasting(config, n):
    """The configuration with so many steps, or rounds."""
    return replace(
        config, **{"rounds" if isinstance(config, OnlineDPOConfig) else "steps": n}
    )


def trained_by_hand(tried, config, rows=None):
    """What each step noted, and the policies before the first step and after each."""
    policy, reference, reward_model = (
        copy.deepcopy(tried.sft),
        copy.deepcopy(tried.sft),
        copy.deepcopy(tried.judge),
    )
    if isinstance(config, OnlineDPOConfig):
        run = online_dpo_rounds(policy, reference, reward_model, PRACTICE, config)
    else:
        pairs = encode_pairs(rows or WRITTEN, TOKENIZER, LONG.context)
        run = dpo_steps(policy, reference, pairs, config)
    steps, policies = [], [copy.deepcopy(policy)]
    for noted in run:
        steps.append(noted)
        policies.append(copy.deepcopy(policy))
    return steps, policies


def walked(model, prompt, answer):
    """The log-probability of an answer at temperature 1, read by itself."""
    logprobs = model(torch.tensor([prompt + answer]))[0].double().log_softmax(-1)
    return sum(
        logprobs[len(prompt) + t - 1, token].item() for t, token in enumerate(answer)
    )


# A trial


@KINDS
@pytest.mark.parametrize(
    ("n", "every", "expected"),
    [
        (5, 2, [0, 2, 4, 5]),
        (4, 2, [0, 2, 4]),
        (3, 5, [0, 3]),
        (2, 1, [0, 1, 2]),
        (1, 1, [0, 1]),
    ],
)
def test_held_out_pairs_are_read_before_every_so_many_steps_and_at_the_end_once(
    monkeypatch, tried, config, n, every, expected
):
    for name in ("dpo_steps", "online_dpo_rounds"):
        monkeypatch.setattr(
            module, name, lambda *arguments: (dict(loss=i) for i in range(n))
        )
    history = dpo(CORPUS, lasting(config, n), every)
    for pairs in ("heldout", "elsewhere"):
        assert [seen["step"] for seen in history[pairs]] == expected
    assert history["steps"] == [dict(loss=i) for i in range(n)]
    assert len(history["cards"]) == 2 and len(tried.cards) == 1


@pytest.mark.parametrize(
    "config", [DPO, replace(DPO, loss="kto"), ONLINE], ids=["dpo", "kto", "online"]
)
def test_a_trial_trains_as_its_configuration_says_and_notes_every_step(tried, config):
    history = dpo(CORPUS, config, 2)
    steps, _ = trained_by_hand(tried, config)
    assert history["steps"] == steps and len(steps) == 5
    assert set(history) == {
        "steps",
        "heldout",
        "elsewhere",
        "cards",
        "shakespeare_loss",
    }
    assert ("pairs" in steps[0]) == isinstance(config, OnlineDPOConfig)


@KINDS
def test_held_out_pairs_are_reported_of_the_policy_as_it_then_is_against_the_sft_model(
    tried, config
):
    history, sft = dpo(CORPUS, config, 2), tried.sft
    _, policies = trained_by_hand(tried, config)
    unseen = encode_pairs(UNSEEN, TOKENIZER, LONG.context)
    assert (
        max(len(prompt) + len(chosen) for prompt, chosen, _ in unseen) == LONG.context
    )
    known = [
        [walked(tried.sft, prompt, answer) for answer in answers]
        for prompt, *answers in unseen
    ]
    for seen, step in zip(history["heldout"], (0, 2, 4, 5), strict=True):
        report = pair_report(
            pair_logprobs(policies[step], unseen, PAD),
            pair_logprobs(tried.sft, unseen, PAD),
            config.beta,
        )
        assert seen == report | dict(step=step)
        # And by hand
        now = [
            [walked(policies[step], prompt, answer) for answer in answers]
            for prompt, *answers in unseen
        ]
        rewards = [
            [config.beta * (p - q) for p, q in zip(*both)] for both in zip(now, known)
        ]
        chosen, rejected = ([row[side] for row in rewards] for side in (0, 1))
        wanted = dict(
            chosen_reward=sum(chosen) / 4,
            rejected_reward=sum(rejected) / 4,
            margin=(sum(chosen) - sum(rejected)) / 4,
            accuracy=sum(c > r for c, r in rewards) / 4,
            chosen_logprob=sum(row[0] for row in now) / 4,
            rejected_logprob=sum(row[1] for row in now) / 4,
            step=step,
        )
        assert seen == pytest.approx(wanted, rel=1e-5, abs=1e-3)
    assert abs(history["heldout"][-1]["margin"]) > 0.01
    others = encode_pairs(OTHERS, TOKENIZER, LONG.context)
    for seen, step in zip(history["elsewhere"], (0, 2, 4, 5), strict=True):
        read = [pair_logprobs(model, others, PAD) for model in (policies[step], sft)]
        assert seen == pair_report(*read, config.beta) | dict(step=step)


@KINDS
def test_before_the_training_the_policy_is_the_sft_model_to_the_last_bit(tried, config):
    first, last = dpo(CORPUS, lasting(config, 1), 3)["heldout"]
    assert all(
        first[name] == 0
        for name in ("step", "chosen_reward", "rejected_reward", "margin", "accuracy")
    )
    assert (
        last["chosen_reward"] != 0 and last["chosen_logprob"] != first["chosen_logprob"]
    )


@KINDS
def test_the_cards_are_the_shared_one_and_one_of_the_trained_policy(tried, config):
    config = (
        replace(config, temperature=0.6)
        if isinstance(config, OnlineDPOConfig)
        else config
    )
    tried.start |= dict(answers=["Ay."], entropy=0.75)
    shared, before = copy.deepcopy(tried.start), weights(tried.sft)
    history = dpo(CORPUS, config, 2)
    # Wins, draws and losses against 0, 1, 2, 3: whatever the training was drawn at,
    # both cards are at 0.8
    assert history["cards"] == [
        shared,
        dict(gold=[1.0, 1.0, 1.0, 4.0], win_rate=2.5 / 4, tied=1 / 4),
    ]
    assert tried.start == shared and tried.started == [(CORPUS, 3)]
    ((policy, reference, judged_by, *rest),) = tried.cards
    assert rest == [lexicon(CORPUS), 3, 0.8] and judged_by is tried.judge
    _, policies = trained_by_hand(tried, config)
    assert (
        same(policy, policies[-1])
        and same(reference, tried.sft)
        and same(before, tried.sft)
    )
    assert not torch.equal(policy["head.weight"], before["head.weight"])


@KINDS
def test_the_loss_on_shakespeare_is_that_of_the_trained_policy_of_dpo(tried, config):
    history = dpo(PLAY, config, 2)
    ((policy, data, options),) = tried.read
    assert history["shakespeare_loss"] == 2.5 and same(
        policy, trained_by_hand(tried, config)[1][-1]
    )
    assert torch.equal(data, encode_split(PLAY)[1]) and options == dict(windows=32)


@KINDS
def test_neither_the_sft_model_nor_the_judge_is_trained(tried, config):
    before = weights(tried.sft), weights(tried.judge)
    dpo(CORPUS, config, 2)
    assert same(before[0], tried.sft) and same(before[1], tried.judge)
    assert all(
        parameter.grad is None
        for model in (tried.sft, tried.judge)
        for parameter in model.parameters()
    )


@KINDS
def test_start_and_judge_are_the_sft_model_and_the_reward_model_of_the_runs_own_seed(
    tried, config
):
    for seed in (3, 0):
        dpo(CORPUS, lasting(replace(config, seed=seed), 1), 1)
    assert tried.asked_judge == [
        (CORPUS, RewardConfig(seed=3)),
        (CORPUS, RewardConfig(seed=0)),
    ]
    assert tried.asked_sft == [(CORPUS, SFTConfig(seed=3)), (CORPUS, SFTConfig(seed=0))]
    assert tried.started == [(CORPUS, 3), (CORPUS, 0)] and [
        seed for *_, seed, _ in tried.cards
    ] == [3, 0]


@KINDS
def test_a_whole_trial_runs_on_tiny_models_of_dpo(monkeypatch, tried, config):
    start_from(monkeypatch, tried.sft, tried.judge)
    for name, own in dict(
        start_scorecard=start_scorecard,
        scorecard=scorecard,
        validation_loss=validation_loss,
    ).items():
        monkeypatch.setattr(module, name, own)
    history = dpo(PLAY, lasting(config, 2), 1)
    policy, words = trained_by_hand(tried, lasting(config, 2))[1][-1], lexicon(PLAY)
    before, after = history["cards"]
    assert (
        before == scorecard(tried.sft, tried.sft, tried.judge, words, 3)
        and before["kl"] == 0
    )
    expected = scorecard(policy, tried.sft, tried.judge, words, 3)
    assert after == expected | against(expected, before) and after["kl"] > 0
    validation = encode_split(PLAY)[1]
    assert history["shakespeare_loss"] == validation_loss(
        policy, validation, windows=32
    )
    assert history["shakespeare_loss"] != validation_loss(policy, validation)


@pytest.mark.parametrize("kind", ["own", "elsewhere"])
def test_dpo_learns_from_the_kind_of_pairs_that_a_trial_names(tried, kind):
    trial = PolicyTrial(replace(DPO, seed=99), 2, pairs=kind)
    history = dpo_trial(CORPUS, trial, 3)
    rows = dict(own=WRITTEN, elsewhere=OTHERS)[kind]
    assert history["steps"] == trained_by_hand(tried, DPO, rows)[0]


# Settings


def test_pairs_of_no_known_origin_are_refused_by_name():
    with pytest.raises(ValueError, match="^pairs is 'any': use one of"):
        PolicyTrial(DPO, pairs="any")


@pytest.mark.parametrize("every", [0, -2])
def test_cards_every_less_than_one_step_are_refused_where_the_trial_is_named(every):
    with pytest.raises(ValueError, match=f"^every is {every}: use at least 1 step"):
        PolicyTrial(TINY, every)


# Variants of PPO


@pytest.mark.parametrize("name", ["returns after whitening", "RLOO", "GRPO"])
def test_a_variant_of_ppo_stands_in_its_place_for_the_run(monkeypatch, paid, name):
    noted_cards(monkeypatch, [[1.0]])
    config, chosen = replace(TINY, group=2), variant(name)
    found = ppo_trial(CORPUS, PolicyTrial(config, variant=name), TINY.seed)
    models = assemble(copy.deepcopy(paid.sft), copy.deepcopy(paid.judge))
    models = chosen.models(models)
    assert isinstance(models.value_model, NoValues) != chosen.values
    rounds = ppo_steps(models, PRACTICE, config, chosen.estimate, chosen.losses)
    assert found["rounds"] == list(rounds) != ppo(CORPUS, config, 1000)["rounds"]


def test_a_variant_that_is_not_known_is_named():
    with pytest.raises(ValueError, match="variant is 'x': use one of"):
        PolicyTrial(TINY, variant="x")


# Best of n, and the base model


def test_a_trial_judges_the_best_of_each_n_of_one_draw(monkeypatch):
    find_sft, asked_sft = stored(moved(config=LONG))
    find_judge, asked_judge = stored(judge(config=LONG))
    monkeypatch.setattr(module, "sft_model", find_sft)
    monkeypatch.setattr(module, "reward_model", find_judge)
    monkeypatch.setattr(
        module, "start_scorecard", lambda corpus, seed: dict(gold=[0.1 * seed] * 6)
    )
    cards = best_of_n_trial(CORPUS, None, 3)["cards"]
    assert asked_judge == [(CORPUS, RewardConfig(seed=3))] and asked_sft == [
        (CORPUS, SFTConfig(seed=3))
    ]
    assert [card["n"] for card in cards] == list(SIZES)
    drawn = draw_answers(moved(config=LONG), judge(config=LONG), PROMPTS, 16, 3)
    for i, (card, n) in enumerate(zip(cards, SIZES)):
        by_hand = judge_answers(*best_of_n(drawn, n), lexicon(CORPUS))
        won = against(by_hand, dict(gold=[0.1 * 3] * 6))
        whole = json.loads(json.dumps(by_hand | won | dict(n=n, kl=best_of_n_kl(n))))
        if i not in (0, len(SIZES) - 1):
            whole = {
                key: value
                for key, value in whole.items()
                if key not in ("answers", "scores", "gold")
            }
        assert card == whole
    assert [card["score"] for card in cards] == sorted(card["score"] for card in cards)


def test_the_base_models_trial_is_its_scorecard(monkeypatch):
    asked = []
    monkeypatch.setattr(
        module,
        "start_scorecard",
        lambda *given, **options: asked.append((given, options)) or dict(gold=[1.0]),
    )
    assert base_trial(CORPUS, None, 3) == dict(cards=[dict(gold=[1.0])])
    assert asked == [((CORPUS, 3), dict(start="base"))]
