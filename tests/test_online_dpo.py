"""On-policy DPO: which answers are paired, and the rounds, against loops, hand numbers
and one token at a time.
"""

import copy
import math
import types
from dataclasses import replace

import pytest
import torch
from tiny import (
    CONFIG,
    END,
    PAD,
    TOKENIZER,
    close,
    judge,
    moved,
    same,
    seeded,
    user,
    weights,
)

from posttrain import dpo
from posttrain import online_dpo as module
from posttrain.batches import epochs
from posttrain.chat import render_prompt
from posttrain.dpo import pair_logprobs, pair_report
from posttrain.online_dpo import (
    OnlineDPOConfig,
    on_policy_pairs,
    online_dpo_rounds,
)
from posttrain.sampling import generate

QUESTIONS = ["Who?", "Why so?", "Where is the duke?", "Say", "Ay", "No"]
PROMPTS = [render_prompt([user(text)], TOKENIZER) for text in QUESTIONS]
TINY = OnlineDPOConfig(
    rounds=3,
    prompts=4,
    samples=3,
    max_new_tokens=8,
    steps=1,
    lr=0.01,
    beta=0.1,
    label_smoothing=0.0,
    nll_weight=0.0,
)


def walked(model, prompt, answer, temperature):
    """The log-probability of an answer: one forward pass per token, over the text
    before it.
    """
    total = 0.0
    for t, token in enumerate(answer):
        total = (
            total
            + (
                model(torch.tensor([prompt + answer[:t]]))[0, -1] / temperature
            ).log_softmax(-1)[token]
        )
    return total


def walked_pairs(model, pairs, temperature):
    """Log-probabilities (2, N) of pairs, chosen above rejected, each read by itself."""
    return torch.stack(
        [
            torch.stack(
                [walked(model, each[0], each[side], temperature) for each in pairs]
            )
            for side in (1, 2)
        ]
    )


def three_models(dtype=torch.float64):
    """A policy, the reference that it is a copy of, and a judge."""
    return moved(dtype=dtype), moved(dtype=dtype), judge(5, dtype)


# Pairs of the policy's own answers


def table(monkeypatch, answers, scores):
    """Let a policy give these answers, and a judge these scores; note what was asked of
    both.
    """
    asked = types.SimpleNamespace(sampling=[], judged=[])

    def sample(*args, **options):
        asked.sampling.append((args, options))
        return types.SimpleNamespace(responses=lambda: answers)

    def judge_(tokens, mask):
        asked.judged += [
            (row[row != PAD].tolist(), row[kept].tolist())
            for row, kept in zip(tokens, mask)
        ]
        return torch.tensor(scores)

    monkeypatch.setattr(module, "generate", sample)
    return judge_, asked


