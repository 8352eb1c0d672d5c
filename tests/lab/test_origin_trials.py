"""Where pairs come from, on trial: the steps, the rows of each kind, who is asked, and
what is judged before and after.
"""

import copy
import math
import types
from dataclasses import replace

import pytest
import torch
from tiny import (
    CORPUS,
    END,
    LONG,
    PAD,
    TOKENIZER,
    close,
    empty_shelf,
    judge,
    moved,
    pair,
    same,
    seeded,
    weights,
)

from posttrain.chat import ask
from posttrain.data import datasets
from posttrain.dpo import pair_logprobs, pair_report
from posttrain.evaluate import win_rate
from posttrain.keep.store import UNKEPT, Stage
from posttrain.lab import origin_trials as module
from posttrain.lab import policy_trials
from posttrain.lab import scorecard as scorecards
from posttrain.lab.origin_trials import (
    DRAWS,
    KINDS,
    OriginTrial,
    gentle_steps,
    origin_trial,
    pairs_of,
    stronger_pairs,
)
from posttrain.lab.scorecard import lexicon, scorecard, start_scorecard
from posttrain.ppo import PPOConfig
from posttrain.preference_pairs import encode_pairs
from posttrain.reward_model import RewardConfig
from posttrain.sft import SFTConfig

ASKED = ["Who?", "Where is the duke?", "Why so?"]
ROWS = dict(
    preferences=[
        pair("a", "Who?", "I am.", "You"),
        pair("b", "Where is the duke?", "At sea, my lord. " * 11, "At"),  # is cut
        pair("c", "Why so?", "No.", "No, no, no"),
    ],
    own_preferences=[
        pair("p", "Who?", "Ay, sir.", "Ay, knave."),
        pair("q", "Where is the duke?", "Here.", "Th"),
    ],
    minimal_preferences=[pair("e", "Why so?", "Go, kind sir.", "Go, vile dog.")],
    heldout_preferences=[
        pair("u", "Is he here?", "Ay, he is.", "Nay"),
        pair("v", "Say", "So be it.", "Be it, be it"),
        pair("w", "Now", "Sir, I know it not. " * 9, "What"),  # is cut
    ],
    heldout_own_preferences=[
        pair("x", "Go", "I go.", "Hm."),
        pair("y", "What now?", "Nothing.", "Nothing nothing nothing"),
    ],
    heldout_prompts=["Who?", "Is it so?", "Say", "No"],
    conversations=[],
)
ROWS_OF = dict(
    own="own_preferences", written="preferences", minimal="minimal_preferences"
)
TRIAL = OriginTrial(steps=3, lr=0.01, beta=0.3)  # a run's seed is not this one
EACH_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
def small_data(monkeypatch):
    for name, some in ROWS.items():
        monkeypatch.setattr(datasets, name, lambda some=some: some)


@pytest.fixture
def tried(monkeypatch, tmp_path):
    """Tiny models of two seeds, given out themselves and not as copies, cards of gold
    scores alone, and who asked for what.
    """
    empty_shelf(monkeypatch, tmp_path)
    float32 = torch.float32
    tried = types.SimpleNamespace(
        sft={seed: moved(seed, float32, LONG) for seed in (0, 3)},
        judge={seed: judge(seed + 5, float32, LONG) for seed in (0, 3)},
        ppo={seed: moved(seed + 10, float32, LONG) for seed in (0, 3)},
        start=dict(gold=[0.0, 1.0, 2.0, 3.0]),
        started=[],
        cards=[],
    )

    def finds(models, kind):
        def find(corpus, config):
            assert corpus is CORPUS and config == kind(seed=config.seed)
            return models[config.seed], {}

        return find

    def card(policy, *rest):
        tried.cards.append((weights(policy), *rest))
        return dict(gold=[1.0, 1.0, 1.0, 4.0])

    monkeypatch.setattr(policy_trials, "sft_model", finds(tried.sft, SFTConfig))
    monkeypatch.setattr(policy_trials, "reward_model", finds(tried.judge, RewardConfig))
    monkeypatch.setattr(module, "ppo_model", finds(tried.ppo, PPOConfig))
    monkeypatch.setattr(
        module,
        "start_scorecard",
        lambda *given: tried.started.append(given) or tried.start,
    )
    monkeypatch.setattr(policy_trials, "scorecard", card)
    return tried