def test_of_each_prompts_answers_the_best_and_the_worst_are_paired(monkeypatch):
    answers = [[i, END] for i in range(9)]
    judge_, asked = table(
        monkeypatch, answers, [0.1, 0.9, -0.5, -3.0, -2.0, -1.0, 7.0, 2.0, 5.0]
    )
    policy, generator = moved(), seeded()
    pairs, score = on_policy_pairs(
        policy, judge_, PROMPTS[:3], replace(TINY, temperature=1.3), generator
    )
    assert pairs == [
        (PROMPTS[0], answers[1], answers[2]),
        (PROMPTS[1], answers[5], answers[3]),
        (PROMPTS[2], answers[6], answers[7]),
    ]
    assert score == pytest.approx((0.1 + 0.9 - 0.5 - 3 - 2 - 1 + 7 + 2 + 5) / 9)
    wanted = dict(generator=generator, temperature=1.3, stop=END)
    assert asked.sampling == [
        ((policy, [prompt for prompt in PROMPTS[:3] for _ in range(3)], 8), wanted)
    ]
    # The judge has read each answer after its own prompt
    assert asked.judged == [
        (PROMPTS[i // 3] + answer, answer) for i, answer in enumerate(answers)
    ]


def test_an_answer_without_its_end_is_worse_than_any_with_one(monkeypatch):
    answers = [
        [1, END],
        [2, 3],
        [4, END],
        [5, 6],
        [7, 8],
        [9, END],
        [10, 11],
        [12, 13],
        [END, 14],
    ]
    scores = [-9.0, 50.0, -5.0, 50.0, 40.0, -90.0, 1.0, 2.0, 3.0]
    judge_, _ = table(monkeypatch, answers, scores)
    pairs, score = on_policy_pairs(moved(), judge_, PROMPTS[:3], TINY, seeded())
    assert pairs[0] == (PROMPTS[0], [4, END], [2, 3])
    # One of three has ended: it is the best, and one of the others the worst
    assert pairs[1][:2] == (PROMPTS[1], [9, END]) and pairs[1][2] in ([5, 6], [7, 8])
    # No answer to the third prompt has ended: nothing is better than anything
    assert len(pairs) == 2
    # The mean score is the judge's own
    assert score == pytest.approx(sum(scores) / 9)


def test_prompts_whose_answers_are_all_the_same_give_no_pair(monkeypatch):
    answers = [[1, END]] * 3 + [[2, END], [3, END], [2, END]] + [[4, END]] * 3
    judge_, _ = table(monkeypatch, answers, [0.5] * 3 + [0.1, 0.2, 0.1] + [0.7] * 3)
    assert on_policy_pairs(moved(), judge_, PROMPTS[:3], TINY, seeded())[0] == [
        (PROMPTS[1], [3, END], [2, END])
    ]


@pytest.mark.parametrize(
    "answers", [[[1, END]] * 9, [[1, 2]] * 9], ids=["all the same", "none ended"]
)
def test_where_nothing_is_better_there_are_no_pairs_but_a_score(monkeypatch, answers):
    judge_, _ = table(monkeypatch, answers, [0.5] * 9)
    assert on_policy_pairs(moved(), judge_, PROMPTS[:3], TINY, seeded()) == ([], 0.5)


@pytest.mark.parametrize("samples", [2, 5])
def test_the_judges_best_and_worst_of_a_policys_real_answers(samples):
    policy, judge_ = moved(), judge(5)
    before, config = (
        (weights(policy), weights(judge_)),
        replace(TINY, samples=samples, temperature=0.7),
    )
    pairs, score = on_policy_pairs(policy, judge_, PROMPTS, config, seeded(3))
    asked = [prompt for prompt in PROMPTS for _ in range(samples)]
    answers = generate(
        policy, asked, 8, generator=seeded(3), temperature=0.7, stop=END
    ).responses()
    scores = [
        judge_.token_scores(torch.tensor([p + a]))[0, -1].item()
        for p, a in zip(asked, answers)
    ]
    assert score == pytest.approx(sum(scores) / len(scores), abs=1e-10)
    expected = []
    for i in range(0, len(asked), samples):
        own = range(i, i + samples)
        worth = {j: scores[j] if answers[j][-1] == END else -math.inf for j in own}
        best, worst = max(own, key=worth.get), min(own, key=worth.get)
        if worth[best] > worth[worst]:
            expected.append((asked[i], answers[best], answers[worst]))
    assert pairs == expected and 0 < len(pairs)
    assert 0 < sum(answer[-1] == END for answer in answers) < len(answers)
    assert same(before[0], policy) and same(before[1], judge_)


def test_an_answer_that_could_outgrow_the_context_is_refused():
    longest = max(map(len, PROMPTS))
    with pytest.raises(ValueError, match="do not fit into the context of 64"):
        on_policy_pairs(
            moved(),
            judge(5),
            PROMPTS,
            replace(TINY, max_new_tokens=CONFIG.context - longest + 2),
            seeded(),
        )


# Settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(rounds=0), "rounds is 0: use at least 1"),
        (dict(prompts=0), "prompts is 0: use at least 1"),
        (dict(samples=1), "samples is 1: use at least 2"),
        (dict(steps=0), "steps is 0: use at least 1"),
        (dict(temperature=0.0), "temperature is 0.0: use a number above 0"),
        (dict(temperature=-1.0), "temperature is -1.0: use a number above 0"),
        (dict(beta=0.0), "beta is 0.0: use a number above 0"),
        (dict(beta=-0.5), "beta is -0.5: use a number above 0"),
        (dict(nll_weight=-0.1), "nll_weight is -0.1: use at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        replace(TINY, **changes)
    assert OnlineDPOConfig(
        rounds=1, prompts=1, samples=2, steps=1, temperature=0.01, beta=0.01
    )


# The rounds


def trained_by_hand(config):
    """The rounds with every text read by itself and the reference asked anew: what was
    seen, and the policy.
    """
    policy, reference, judge_ = three_models()
    seen, generator = [], seeded(config.seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.lr)
    batches = epochs(6, config.prompts, generator)
    for round_ in range(config.rounds):
        optimizer.param_groups[0]["lr"] = (
            config.lr * (config.rounds - round_) / config.rounds
        )
        pairs, score = on_policy_pairs(
            policy, judge_, [PROMPTS[i] for i in next(batches)], config, generator
        )
        if not pairs:
            seen.append(dict(score=score, pairs=0))
            continue
        now, known = (
            walked_pairs(model, pairs, config.temperature).detach()
            for model in (policy, reference)
        )
        h = config.beta * ((now[0] - known[0]) - (now[1] - known[1]))
        loss = surprise(h, config.label_smoothing).item()
        seen.append(
            dict(score=score, pairs=len(pairs), loss=loss)
            | pair_report(now, known, config.beta)
        )
        order = torch.randperm(len(pairs), generator=generator).tolist()
        size = math.ceil(len(pairs) / config.steps)
        for rows in (order[i : i + size] for i in range(0, len(order), size)):
            chosen, rejected = walked_pairs(
                policy, [pairs[i] for i in rows], config.temperature
            )
            h = config.beta * ((chosen - known[0, rows]) - (rejected - known[1, rows]))
            optimizer.zero_grad()
            lengths = torch.tensor([len(pairs[i][1]) for i in rows])
            imitation = -(chosen / lengths).mean()
            loss = surprise(h, config.label_smoothing) + config.nll_weight * imitation
            loss.backward()
            optimizer.step()
    return seen, policy


def surprise(h, wrong):
    """The mean surprise at labels of which a share may be wrong."""
    return -((1 - wrong) * h.sigmoid().log() + wrong * (-h).sigmoid().log()).mean()


ROUNDS = [
    dict(),
    dict(label_smoothing=0.2),
    dict(temperature=1.4, beta=0.5),
    dict(steps=1, seed=2),
    dict(steps=3, prompts=6),
    dict(nll_weight=0.7),
]


@pytest.mark.parametrize("changes", ROUNDS, ids=str)
def test_a_round_is_adam_on_dpos_loss_with_the_reference_asked_anew(changes):
    config, (policy, reference, judge_) = replace(TINY, **changes), three_models()
    found = list(online_dpo_rounds(policy, reference, judge_, QUESTIONS, config))
    expected, by_hand = trained_by_hand(config)
    assert sum(noted["pairs"] > 1 for noted in expected) >= 2
    assert [list(noted) for noted in found] == [list(noted) for noted in expected]
    for noted, wanted in zip(found, expected):
        assert noted == pytest.approx(wanted, abs=1e-7)
    for (name, one), other in zip(policy.named_parameters(), by_hand.parameters()):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7, msg=name)


def test_the_first_round_starts_at_the_reference_and_later_ones_do_not():
    first, second, _ = online_dpo_rounds(*three_models(), QUESTIONS, TINY)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-12)
    for name in ("chosen_reward", "rejected_reward", "margin"):
        assert abs(first[name]) < 1e-12 < 1e-3 < abs(second[name])
    assert list(first) == [
        "score",
        "pairs",
        "loss",
        "chosen_reward",
        "rejected_reward",
        "margin",
        "accuracy",
        "chosen_logprob",
        "rejected_logprob",
    ]
    assert all(
        type(value) is (int if name == "pairs" else float)
        for name, value in first.items()
    )


def followed(**changes):
    """Run the rounds: what they yielded, each round's draw, each step's pairs, the
    rates and the models.
    """
    draws, steps, rates, optimizers = [], [], [], []
    own, part, adam = module.on_policy_pairs, module.pair_part, torch.optim.Adam

    def note_draw(model, judge_, prompts, config, generator):
        draws.append(
            (weights(model), prompts, own(model, judge_, prompts, config, generator))
        )
        return draws[-1][2]

    def note_optimizer(*args, **kwargs):
        optimizers.append(adam(*args, **kwargs))
        optimizers[-1].register_step_pre_hook(
            lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"])
        )
        return optimizers[-1]

    def note_step(pairs, *rest):
        steps.append((len(draws), pairs))
        return part(pairs, *rest)

    models = three_models(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "on_policy_pairs", note_draw)
        patch.setattr(module, "pair_part", note_step)
        patch.setattr(torch.optim, "Adam", note_optimizer)
        noted = list(online_dpo_rounds(*models, QUESTIONS, replace(TINY, **changes)))
    assert len(optimizers) == 1
    steps = [
        (round_, rate, pairs)
        for (round_, pairs), rate in zip(steps, rates, strict=True)
    ]
    return types.SimpleNamespace(
        noted=noted, draws=draws, steps=steps, optimizer=optimizers[0], models=models
    )


def test_each_round_draws_from_the_policy_as_it_is_by_then():
    run = followed()
    states = [state["head.weight"] for state, *_ in run.draws] + [
        run.models[0].head.weight
    ]
    assert len(states) == 4 and all(
        not torch.equal(one, other) for one, other in zip(states, states[1:])
    )
    assert same(run.draws[0][0], run.models[1])
    assert [noted["score"] for noted in run.noted] == [
        score for *_, (_, score) in run.draws
    ]
    assert [noted["pairs"] for noted in run.noted] == [
        len(pairs) for *_, (pairs, _) in run.draws
    ]


def test_the_questions_are_answered_each_once_before_any_again_by_seed():
    first, again, other = (
        [prompts for _, prompts, _ in followed(prompts=3, rounds=4, seed=seed).draws]
        for seed in (0, 0, 1)
    )
    assert [sorted(first[i] + first[i + 1]) for i in (0, 2)] == [sorted(PROMPTS)] * 2
    assert first == again != other


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_rounds_pairs_are_shared_among_its_steps_each_once(steps):
    run = followed(steps=steps, prompts=6)
    for i, (*_, (pairs, _)) in enumerate(run.draws, start=1):
        own = [some for round_, _, some in run.steps if round_ == i]
        size = -(-len(pairs) // steps)
        assert [len(some) for some in own[:-1]] == [size] * (len(own) - 1) and 1 <= len(
            own
        ) <= steps
        assert sorted(sum(own, [])) == sorted(pairs)
    assert any([some for _, _, some in run.steps if len(some) > 1])


def test_the_rate_falls_in_a_straight_line_to_zero_round_by_round():
    run = followed(rounds=4, lr=0.02, steps=2)
    # All steps of a round share its rate
    assert len(run.steps) >= 6 and {round_ for round_, *_ in run.steps} == {1, 2, 3, 4}
    assert all(
        rate == pytest.approx(0.02 - 0.005 * (round_ - 1))
        for round_, rate, _ in run.steps
    )


def test_the_optimiser_is_plain_adam_over_every_weight_of_the_policy_once():
    run = followed()
    (group,) = run.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [
        id(p) for p in run.models[0].parameters()
    ]
    assert (group["betas"], group["eps"], group["weight_decay"]) == (
        (0.9, 0.999),
        1e-8,
        0,
    )


def test_only_the_policy_changes():
    policy, reference, judge_ = three_models(torch.float32)
    before = [weights(model) for model in (policy, reference, judge_)]
    list(online_dpo_rounds(policy, reference, judge_, QUESTIONS, TINY))
    assert same(before[1], reference) and same(before[2], judge_)
    assert all(
        p.grad is None for model in (reference, judge_) for p in model.parameters()
    )
    after = policy.state_dict()
    assert all(
        not torch.equal(before[0][name], after[name])
        for name, _ in policy.named_parameters()
    )


def test_a_round_without_pairs_leaves_the_policy_and_the_next_goes_on(monkeypatch):
    own, calls = module.on_policy_pairs, []

    def none_at_second(*args):
        calls.append(1)
        pairs, score = own(*args)
        return ([] if len(calls) == 2 else pairs), score

    monkeypatch.setattr(module, "on_policy_pairs", none_at_second)
    policy, reference, judge_ = three_models(torch.float32)
    rounds = online_dpo_rounds(policy, reference, judge_, QUESTIONS, TINY)
    next(rounds)
    before = weights(policy)
    second = next(rounds)
    assert (
        second["pairs"] == 0 and math.isfinite(second["score"]) and same(before, policy)
    )
    assert next(rounds)["pairs"] > 0 and not same(before, policy)


def test_the_same_seed_gives_the_same_run_whatever_the_global_randomness():
    def run(seed):
        (policy, *others), state = three_models(torch.float32), torch.get_rng_state()
        noted = list(
            online_dpo_rounds(policy, *others, QUESTIONS, replace(TINY, seed=seed))
        )
        assert torch.equal(torch.get_rng_state(), state)
        return noted, weights(policy)

    torch.manual_seed(1)
    first, one = run(0)
    torch.manual_seed(2)
    second, other = run(0)
    assert first == second and all(torch.equal(one[name], other[name]) for name in one)
    assert run(1)[0] != first


def test_a_judge_for_whom_only_the_end_counts_teaches_to_end():
    """The whole chain has the right sign."""
    policy, reference, judge_ = three_models(torch.float32)
    with torch.no_grad():
        judge_.head.weight.zero_()  # every answer that ends gets the same
    config = replace(
        TINY, rounds=6, prompts=6, samples=4, max_new_tokens=3, lr=0.02, steps=2
    )
    before = copy.deepcopy(policy)
    list(online_dpo_rounds(policy, reference, judge_, QUESTIONS, config))
    rates = []
    for model in (before, policy):
        answers = generate(
            model, PROMPTS * 20, 3, generator=seeded(), temperature=0.8, stop=END
        ).responses()
        rates.append(sum(answer[-1] == END for answer in answers) / len(answers))
    assert 1 - rates[1] < (1 - rates[0]) / 3


def test_what_a_round_notes_is_of_its_pairs_before_its_steps():
    policy, reference, judge_ = three_models()
    twin = copy.deepcopy(policy)
    rounds = online_dpo_rounds(policy, reference, judge_, QUESTIONS, TINY)
    next(rounds)
    twin.load_state_dict(policy.state_dict())
    generator = seeded(0)
    batches = epochs(6, 4, generator)
    start = copy.deepcopy(reference)
    pairs, _ = on_policy_pairs(
        start, judge_, [PROMPTS[i] for i in next(batches)], TINY, generator
    )
    torch.randperm(len(pairs), generator=generator)
    pairs, score = on_policy_pairs(
        twin, judge_, [PROMPTS[i] for i in next(batches)], TINY, generator
    )
    now, known = (pair_logprobs(model, pairs, PAD, 0.8) for model in (twin, reference))
    noted = next(rounds)
    assert noted["score"] == score and noted["pairs"] == len(pairs)
    for name, value in pair_report(now, known, 0.1).items():
        assert noted[name] == pytest.approx(value, abs=1e-12)
    close(
        torch.tensor(noted["margin"]),
        noted["chosen_reward"] - noted["rejected_reward"],
        1e-6,
    )


def test_a_score_that_is_not_a_number_is_refused():
    policy, _, judge_ = three_models()
    with torch.no_grad():
        judge_.head.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="score of an answer is NaN"):
        on_policy_pairs(policy, judge_, PROMPTS, TINY, seeded(0))


def test_answers_that_differ_in_nothing_but_rounding_are_no_pair(monkeypatch):
    policy, _, judge_ = three_models()
    said = [[TOKENIZER.ids["a"], END]] * TINY.samples * len(PROMPTS)
    monkeypatch.setattr(
        module,
        "generate",
        lambda *_, **__: types.SimpleNamespace(responses=lambda: said),
    )
    scores = 1e-7 * torch.arange(len(said))
    pairs, score = on_policy_pairs(policy, lambda *_: scores, PROMPTS, TINY, seeded(0))
    assert pairs == [] and score == pytest.approx(scores.mean().item())


def test_a_loss_that_is_no_longer_a_number_is_refused(monkeypatch):
    policy, reference, judge_ = three_models(torch.float32)
    before = weights(policy)
    monkeypatch.setattr(
        dpo, "dpo_loss", lambda *_: torch.tensor(torch.nan, requires_grad=True)
    )
    with pytest.raises(ValueError, match="the loss of step 0 is nan: lower the rate"):
        list(online_dpo_rounds(policy, reference, judge_, QUESTIONS, TINY))
    assert same(before, policy)