def walked(model, prompt, answer):
    """The log-probability of an answer at temperature 1, read by itself."""
    logprobs = model(torch.tensor([prompt + answer]))[0].double().log_softmax(-1)
    return sum(logprobs[len(prompt) + t - 1, token] for t, token in enumerate(answer))


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


# Settings


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (
            dict(kind="any"),
            r"kind is 'any': use one of \('own', 'written', 'minimal', 'stronger'\)",
        ),
        (dict(lr=0.0), "lr is 0.0: use a number above 0"),
        (dict(lr=-1e-4), "lr is -0.0001: use a number above 0"),
        (dict(lr=math.nan), "lr is nan: use a number above 0"),
        (dict(beta=0.0), "beta is 0.0: use a number above 0"),
        (dict(beta=-0.5), "beta is -0.5: use a number above 0"),
        (dict(steps=0), "steps is 0: use at least 1"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_its_name(settings, problem):
    with pytest.raises(ValueError, match=f"^{problem}$"):
        OriginTrial(**settings)


@EACH_KIND
def test_each_kind_is_taken_and_one_step_is_enough(kind):
    trial = OriginTrial(kind=kind, steps=1)
    assert (trial.kind, trial.steps) == (kind, 1)


# Steps


def adam_by_hand(policy, reference, pairs, trial):
    """Adam (Kingma & Ba 2015) on DPO's loss, all written out; each step's loss and
    margins.
    """
    parameters, noted = list(policy.parameters()), []
    means = [torch.zeros_like(parameter) for parameter in parameters]
    squares = [torch.zeros_like(parameter) for parameter in parameters]
    for step in range(1, trial.steps + 1):
        margins = []
        for prompt, *answers in pairs:
            chosen, rejected = (
                walked(policy, prompt, answer)
                - walked(reference, prompt, answer).item()
                for answer in answers
            )
            margins.append(trial.beta * (chosen - rejected))
        loss = sum((1 + (-margin).exp()).log() for margin in margins) / len(pairs)
        gradients = torch.autograd.grad(loss, parameters)
        noted.append((loss.item(), [margin.item() for margin in margins]))
        rate = trial.lr * (trial.steps - step + 1) / trial.steps
        with torch.no_grad():
            for parameter, gradient, mean, square in zip(
                parameters, gradients, means, squares, strict=True
            ):
                mean.copy_(0.9 * mean + 0.1 * gradient)
                square.copy_(0.999 * square + 0.001 * gradient**2)
                height = (square / (1 - 0.999**step)).sqrt() + 1e-8
                parameter -= rate * mean / (1 - 0.9**step) / height
    return noted


# More pairs than a step of DPO usually takes
EIGHT = [
    encoded(pair("", prompt, chosen, rejected))
    for prompt in ("Who?", "Where is he?")
    for chosen, rejected in [
        ("I am.", "You"),
        ("No.", "No, no, no"),
        ("Ay, my lord.", "Hm."),
        ("It is so.", "It is s"),
    ]
]


@pytest.mark.parametrize(
    "trial",
    [
        TRIAL,
        replace(TRIAL, beta=0.05, lr=0.003, steps=5),
        replace(TRIAL, steps=1, lr=0.02),
    ],
    ids=["three", "five", "one"],
)
def test_steps_are_adam_on_dpos_loss_of_all_pairs_while_the_rate_falls_to_0(trial):
    policy, reference, by_hand = moved(), moved(), moved()
    steps = list(gentle_steps(policy, reference, EIGHT, trial))
    expected = adam_by_hand(by_hand, reference, EIGHT, trial)
    assert len(steps) == len(expected) == trial.steps
    for noted, (loss, margins) in zip(steps, expected):
        assert noted["loss"] == pytest.approx(loss, abs=1e-9)
        assert noted["margin"] == pytest.approx(sum(margins) / 8, abs=1e-9)
        # Nothing is rehearsed beside the pairs, and no gradient is cut
        assert not {"replay", "gradient_norm"} & noted.keys()
    assert steps[0]["loss"] == pytest.approx(math.log(2), abs=1e-12)
    for (name, one), other in zip(policy.named_parameters(), by_hand.parameters()):
        close(one, other, atol=1e-9)
        assert not torch.equal(one, reference.get_parameter(name))


def test_the_reference_is_left_as_it_was_and_has_no_gradient():
    policy, reference = moved(), moved(1)
    before = weights(reference)
    list(gentle_steps(policy, reference, EIGHT, TRIAL))
    assert same(before, reference)
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_accuracy_is_counted_over_all_pairs_in_each_step():
    noted = [step["accuracy"] for step in gentle_steps(moved(), moved(1), EIGHT, TRIAL)]
    margins = [each for _, each in adam_by_hand(moved(), moved(1), EIGHT, TRIAL)]
    assert noted == [sum(margin > 0 for margin in each) / 8 for each in margins]
    assert 0 < noted[0] < 1


# Pairs


@pytest.mark.parametrize("kind", ROWS_OF)
def test_the_pairs_of_a_kind_are_its_rows_as_token_ids(small_data, tried, kind):
    assert pairs_of(CORPUS, kind, 3) == [encoded(row) for row in ROWS[ROWS_OF[kind]]]


def test_an_answer_that_is_too_long_is_cut_to_the_context(small_data, tried):
    prompt, chosen, _ = pairs_of(CORPUS, "written", 3)[1]
    assert len(prompt) + len(chosen) == LONG.context and chosen[-1] != END


@pytest.mark.parametrize("kind", ROWS_OF)
def test_each_kind_has_eighteen_pairs_on_the_same_prompts(tried, kind):
    prompts = [row["prompt"] for row in datasets.preferences()]
    assert len(set(prompts)) == 18
    assert [TOKENIZER.decode(prompt) for prompt, _, _ in pairs_of(CORPUS, kind, 3)] == [
        f"<|user|>{prompt}<|assistant|>" for prompt in prompts
    ]


def test_stronger_pairs_are_those_of_the_seed(small_data, tried):
    for seed in (0, 3):
        assert pairs_of(CORPUS, "stronger", seed) == stronger_pairs(CORPUS, seed)
    assert stronger_pairs(CORPUS, 0) != stronger_pairs(CORPUS, 3)


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
    pairs = stronger_pairs(CORPUS, 3)
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
    tried.ppo[3] = copy.deepcopy(tried.sft[3])
    with pytest.raises(ValueError, match="^both models answer all prompts alike"):
        stronger_pairs(CORPUS, 3)


@pytest.mark.parametrize(("seed", "nudge"), [(0, 0.008), (3, 0.004)])
def test_stronger_pairs_are_what_two_models_say_when_they_are_asked(
    small_data, tried, seed, nudge
):
    # A policy that has hardly moved gives some of the same answers
    policy = tried.ppo[seed] = copy.deepcopy(tried.sft[seed])
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
    found = [tuple(map(TOKENIZER.decode, ids)) for ids in stronger_pairs(CORPUS, seed)]
    assert found == [
        (f"<|user|>{question}<|assistant|>", chosen, rejected)
        for question, chosen, rejected in expected
    ]


# A trial


def trained_by_hand(tried, trial, seed):
    """What each step noted, and the policy after the last."""
    policy, reference = (copy.deepcopy(tried.sft[seed]) for _ in range(2))
    pairs = (
        stronger_pairs(CORPUS, seed)
        if trial.kind == "stronger"
        else [encoded(row) for row in ROWS[ROWS_OF[trial.kind]]]
    )
    return list(gentle_steps(policy, reference, pairs, trial)), policy


@EACH_KIND
def test_a_trial_trains_the_sft_model_of_its_seed_on_its_kind_of_pairs(
    small_data, tried, kind
):
    trial = replace(TRIAL, kind=kind)
    histories = {seed: origin_trial(CORPUS, trial, seed) for seed in (0, 3)}
    for seed, (policy, *_) in zip((0, 3), tried.cards, strict=True):
        steps, by_hand = trained_by_hand(tried, trial, seed)
        assert set(histories[seed]) == {"steps", "own", "written", "cards"}
        assert histories[seed]["steps"] == steps and len(steps) == 3
        assert same(policy, by_hand)
        assert not torch.equal(policy["head.weight"], tried.sft[seed].head.weight)


def reported_by_hand(policy, sft, rows, beta):
    """What pairs show, each answer read by itself."""
    now, known = (
        [
            [walked(model, prompt, answer).item() for answer in answers]
            for prompt, *answers in map(encoded, rows)
        ]
        for model in (policy, sft)
    )
    n = len(rows)
    chosen, rejected = (
        [beta * (now[i][side] - known[i][side]) for i in range(n)] for side in (0, 1)
    )
    return dict(
        chosen_reward=sum(chosen) / n,
        rejected_reward=sum(rejected) / n,
        margin=(sum(chosen) - sum(rejected)) / n,
        accuracy=sum(c > r for c, r in zip(chosen, rejected)) / n,
        chosen_logprob=sum(one for one, _ in now) / n,
        rejected_logprob=sum(other for _, other in now) / n,
    )


@EACH_KIND
def test_held_out_pairs_of_both_kinds_are_reported_before_and_after(
    small_data, tried, kind
):
    trial, sft = replace(TRIAL, kind=kind), tried.sft[3]
    history = origin_trial(CORPUS, trial, 3)
    _, policy = trained_by_hand(tried, trial, 3)
    for name, rows in dict(
        own=ROWS["heldout_own_preferences"], written=ROWS["heldout_preferences"]
    ).items():
        before, after = history[name]
        unseen = encode_pairs(rows, TOKENIZER, LONG.context)
        known = pair_logprobs(sft, unseen, PAD)
        assert before == pair_report(known, known, 0.3)
        assert after == pair_report(pair_logprobs(policy, unseen, PAD), known, 0.3)
        for found, model in ((before, sft), (after, policy)):
            by_hand = reported_by_hand(model, sft, rows, 0.3)
            assert found == pytest.approx(by_hand, rel=1e-5, abs=1e-3)
        assert all(
            before[side] == 0
            for side in ("chosen_reward", "rejected_reward", "margin", "accuracy")
        )
        assert abs(after["margin"]) > 0.01
    assert history["own"] != history["written"]


def test_neither_the_sft_model_nor_another_is_trained(small_data, tried):
    models = [tried.sft[3], tried.judge[3], tried.ppo[3]]
    before = [weights(model) for model in models]
    for kind in KINDS:
        origin_trial(CORPUS, replace(TRIAL, kind=kind), 3)
    for known, model in zip(before, models):
        assert same(known, model)
        assert all(parameter.grad is None for parameter in model.parameters())


def test_the_trained_policy_is_judged_against_the_start(small_data, tried):
    tried.start |= dict(answers=["Ay."], kl=0.0, entropy=0.75)
    shared = copy.deepcopy(tried.start)
    for seed in (3, 0):
        cards = origin_trial(CORPUS, TRIAL, seed)["cards"]
        # Wins, draws and losses against 0, 1, 2, 3
        assert cards == [shared, dict(gold=[1.0, 1.0, 1.0, 4.0], win_rate=2.5 / 4)]
    assert tried.start == shared and tried.started == [(CORPUS, 3), (CORPUS, 0)]
    for seed, (_, reference, judged_by, *rest) in zip((3, 0), tried.cards, strict=True):
        assert reference is tried.sft[seed] and judged_by is tried.judge[seed]
        assert rest == [lexicon(CORPUS), seed, 0.8]


def test_a_trial_goes_as_far_as_its_settings_say(small_data, tried):
    changes = (dict(steps=1), dict(lr=0.001), dict(beta=0.05))
    for trial in (replace(TRIAL, **change) for change in changes):
        history = origin_trial(CORPUS, trial, 3)
        steps, policy = trained_by_hand(tried, trial, 3)
        assert history["steps"] == steps and same(tried.cards[-1][0], policy)


def test_a_whole_trial_runs_on_tiny_models(monkeypatch, small_data, tried):
    sft, reward_model = tried.sft[3], tried.judge[3]
    for name in ("sft_stage", "reward_stage"):
        monkeypatch.setattr(
            scorecards, name, lambda *given: Stage("none", UNKEPT, {}, {})
        )
    monkeypatch.setattr(scorecards, "language_model", lambda stage: sft)
    monkeypatch.setattr(scorecards, "scoring_model", lambda stage: reward_model)
    monkeypatch.setattr(module, "start_scorecard", start_scorecard)
    monkeypatch.setattr(policy_trials, "scorecard", scorecard)
    before, after = origin_trial(CORPUS, TRIAL, 3)["cards"]
    _, policy = trained_by_hand(tried, TRIAL, 3)
    words = lexicon(CORPUS)
    assert before == scorecard(sft, sft, reward_model, words, 3) and before["kl"] == 0
    expected = scorecard(policy, sft, reward_model, words, 3)
    won = win_rate(expected["gold"], before["gold"])
    assert after == expected | dict(win_rate=won) and after["kl"] > 0
