"""Exercises: right answers however written, every mistake by its name, every other
fault, and no stage spoilt.
"""

import ast
import importlib
import itertools
import math
import re
import statistics
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import (
    CORPUS,
    TOKENIZER,
    close,
    empty_shelf,
    judge,
    moved,
    pair,
    same,
    weights,
)

from posttrain import dpo, logprobs, ppo, reward_model, stages
from posttrain.dpo import DPOConfig, dpo_steps
from posttrain.keep import store, workers
from posttrain.lab import enumerable
from posttrain.lab.enumerable import build_world
from posttrain.lab.enumerable import ppo_run as ppo_run_of_words
from posttrain.ppo import PPOConfig, assemble, ppo_steps
from posttrain.practice import exercises
from posttrain.practice.exercises import (
    EXERCISES,
    Outcome,
    agree,
    check,
    difference,
    names,
    outcome,
    plugged_in,
    size,
)
from posttrain.preference_pairs import encode_pairs
from posttrain.tokenizer import CharTokenizer

ROOT = Path(__file__).resolve().parents[2]
ALL = [
    (name, mistake, i)
    for name, exercise in EXERCISES.items()
    for mistake in exercise.mistakes
    for i in range(len(mistake.functions))
]


# The exercises themselves


def test_there_are_exercises_for_each_chapter():
    assert set(names().values()) == {1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
    assert list(names()) == [
        exercise.function.__name__ for exercise in EXERCISES.values()
    ]


@pytest.mark.parametrize("name", EXERCISES)
def test_the_books_own_function_is_right(name):
    result = check(name, EXERCISES[name].function)
    assert (
        result
        and result.right
        and result.name == ""
        and repr(result).startswith(f"{name}: right")
    )


@pytest.mark.parametrize("name", EXERCISES)
def test_each_exercise_has_five_mistakes_or_more_and_a_plain_case(name):
    exercise = EXERCISES[name]
    called = [mistake.name for mistake in exercise.mistakes]
    assert len(called) >= 5 and len(set(called)) == len(called)
    assert exercise.cases[0].kind == "" and all(
        case.kind for case in exercise.cases[1:]
    )
    assert not [
        mistake
        for mistake in exercise.mistakes
        if ":" in mistake.name or mistake.why.endswith(".")
    ]


@pytest.mark.parametrize(
    ("name", "mistake", "way"),
    ALL,
    ids=[f"{name}-{mistake.name}-{i}" for name, mistake, i in ALL],
)
def test_each_mistake_is_called_by_its_name_with_a_small_example(name, mistake, way):
    result = check(name, mistake.functions[way])
    assert not result and result.name == mistake.name
    first, *lines = repr(result).splitlines()
    assert first == f"{name}: {mistake.name}: {mistake.why}."
    yours, right = lines[-2:]
    assert (
        yours.startswith("    yours: ")
        and right.startswith("    right: ")
        and yours[11:] != right[11:]
    )
    shown = [line.split(" = ")[0].strip() for line in lines[:-2]]
    # As many numbers as can be followed by eye
    assert (
        shown
        and len(re.findall(r"\d+", " ".join(lines[:-2]))) <= 60
        and max(map(len, lines)) <= 160
    )


@pytest.mark.parametrize("name", EXERCISES)
def test_no_two_mistakes_of_an_exercise_give_the_same(name):
    exercise = EXERCISES[name]
    answered = [
        case
        for case in exercise.cases
        if outcome(exercise, exercise.function, case).error is None
    ]
    functions = [("the book's own", exercise.function)]
    functions += [
        (mistake.name, function)
        for mistake in exercise.mistakes
        for function in mistake.functions
    ]
    seen = [
        (called, [outcome(exercise, function, case) for case in answered])
        for called, function in functions
    ]
    for (one, made), (other, found) in itertools.combinations(seen, 2):
        assert one == other or not agree(exercise, made, found), (one, other)


def test_the_example_is_the_smallest_case_that_fails():
    exercise = EXERCISES["policy_loss"]
    (mistake,) = [
        mistake
        for mistake in exercise.mistakes
        if mistake.name == "the mask is ignored"
    ]
    fails = [
        case
        for case in exercise.cases
        if difference(
            exercise,
            outcome(exercise, mistake.function, case),
            outcome(exercise, exercise.function, case),
        )
    ]
    fails = [
        case
        for case in fails
        if outcome(exercise, exercise.function, case).error is None
    ]
    assert len({size(case) for case in fails}) > 1
    smallest = min(fails, key=size)
    assert (
        f"advantages = {exercises.show(smallest.arguments['advantages'], 6)}\n"
        in repr(check("policy_loss", mistake.function))
    )


# The same functions, written in another way


def labels_by_looking_back(tokens, tokenizer):
    marks = [
        [t for t in tokens[:i] if t in (tokenizer.assistant, tokenizer.end)][-1:]
        for i in range(len(tokens))
    ]
    return [
        t if mark == [tokenizer.assistant] else -100 for t, mark in zip(tokens, marks)
    ]


def sft_loss_in_a_loop(logits, labels, n_graded=None):
    found = [
        logits[row, t - 1].logsumexp(-1) - logits[row, t - 1, labels[row, t]]
        for row in range(len(labels))
        for t in range(1, labels.size(1))
        if labels[row, t] != -100
    ]
    if not found:
        raise ValueError("nothing is graded")
    return torch.stack(found).sum() / (n_graded or len(found))


def bradley_terry_by_softplus(chosen, rejected, centring=0.0):
    if not torch.isfinite(chosen - rejected).all():
        raise ValueError("not a number")
    return (
        F.softplus(rejected - chosen) + centring * (chosen + rejected) ** 2
    ).sum() / len(chosen)


def last_of_in_a_loop(values, mask):
    if not mask.any(1).all():
        raise ValueError("nothing to read")
    return torch.stack([row[where][-1] for row, where in zip(values, mask)])


def kl_by_hyperbolic_sine(logprobs, reference_logprobs, kind="k1"):
    r = reference_logprobs - logprobs
    formulas = dict(k1=-r, k2=0.5 * r * r, k3=2 * (r / 2).exp() * torch.sinh(r / 2) - r)
    if kind not in formulas:
        raise ValueError(kind)
    return formulas[kind]


def gae_as_a_double_sum(rewards, values, actions, gamma=1.0, lam=0.95):
    B, A = rewards.shape
    advantages = torch.zeros(B, A, dtype=rewards.dtype)
    for row in range(B):
        steps = actions[row].nonzero().flatten().tolist()
        v = {t: values[row, t] for t in steps}
        for t in steps:
            advantages[row, t] = sum(
                (gamma * lam) ** (s - t)
                * (rewards[row, s] + gamma * v.get(s + 1, 0.0) - v[s])
                for s in steps
                if s >= t
            )
    return advantages, torch.where(
        actions, advantages + values, torch.zeros_like(values)
    )


def whiten_by_the_library(values, mask):
    chosen = values[mask].tolist()
    if not chosen:
        raise ValueError("nothing to whiten")
    mean, deviation = statistics.fmean(chosen), statistics.pstdev(chosen)
    white = torch.zeros_like(values)
    white[mask] = (values[mask] - mean) / (deviation + 1e-8)
    return white


def policy_loss_by_cases(logprobs, old_logprobs, advantages, actions, clip_eps=0.2):
    if not actions.any():
        raise ValueError("no action")
    ratio = logprobs[actions].exp() / old_logprobs[actions].exp()
    gains = advantages[actions]
    held = ((gains > 0) & (ratio > 1 + clip_eps)) | (
        (gains < 0) & (ratio < 1 - clip_eps)
    )
    bound = torch.where(
        gains > 0,
        torch.full_like(ratio, 1 + clip_eps),
        torch.full_like(ratio, 1 - clip_eps),
    )
    return -(torch.where(held, bound, ratio) * gains).mean(), held.double().mean()


def value_loss_by_cases(values, old_values, returns, actions, clip=0.2):
    v, old, wanted = values[actions], old_values[actions], returns[actions]
    if len(v) == 0:
        raise ValueError("no action")
    near = torch.minimum(torch.maximum(v, old - clip), old + clip) if clip else v
    return ((v - wanted).abs().maximum((near - wanted).abs()) ** 2).sum() / (2 * len(v))


def logprobs_one_by_one(model, tokens, mask, temperature=1.0):
    rows = []
    for row, chosen in zip(tokens, mask):
        at = chosen.nonzero().flatten().tolist()
        rows.append(
            sum(
                (model(row[None, :t])[0, -1] / temperature).log_softmax(-1)[row[t]]
                for t in at
            )
        )
    return torch.stack(rows)


def dpo_by_rewards(
    chosen,
    rejected,
    reference_chosen,
    reference_rejected,
    beta=0.1,
    label_smoothing=0.0,
):
    h = (
        beta * chosen
        - beta * reference_chosen
        - beta * rejected
        + beta * reference_rejected
    )
    return (F.softplus(-h) + label_smoothing * h).mean()


def sharded_bytes_by_addition(parameters, gpus, zero):
    if zero not in (0, 1, 2, 3):
        raise ValueError(zero)
    whole, slices = {0: (16, 0), 1: (4, 12), 2: (2, 14), 3: (0, 16)}[zero]
    return whole * parameters + slices * parameters / gpus


def best_of_n_kl_in_another_order(n):
    return -math.log(1 / n) - 1 + 1 / n if n >= 1 else int("none")


def win_rate_by_sign(scores, others):
    return statistics.fmean(
        [1 / 2 if a == b else float(a > b) for a, b in zip(scores, others)]
    )


def rotate_by_a_matrix(x, rotation):
    cos, sin = rotation.unsqueeze(-3).unbind(-1)
    turns = torch.stack(
        [torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2
    )  # (..., T, 1, hs/2, 2, 2)
    return (turns @ x.unflatten(-1, (-1, 2)).unsqueeze(-1)).flatten(-3)


def visible_one_by_one(mask):
    rows = [
        [
            [s == t or (s < t and row[s]) for s in range(len(row))]
            for t in range(len(row))
        ]
        for row in mask.tolist()
    ]
    return torch.tensor(rows).unsqueeze(1)


def parameters_by_adding_up(shape):
    C, F, hs = (
        shape.width,
        shape.mlp_width,
        shape.head_size or shape.width // shape.n_head,
    )
    Q, K = hs * shape.n_head, hs * shape.n_kv_head
    if shape.gated:
        block = (
            2 * C * Q
            + 2 * C * K
            + 3 * C * F
            + 2 * C
            + (Q + 2 * K if shape.qkv_bias else 0)
        )
    else:
        block = 4 * C * C + 2 * C * F + 3 * C + C + F + C + 4 * C
    rows = shape.vocab_size + shape.positions + (0 if shape.tied else shape.vocab_size)
    return rows * C + shape.n_layer * block + (C if shape.gated else 2 * C)


def best_and_worst_one_by_one(scores, usable, leave_out=False):
    best, worst = [], []
    for row, ends in zip(scores.tolist(), usable.tolist()):
        marks = [score if end else -math.inf for score, end in zip(row, ends)]
        allowed = [i for i, end in enumerate(ends) if end or not leave_out]
        one = max(range(len(row)), key=lambda i: marks[i])
        other = min(allowed, key=lambda i: marks[i], default=one)
        better = marks[one] > marks[other]
        best.append(one if better else -1)
        worst.append(other if better else -1)
    return torch.tensor(best), torch.tensor(worst)


def low_rank_as_one_matrix(x, A, B, alpha):
    return x @ (alpha / len(A) * B @ A).T


def quantize_one_by_one(weights, levels, block=64):
    flat, codes, scales = weights.flatten().float().tolist(), [], []
    for start in range(0, len(flat), block):
        row = flat[start : start + block]
        if not all(map(math.isfinite, row)):
            raise ValueError("not finite")
        row += [0.0] * (block - len(row))
        scales.append(max(map(abs, row)))
        unit = [value / scales[-1] if scales[-1] else 0.0 for value in row]
        codes.append(
            [
                min(range(len(levels)), key=lambda i: abs(levels[i].item() - value))
                for value in unit
            ]
        )
    return torch.tensor(codes, dtype=torch.uint8), torch.tensor(scales)


WRITTEN_ANEW = dict(
    rotate=rotate_by_a_matrix,
    visible=visible_one_by_one,
    build_labels=labels_by_looking_back,
    sft_loss=sft_loss_in_a_loop,
    bradley_terry_loss=bradley_terry_by_softplus,
    last_of=last_of_in_a_loop,
    kl_estimate=kl_by_hyperbolic_sine,
    gae=gae_as_a_double_sum,
    whiten=whiten_by_the_library,
    policy_loss=policy_loss_by_cases,
    value_loss=value_loss_by_cases,
    get_response_log_probs=logprobs_one_by_one,
    dpo_loss=dpo_by_rewards,
    best_of_n_kl=best_of_n_kl_in_another_order,
    win_rate=win_rate_by_sign,
    parameters=parameters_by_adding_up,
    sharded_bytes=sharded_bytes_by_addition,
    break_even_tokens=lambda F, W, k=2.0: k * F / (3 * W),
    best_and_worst=best_and_worst_one_by_one,
    low_rank=low_rank_as_one_matrix,
    quantize=quantize_one_by_one,
)


@pytest.mark.parametrize("name", EXERCISES)
def test_a_right_function_written_in_another_way_is_right(name):
    result = check(name, WRITTEN_ANEW[name])
    assert result, result


def policy_loss_with(share):
    """The right loss, and share(free, clipped, actions)."""

    def written(logprobs, old_logprobs, advantages, actions, clip_eps=0.2):
        ratio = (logprobs - old_logprobs).exp()
        a, b = (
            -ratio * advantages,
            -ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages,
        )
        return logprobs_mean(torch.maximum(a, b), actions), share(a, b, actions)

    return written


def logprobs_mean(values, mask):
    if mask.sum() == 0:
        raise ValueError("the mean of nothing")
    return (values * mask).sum() / mask.sum()


class Refusal(ValueError):
    """A reader's own kind of ValueError."""


def best_of_n_kl_with_its_own_error(n):
    if n < 1:
        raise Refusal(n)
    return float(torch.tensor(float(n)).double().log()) - 1 + 1 / n


@pytest.mark.parametrize(
    ("name", "function"),
    [
        (
            "policy_loss",
            policy_loss_with(
                lambda a, b, actions: ((b > a) * actions).sum() / actions.sum()
            ),
        ),
        (
            "policy_loss",
            policy_loss_with(lambda a, b, actions: (b > a)[actions].float().mean()),
        ),
        (
            "policy_loss",
            policy_loss_with(
                lambda a, b, actions: (b > a)[actions].double().mean().item()
            ),
        ),
        (
            "policy_loss",
            policy_loss_with(
                lambda a, b, actions: (b > a)[actions].float().mean().item()
            ),
        ),
        (
            "policy_loss",
            policy_loss_with(
                lambda a, b, actions: np.float32((b > a)[actions].float().mean().item())
            ),
        ),
        (
            "policy_loss",
            lambda *arguments: list(EXERCISES["policy_loss"].function(*arguments)),
        ),
        (
            "win_rate",
            lambda a, b: win_rate_by_tensors(torch.tensor(a), torch.tensor(b)),
        ),
        ("best_of_n_kl", best_of_n_kl_with_its_own_error),
    ],
)
def test_right_idioms_are_right(name, function):
    result = check(name, function)
    assert result, result


def win_rate_by_tensors(a, b):
    return ((a > b).float() + 0.5 * (a == b).float()).mean().item()


# Wrong functions, as readers write them


def gae_off_by_one(rewards, values, actions, gamma=1.0, lam=0.95):
    advantages, running = torch.zeros_like(values), 0
    for t in range(values.size(1) - 1, -1, -1):
        delta = rewards[:, t] + gamma * values[:, t] - values[:, t]
        running = (delta + gamma * lam * running) * actions[:, t]
        advantages[:, t] = running
    return advantages, (advantages + values) * actions


def gae_bootstrapped(rewards, values, actions, gamma=1.0, lam=0.95):
    advantages, running = torch.zeros_like(values), 0
    following = torch.cat(
        [values[:, 1:] * actions[:, 1:], torch.zeros(len(values), 1)], 1
    )
    for row in range(len(values)):
        last = int(actions[row].nonzero().max())
        following[row, last] = values[row, last]
    for t in reversed(range(values.size(1))):
        running = (
            rewards[:, t]
            + gamma * following[:, t]
            - values[:, t]
            + gamma * lam * running
        ) * actions[:, t]
        advantages[:, t] = running
    return advantages, (advantages + values) * actions


def gae_of(rewards, values, actions, gamma, decay, sign=-1, forwards=False):
    """The loop, with each of its parts to be exchanged."""
    values = values * actions
    advantages, after, running = torch.zeros_like(values), 0.0, 0.0
    columns = list(range(values.size(1)))
    for t in columns if forwards else columns[::-1]:
        running = (
            rewards[:, t] + gamma * after + sign * values[:, t] + decay * running
        ) * actions[:, t]
        advantages[:, t], after = running, values[:, t]
    return advantages, advantages + values


def gae_without_masked_values(rewards, values, actions, gamma=1.0, lam=0.95):
    advantages, running = torch.zeros_like(values), 0.0
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], 1)
    for t in reversed(range(values.size(1))):
        running = actions[:, t] * (
            rewards[:, t]
            + gamma * following[:, t]
            - values[:, t]
            + gamma * lam * running
        )
        advantages[:, t] = running
    return advantages, actions * (advantages + values)


def gae_from_the_last_value(rewards, values, actions, gamma=1.0, lam=0.95):
    values = values * actions
    advantages, running = torch.zeros_like(values), 0.0
    following = torch.cat([values[:, 1:], values[:, -1:]], 1)
    for t in reversed(range(values.size(1))):
        running = actions[:, t] * (
            rewards[:, t]
            + gamma * following[:, t]
            - values[:, t]
            + gamma * lam * running
        )
        advantages[:, t] = running
    return advantages, advantages + values


def divided_alone(values, mask):
    chosen = values[mask]
    deviation = ((chosen - chosen.mean()).square().mean() + 1e-8).sqrt()
    return mask * (values / deviation)


def averaged_logprobs(model, tokens, mask, temperature=1.0):
    logprobs = F.log_softmax(model(tokens)[:, :-1] / temperature, -1)
    picked = torch.gather(logprobs, 2, tokens[:, 1:].unsqueeze(2)).squeeze(2)
    return (picked * mask[:, 1:]).sum(1) / mask[:, 1:].sum(1)


def prompt_counted(model, tokens, mask, temperature=1.0):
    logprobs = F.log_softmax(model(tokens)[:, :-1] / temperature, -1)
    picked = torch.gather(logprobs, 2, tokens[:, 1:].unsqueeze(2)).squeeze(2)
    ends = [int(row.nonzero().max()) for row in mask]
    return torch.stack([row[:end].sum() for row, end in zip(picked, ends)])


def unshifted_sft(logits, labels, n_graded=None):
    return F.cross_entropy(logits.transpose(1, 2), labels, reduction="sum") / (
        n_graded or int((labels != -100).sum())
    )


def divided_by_beta(c, r, ref_c, ref_r, beta=0.1, label_smoothing=0.0):
    h = (c - ref_c - r + ref_r) / beta
    return (
        F.softplus(-h) * (1 - label_smoothing) + F.softplus(h) * label_smoothing
    ).mean()


def unclipped(logprobs, old_logprobs, advantages, actions, clip_eps=0.2):
    ratio = (logprobs - old_logprobs)[actions].exp()
    return -(ratio * advantages[actions]).mean(), (
        (ratio - 1).abs() > clip_eps
    ).double().mean()


def unbiased_whitening(values, mask):
    chosen = values[mask]
    white = (values - chosen.mean()) / (
        ((chosen - chosen.mean()) ** 2).sum() / (len(chosen) - 1) + 1e-8
    ).sqrt()
    return white * mask


def pointwise_by_the_library(chosen, rejected, centring=0.0):
    """The mean over all 2B answers, as the library takes it."""
    scores, labels = (
        torch.cat([chosen, rejected]),
        torch.cat([chosen * 0 + 1, rejected * 0]),
    )
    loss = F.binary_cross_entropy_with_logits(scores, labels)
    return loss + centring * (chosen + rejected).square().mean()


def sft_draft(labels, logits):
    """The two in another order, and n_graded forgotten."""
    loss = F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    )
    return loss / labels[:, 1:].numel()


def policy_draft(old_logprobs, logprobs, actions, advantages):
    return EXERCISES["policy_loss"].function(
        old_logprobs, logprobs, advantages, actions
    )


def gae_draft(values, rewards, actions):
    advantages, _ = gae(rewards, values, actions)
    return advantages, advantages


@pytest.mark.parametrize(
    ("name", "function", "called"),
    [
        (
            "sft_loss",
            lambda logits, labels, n=None: F.cross_entropy(
                logits.flatten(0, 1), labels.flatten()
            ),
            "off by one",
        ),
        (
            "sft_loss",
            lambda logits, labels, n=None: (
                F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
                / (n or (labels[:, 1:] >= 0).sum())
            ),
            "off by one",
        ),
        (
            "sft_loss",
            lambda logits, labels, n=None: F.cross_entropy(
                logits[:, :-1], labels[:, 1:]
            ),
            "softmax over the wrong axis",
        ),
        (
            "sft_loss",
            lambda logits, labels, n=None: sft(
                logits - logits.logsumexp(1, keepdim=True), labels, n
            ),
            "the wrong value",
        ),
        (
            "gae",
            lambda r, v, m, *rest: tuple(
                part * m for part in gae(r, v, torch.ones_like(m), *rest)
            ),
            "only the results are masked",
        ),
        ("gae", gae_without_masked_values, "the padding's value leaks in"),
        ("gae", gae_from_the_last_value, "something after the end"),
        (
            "gae",
            lambda *arguments: (gae(*arguments)[1], gae(*arguments)[0]),
            "the two results swapped",
        ),
        (
            "gae",
            lambda r, v, m, gamma=1.0, lam=0.95: gae_of(r, v, m, 1.0, gamma * lam),
            "gamma is missing in the surprise",
        ),
        (
            "gae",
            lambda r, v, m, gamma=1.0, lam=0.95: gae_of(r, v, m, gamma, lam),
            "gamma is missing in the sum",
        ),
        (
            "gae",
            lambda r, v, m, gamma=1.0, lam=0.95: gae_of(
                r, v, m, gamma, gamma * lam, sign=1
            ),
            "the sign of a value",
        ),
        (
            "gae",
            lambda r, v, m, gamma=1.0, lam=0.95: gae_of(
                r, v, m, gamma, gamma * lam, forwards=True
            ),
            "forwards in time",
        ),
        (
            "gae",
            lambda r, v, m, *rest: (
                gae(r, v, m, *rest)[0],
                (r * m).flip(1).cumsum(1).flip(1) * m,
            ),
            "returns of the rewards alone",
        ),
        (
            "gae",
            lambda r, v, m, *rest: (gae(r, v, m, *rest)[0], gae(r, v, m, *rest)[0] + v),
            "returns that are not masked",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: bradley_terry(c, r, 0) + k * ((c + r) ** 2).sum(),
            "the centring's sum",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: bradley_terry(c, r, k / 2),
            "half the centring",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: bradley_terry(c, r, -k),
            "the centring is taken off",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (
                bradley_terry(c, r, 0) + k * (c**2).mean() + k * (r**2).mean()
            ),
            "each score is centred by itself",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (
                -torch.log(torch.sigmoid(c - r).clamp(min=1e-7)).mean()
                + k * (c + r).square().mean()
            ),
            "the sigmoid is clamped",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (
                -torch.log(torch.sigmoid(c - r) + 1e-8).mean()
                + k * (c + r).square().mean()
            ),
            "the sigmoid is clamped",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (
                F.softplus(r[None, :] - c[:, None]).mean() + k * (c + r).square().mean()
            ),
            "all against all",
        ),
        (
            "whiten",
            divided_alone,
            "the mean is not taken away",
        ),
        (
            "policy_loss",
            lambda *arguments: policy_loss(*arguments)[::-1],
            "the two results swapped",
        ),
        (
            "policy_loss",
            lambda *arguments: (
                policy_loss(*arguments)[1].float(),
                policy_loss(*arguments)[0],
            ),
            "the two results swapped",
        ),
        (
            "policy_loss",
            policy_loss_with(lambda a, b, actions: (b >= a)[actions].float().mean()),
            "the share with >=",
        ),
        (
            "policy_loss",
            policy_loss_with(lambda a, b, actions: int(((b > a) & actions).sum())),
            "a number instead of the share",
        ),
        (
            "policy_loss",
            policy_loss_with(lambda a, b, actions: (b > a).float().mean()),
            "the share of all columns",
        ),
        (
            "get_response_log_probs",
            lambda model, tokens, mask, t=1.0: (
                -logprobs_one_by_one(model, tokens, mask, t)
            ),
            "the wrong sign",
        ),
        (
            "get_response_log_probs",
            lambda model, tokens, mask, t=1.0: logprobs_one_by_one(
                lambda x: t * model(x), tokens, mask
            ),
            "the temperature multiplies",
        ),
        (
            "get_response_log_probs",
            lambda model, tokens, mask, t=1.0: (
                logprobs_one_by_one(model, tokens, mask, t) / mask.size(1)
            ),
            "the mean over all columns",
        ),
        (
            "kl_estimate",
            lambda p, q, kind="k1": (
                torch.expm1(q - p) - (p - q)
                if kind == "k3"
                else EXERCISES["kl_estimate"].function(p, q, kind)
            ),
            "k3 with -d at the end",
        ),
        ("best_of_n_kl", lambda n: 1 - 1 / n - math.log(n), "negated"),
        (
            "win_rate",
            lambda a, b: float(np.mean(a) > np.mean(b)),
            "the means are compared",
        ),
        ("win_rate", lambda a, b: -win_rate_by_sign(a, b), "negated"),
        (
            "build_labels",
            lambda tokens, tokenizer: [
                -1 if t == -100 else t
                for t in labels_by_looking_back(tokens, tokenizer)
            ],
            "-1 for what is not graded",
        ),
        (
            "build_labels",
            lambda tokens, tokenizer: [
                None if t == -100 else t
                for t in labels_by_looking_back(tokens, tokenizer)
            ],
            "None for what is not graded",
        ),
        ("gae", gae_off_by_one, "off by one"),
        ("gae", gae_bootstrapped, "something after the end"),
        (
            "gae",
            lambda r, v, m, *rest: (gae_off_by_one(r, v, m, *rest)[0], v),
            "off by one",
        ),  # and wrong returns
        ("get_response_log_probs", averaged_logprobs, "the mean instead of the sum"),
        ("get_response_log_probs", prompt_counted, "the prompt is counted"),
        ("sft_loss", unshifted_sft, "off by one"),
        ("dpo_loss", divided_by_beta, "beta the wrong way round"),
        ("policy_loss", unclipped, "no clip"),  # and another share
        ("whiten", unbiased_whitening, "n - 1 instead of n"),
        ("last_of", lambda values, mask: values[:, -1], "the last column"),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (-(c - r).sigmoid().log() + k * (c + r) ** 2).mean(),
            "the logarithm of a rounded 0",
        ),
        (
            "kl_estimate",
            lambda p, q, kind="k1": {
                "k1": p - q,
                "k2": (p - q) ** 2 / 2,
                "k3": (p - q).exp() - 1 - (p - q),
            }[kind],
            "k3 has the wrong sign",
        ),
        (
            "kl_estimate",
            lambda p, q, kind="k1": (
                (p - q).exp()
                if kind == "k2"
                else EXERCISES["kl_estimate"].function(p, q, "k1")
            ),
            "the wrong value",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (-(r - c).sigmoid().log() + k * (c + r) ** 2).mean(),
            "chosen and rejected the wrong way round",
        ),
        (
            "value_loss",
            lambda v, o, r, m, clip=0.2: ((v - r)[m] ** 2).mean() / 2,
            "no clip",
        ),
        ("best_of_n_kl", lambda n: math.log(n), "log n alone"),
        ("bradley_terry_loss", pointwise_by_the_library, "a pointwise loss"),
        (
            "sft_loss",
            lambda logits, labels: sft_loss_in_a_loop(logits, labels),
            "n_graded is ignored",
        ),
        (
            "sft_loss",
            lambda logits, labels: -sft_loss_in_a_loop(logits, labels),
            "the wrong sign",
        ),
        ("sft_loss", sft_draft, "the mean over all tokens"),
        ("last_of", lambda mask, values: values[:, -1], "the last column"),
        ("policy_loss", policy_draft, "the ratio upside down"),
        ("gae", gae_draft, "returns without the values"),
        ("build_labels", lambda tokens, tokenizer: list(tokens), "the mask is missing"),
        (
            "win_rate",
            lambda a, b: sum(x > y for x, y in zip(a, b)) / len(a),
            "a tie is a loss",
        ),
    ],
)
def test_a_mistake_is_known_however_it_is_written(name, function, called):
    result = check(name, function)
    assert not result and result.name == called, result


# What fits no mistake


def last_of(values, mask):
    return EXERCISES["last_of"].function(values, mask)


def gae(*arguments):
    return EXERCISES["gae"].function(*arguments)


def gae_in_place(rewards, values, actions, gamma=1.0, lam=0.95):
    values *= actions
    return gae(rewards, values, actions, gamma, lam)


def policy_loss(*arguments):
    return EXERCISES["policy_loss"].function(*arguments)


def refused_where(wrong):
    if wrong:
        raise ValueError("refused")


def bradley_terry(c, r, k):
    return F.softplus(r - c).mean() + k * (c + r).square().mean()


def sft(logits, labels, n_graded):
    n_graded = n_graded or (labels[:, 1:] != -100).sum()
    return (
        F.cross_entropy(
            logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
        )
        / n_graded
    )


def best_of_n_kl_asserted(n):
    assert n >= 1
    return math.log(n) - 1 + 1 / n


def last_of_in_order(values, mask):
    return torch.stack(
        [values[i, row.nonzero().flatten().tolist()[-1]] for i, row in enumerate(mask)]
    )


def gae_in_single_precision(rewards, values, actions, gamma=1.0, lam=0.95):
    values = values * actions
    advantages, after, running = torch.zeros(*values.shape), 0.0, 0.0
    for t in reversed(range(values.size(1))):
        running = (
            rewards[:, t] + gamma * after - values[:, t] + gamma * lam * running
        ) * actions[:, t]
        advantages[:, t], after = running, values[:, t]
    return advantages, advantages + values


def last_of_in_place(values, mask):
    last = last_of(values.clone(), mask)
    values.zero_()
    return last


def with_gradient_of(value, other):
    return value.detach() + other - other.detach()


def labels_in_place(tokens, tokenizer):
    labels = EXERCISES["build_labels"].function(tokens, tokenizer)
    tokens.clear()
    return labels


@pytest.mark.parametrize(
    ("name", "function", "sentence"),
    [
        ("last_of", lambda values, mask: None, "it returns None"),
        (
            "last_of",
            lambda values, mask: last_of(values, mask).tolist(),
            "the wrong type, a list instead of a tensor",
        ),
        (
            "last_of",
            lambda values, mask: last_of(values, mask)[:, None],
            "the wrong shape, (1, 1) instead of (1,)",
        ),
        (
            "last_of",
            lambda values, mask: last_of(values, mask).float(),
            "the wrong dtype, torch.float32 instead of torch.float64: new tensors "
            "default to float32, so use torch.zeros_like(values)",
        ),
        (
            "last_of",
            lambda values, mask: 3 * last_of(values, mask),
            "the wrong value: in every case, and by no mistake",
        ),
        (
            "last_of",
            lambda values, mask: values[:, -1] if mask.all() else values[0, 99],
            "it raises IndexError: right in the plain case, wrong with",
        ),
        (
            "last_of",
            lambda values, mask: values[0, 99],
            "it raises IndexError: in every case",
        ),
        (
            "last_of",
            lambda values, mask: last_of(values, mask) / 0,
            "it returns NaN or infinity",
        ),
        (
            "last_of",
            lambda values, mask: last_of(values, mask).detach(),
            "right value, no gradient",
        ),
        (
            "last_of",
            lambda values, mask: (
                last_of(values, mask) + values[:, 0] - values[:, 0].detach()
            ),
            "right value, wrong gradient",
        ),
        (
            "last_of",
            lambda values, mask: with_gradient_of(
                last_of(values, mask), last_of(values, mask).flip(0)
            ),
            "right value, wrong gradient: wrong with rows of unequal length, right in "
            "all other cases",
        ),
        ("last_of", lambda values: values, "it raises TypeError"),
        (
            "last_of",
            lambda values, mask: last_of(values, mask | ~mask.any(1, keepdim=True)),
            "not refused: it should raise ValueError for a row without an answer",
        ),
        (
            "last_of",
            last_of_in_place,
            "its input is changed: right, but values is overwritten",
        ),
        ("gae", gae_in_place, "its input is changed: right, but values is overwritten"),
        (
            "build_labels",
            labels_in_place,
            "its input is changed: right, but tokens is overwritten",
        ),
        (
            "build_labels",
            lambda tokens, tokenizer: [None for _ in tokens],
            "it returns something other than numbers",
        ),
        (
            "build_labels",
            lambda tokens, tokenizer: [torch.ones(2) for _ in tokens],
            "it returns something other than numbers",
        ),
        (
            "build_labels",
            lambda tokens, tokenizer: tuple(tokens),
            "the wrong type, a tuple instead of a list",
        ),
        (
            "gae",
            lambda *arguments: gae(*arguments)[0],
            "it returns 1 value, and should return 2 values",
        ),
        (
            "gae",
            lambda r, v, m, gamma=1.0, lam=0.95: gae(
                r, v, m, gamma, lam if lam != 0.5 else 0.6
            ),
            "the wrong value for the advantages: wrong with gamma and lambda, right "
            "in all other cases",
        ),
        (
            "gae",
            lambda r, v, m, *rest: gae(r + (v * ~m).sum(1, keepdim=True), v, m, *rest),
            "the wrong value for the advantages: right in the plain case, wrong with "
            "padding, a prompt",
        ),
        (
            "gae",
            lambda *arguments: (gae(*arguments)[0], None),
            "it returns None for the returns: in every case",
        ),
        (
            "gae",
            lambda *arguments: (gae(*arguments)[0], 2 * gae(*arguments)[1]),
            "the wrong value for the returns: in every case",
        ),
        (
            "gae",
            lambda *arguments: tuple(part.numpy() for part in gae(*arguments)),
            "the wrong type for the advantages, a numpy.ndarray instead of a tensor",
        ),
        (
            "gae",
            lambda *arguments: (*gae(*arguments), 0),
            "it returns 3 values, and should return 2 values",
        ),
        (
            "gae",
            lambda *arguments: (),
            "it returns 0 values, and should return 2 values",
        ),
        (
            "gae",
            lambda *arguments: (gae(*arguments)[0].tolist(), gae(*arguments)[1]),
            "the wrong type for the advantages, a list instead of a tensor",
        ),
        (
            "last_of",
            lambda values, mask: (last_of(values, mask), mask),
            "it returns 2 values, and should return 1 value",
        ),
        (
            "last_of",
            lambda values, mask: (last_of(values, mask),),
            "the wrong type, a tuple instead of a tensor",
        ),
        (
            "last_of",
            lambda values, mask: [last_of(values, mask)],
            "the wrong type, a list instead of a tensor",
        ),
        (
            "policy_loss",
            lambda *arguments: (
                policy_loss(*arguments)[0],
                policy_loss(*arguments)[1] + 0.1,
            ),
            "the wrong value for the share: in every case",
        ),
        (
            "policy_loss",
            lambda *arguments: (policy_loss(*arguments)[0], None),
            "it returns None for the share: in every case",
        ),
        (
            "policy_loss",
            lambda *arguments: (
                policy_loss(*arguments)[0],
                policy_loss(*arguments)[1] / 0,
            ),
            "it returns NaN or infinity for the share: in every case",
        ),
        (
            "policy_loss",
            lambda *arguments: (policy_loss(*arguments)[0], "none"),
            "it returns something other than numbers for the share: in every case",
        ),
        (
            "policy_loss",
            lambda *arguments: (
                policy_loss(*arguments)[0].detach(),
                policy_loss(*arguments)[1],
            ),
            "right value, no gradient of the loss: in every case",
        ),
        (
            "policy_loss",
            lambda *arguments: (
                policy_loss(*arguments)[0][None],
                policy_loss(*arguments)[1],
            ),
            "the wrong shape for the loss, (1,) instead of ()",
        ),
        (
            "policy_loss",
            lambda *arguments: (
                policy_loss(*arguments)[0].float(),
                policy_loss(*arguments)[1],
            ),
            "the wrong dtype for the loss, torch.float32 instead of torch.float64",
        ),
        (
            "gae",
            gae_in_single_precision,
            "the wrong dtype for the advantages, torch.float32 instead of "
            "torch.float64: new tensors default to float32, so use "
            "torch.zeros_like(rewards)",
        ),
        (
            "kl_estimate",
            lambda p, q, kind="k1": EXERCISES["kl_estimate"].function(
                p.double(), q.double(), kind
            ),
            "the wrong dtype, torch.float64 instead of torch.float32: keep the dtype "
            "of logprobs",
        ),
        ("gae", lambda *arguments: sys.exit(), "it raises SystemExit: in every case"),
        (
            "last_of",
            lambda values, mask: (
                refused_where(not mask.any())
                or last_of(values, mask | ~mask.any(1, keepdim=True))
            ),
            "not refused: it should raise ValueError for a row without an answer "
            "beside",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (
                refused_where(c.isnan().any()) or bradley_terry(c, r, k)
            ),
            "not refused: it should raise ValueError for a rejected score that is NaN",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (
                refused_where((c - r).isnan().any()) or bradley_terry(c, r, k)
            ),
            "not refused: it should raise ValueError for a score that is infinite",
        ),
        (
            "bradley_terry_loss",
            lambda c, r, k=0.0: (
                refused_where((c + r).isnan().any() or c.isinf().any())
                or bradley_terry(c, r, k)
            ),
            "not refused: it should raise ValueError for a rejected score that is "
            "infinite",
        ),
        (
            "win_rate",
            lambda a, b: (
                sum((x > y + 0.05) + (abs(x - y) <= 0.05) / 2 for x, y in zip(a, b))
                / len(a)
            ),
            "the wrong value: wrong with scores that are close, right in all other "
            "cases",
        ),
        (
            "win_rate",
            lambda a, b: (
                sum((x > y + 0.001) + (abs(x - y) <= 0.001) / 2 for x, y in zip(a, b))
                / len(a)
            ),
            "the wrong value: wrong with scores that are close, right in all other "
            "cases",
        ),
        (
            "win_rate",
            lambda a, b: torch.tensor(EXERCISES["win_rate"].function(a, b)),
            "the wrong type, a tensor instead of a number",
        ),
        (
            "sft_loss",
            lambda logits, labels, n=None: (
                refused_where(not (labels != -100).any()) or sft(logits, labels, n)
            ),
            "not refused: it should raise ValueError for no graded token but the first",
        ),
        (
            "best_of_n_kl",
            lambda n: refused_where(n == 0) or math.log(abs(n)) - (n - 1) / n,
            "not refused: it should raise ValueError for a number of draws below 0",
        ),
        (
            "policy_loss",
            lambda p, q, a, m, *eps: policy_loss(p, q, a, m | ~m.any(), *eps),
            "not refused: it should raise ValueError for actions that are False "
            "everywhere",
        ),
        (
            "value_loss",
            lambda v, o, r, m, *clip: EXERCISES["value_loss"].function(
                v, o, r, m | ~m.any(), *clip
            ),
            "not refused: it should raise ValueError for actions that are False "
            "everywhere",
        ),
        (
            "kl_estimate",
            lambda p, q, kind="k1": EXERCISES["kl_estimate"].function(
                p, q, dict(k1="k1", k2="k2", k3="k3")[kind]
            ),
            "refused with KeyError: it should raise ValueError for another kind",
        ),
        (
            "best_of_n_kl",
            lambda n: best_of_n_kl_asserted(n),
            "refused with AssertionError: it should raise ValueError for no draw",
        ),
        (
            "last_of",
            last_of_in_order,
            "refused with IndexError: it should raise ValueError for a row without an "
            "answer",
        ),
        (
            "best_of_n_kl",
            lambda n: math.log(n) - 1 + 1 / n if n >= 1 else sys.exit(1),
            "refused with SystemExit: it should raise ValueError for no draw",
        ),
        (
            "dpo_loss",
            lambda *arguments: EXERCISES["dpo_loss"].function(*arguments).item(),
            "the wrong type, a number instead of a tensor",
        ),
        (
            "kl_estimate",
            lambda p, q, kind="k1": EXERCISES["kl_estimate"].function(
                p, q, kind if kind != "k4" else "k1"
            ),
            "not refused: it should raise ValueError for another kind",
        ),
        (
            "best_of_n_kl",
            lambda n: math.log(n) - 1 + 1 / n if n else 0.0,
            "not refused: it should raise ValueError for no draw",
        ),
        (
            "best_of_n_kl",
            lambda n: torch.tensor(1.0),
            "the wrong type, a tensor instead of a number",
        ),
        (
            "best_of_n_kl",
            lambda n: 0.5 if n == 2 else EXERCISES["best_of_n_kl"].function(n),
            "the wrong value: in the plain case, too",
        ),
        ("best_of_n_kl", lambda n: math.inf, "it returns NaN or infinity"),
        (
            "last_of",
            lambda mask, values: last_of(values, mask),
            "another order of the parameters: right, but the book calls it with "
            "(values, mask)",
        ),
        (
            "gae",
            lambda r, v, m: gae(r, v, m),
            "the wrong value for the advantages: right in the plain case, wrong with "
            "gamma and lambda, and with rows of unequal length",
        ),
        (
            "gae",
            lambda r, v, m, *rest: gae(r, v, m, *(rest and (rest[0], rest[1] + 0.1))),
            "the wrong value for the advantages: right in the plain case, wrong with "
            "gamma and lambda, and with rows of unequal length",
        ),
        (
            "whiten",
            lambda v, m: EXERCISES["whiten"].function(v, m) + 0.1,
            "the wrong value: in every case",
        ),
    ],
)
def test_what_fits_no_mistake_is_said_in_general_words(name, function, sentence):
    result = check(name, function)
    first = repr(result).splitlines()[0]
    assert (
        not result and first.startswith(f"{name}: {sentence}") and first.endswith(".")
    ), first
    assert "\n    yours: " in repr(result) and "\n    right: " in repr(result)
    assert result.name not in [mistake.name for mistake in EXERCISES[name].mistakes]


def test_a_mistake_in_single_precision_is_called_by_its_name():
    """It is not hidden by a dtype, whichever of the two results has it."""
    for lam, function in (
        (1.0, gae_in_single_precision),
        (0.0, lambda *arguments: (gae(*arguments)[0], gae(*arguments)[1].float())),
    ):
        forgotten = check(
            "gae",
            lambda r, v, m, gamma=1.0, _=0.95, lam=lam, function=function: function(
                r, v, m, gamma, lam
            ),
        )
        assert forgotten.name == (
            "lambda is ignored" if lam else "one surprise alone"
        ), forgotten
    doubled = check(
        "gae", lambda *arguments: (gae(*arguments)[0].float(), 2 * gae(*arguments)[1])
    )
    assert doubled.name == "the wrong value for the returns", doubled


def test_a_dtype_is_shown_with_its_case():
    assert (
        repr(
            check("last_of", lambda values, mask: last_of(values, mask).float())
        ).count("\n")
        == 4
    )


def test_what_dpo_gets_the_wrong_way_round_may_be_the_smoothing():
    swapped = repr(
        check(
            "dpo_loss",
            lambda c, r, rc, rr, beta=0.1, eps=0.0: dpo_by_rewards(
                c, r, rc, rr, beta, 1 - eps
            ),
        )
    )
    assert (
        "the chosen answer's ratio is to rise" in swapped
        and "epsilon and 1 - epsilon are swapped" in swapped
    )


def test_leaving_python_is_a_mistake_and_no_end_and_an_interruption_is_one():
    assert "yours: SystemExit: 3" in repr(check("win_rate", lambda a, b: sys.exit(3)))

    def interrupted(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check("win_rate", interrupted)


@pytest.mark.parametrize("name", ["kl_estimate", "bradley_terry_loss"])
def test_the_letters_are_those_of_the_chapter(name):
    sentences = [mistake.why for mistake in EXERCISES[name].mistakes]
    assert not [why for why in sentences if re.search(r"\b(r|lambda)\b", why)]
    assert [
        why
        for why in sentences
        if re.search(r"\bd\b" if name == "kl_estimate" else r"\bc\b", why)
    ]


def test_an_example_says_what_was_raised_and_what_should_have_been():
    raised = repr(check("last_of", lambda values, mask: values.nonsense))
    assert (
        "yours: AttributeError: 'Tensor' object has no attribute 'nonsense'" in raised
        and "right: [" in raised
    )
    refused = repr(
        check("best_of_n_kl", lambda n: math.log(n) - 1 + 1 / n if n else 0.0)
    )
    assert refused.endswith(
        "    n = 0\n    yours: 0\n    right: ValueError: n is 0: draw at least 1"
    )


def test_a_gradient_is_shown_where_the_values_are_the_same():
    halved = repr(
        check(
            "bradley_terry_loss",
            lambda c, r, *k: EXERCISES["bradley_terry_loss"].function(
                c, r.detach(), *k
            ),
        )
    )
    assert (
        "yours: 0.3133, gradient [-0.2689], [0]\n    right: 0.3133, gradient "
        "[-0.2689], [0.2689]" in halved
    )
    detached = repr(
        check("last_of", lambda values, mask: last_of(values, mask).detach())
    )
    assert ", gradient none\n" in detached


def test_as_many_digits_are_shown_as_it_takes():
    almost = repr(
        check(
            "best_of_n_kl",
            lambda n: math.log(n) - 1 + 1 / n + 1e-6 if n else int("none"),
        )
    )
    assert almost.endswith("yours: 0.19314818\n    right: 0.19314718")
    nearly = repr(
        check(
            "win_rate", lambda a, b: EXERCISES["win_rate"].function(a, b) * (1 + 1e-5)
        )
    )
    assert "yours: 1.00001\n    right: 1" in nearly
    assert exercises.show([torch.tensor([-0.0, 0.5]), 3], 4) == "[[0, 0.5], 3]"


def test_an_input_that_a_function_changes_does_not_spoil_the_next_check():
    assert (
        not check("gae", gae_in_place)
        and not check("last_of", last_of_in_place)
        and not check("build_labels", labels_in_place)
    )
    assert (
        check("gae", gae)
        and check("last_of", last_of)
        and check("build_labels", labels_by_looking_back)
    )


def test_an_unknown_name_and_what_cannot_be_called_are_refused():
    with pytest.raises(
        ValueError,
        match="'gea' is no exercise: use one of rotate, visible, build_labels, "
        ".*win_rate",
    ):
        check("gea", gae)
    with pytest.raises(
        TypeError, match=r"gae is graded by calling it, and \(1, 2\) cannot be called"
    ):
        check("gae", (1, 2))
    with pytest.raises(ValueError, match="no exercise"), plugged_in(gea=gae):
        pass
    with pytest.raises(TypeError, match="cannot be called"), plugged_in(gae=None):
        pass


def test_outcomes_differ_by_the_kind_of_error_and_by_any_part():
    one, two = torch.ones(1), torch.tensor([2.0])
    two_parts = replace(EXERCISES["gae"], tolerance=0.0)
    for mine, right, found in (
        (Outcome((), error=ValueError()), Outcome((), error=ValueError()), ""),
        (Outcome((), error=Refusal()), Outcome((), error=ValueError()), ""),
        (
            Outcome((), error=KeyError()),
            Outcome((), error=ValueError()),
            "it raises KeyError",
        ),
        (Outcome((), error=KeyError()), Outcome((one, one)), "it raises KeyError"),
        (
            Outcome((two, one)),
            Outcome((one, one)),
            "the wrong value for the advantages",
        ),
        (Outcome((one, two)), Outcome((one, one)), "the wrong value for the returns"),
        (Outcome((one * math.nan, one)), Outcome((one * math.nan, one)), ""),
        (Outcome((one.double(), one)), Outcome((one, one)), ""),
    ):
        assert difference(two_parts, mine, right) == found
    right, wrong = (
        Outcome((one,), gradients=(one, one)),
        Outcome((one,), gradients=(one, two)),
    )
    assert (
        difference(EXERCISES["last_of"], wrong, right) == "right value, wrong gradient"
    )


# The reader's function in the training run

QUESTIONS = ["Who?", "Why so?", "Say", "Ay"]
TINY = PPOConfig(iterations=2, batch_size=4, max_new_tokens=6)
PAIRS = [
    pair("1", "Who?", "The king.", "Me"),
    pair("2", "Why?", "So.", "Because I say so."),
]


def ppo_run():
    models = assemble(moved(), judge(5))
    rounds = list(ppo_steps(models, QUESTIONS, TINY))
    return models.policy, rounds


def dpo_run():
    policy = moved()
    pairs = encode_pairs(PAIRS, TOKENIZER, 64)
    return policy, list(
        dpo_steps(policy, moved(), pairs, DPOConfig(steps=2, batch_size=2))
    )


def k3_run():
    """PPO in the world of 64 words, with k3 in the loss."""
    return ppo_run_of_words(
        build_world(), 0.5, 0, variant="k3 in the loss", iterations=2, batch_size=8
    )


RUNS = [
    ("gae", ppo_run),
    ("whiten", ppo_run),
    ("policy_loss", ppo_run),
    ("value_loss", ppo_run),
    ("kl_estimate", k3_run),
    ("last_of", ppo_run),
    ("get_response_log_probs", dpo_run),
    ("dpo_loss", dpo_run),
]


@pytest.mark.parametrize(("name", "run"), RUNS, ids=[name for name, _ in RUNS])
def test_a_function_that_is_plugged_in_runs_in_training_and_is_gone_afterwards(
    name, run
):
    calls = []

    def wrong(*arguments, **options):
        calls.append(arguments)
        found = EXERCISES[name].function(*arguments, **options)
        return (
            tuple(3 * part for part in found) if isinstance(found, tuple) else 3 * found
        )

    policy, before = run()
    with plugged_in(**{name: wrong}):
        _, changed = run()
    assert calls and changed != before
    calls.clear()
    again, after = run()
    assert not calls and after == before and same(weights(policy), again)


def test_a_right_function_that_is_plugged_in_gives_the_same_run():
    policy, before = ppo_run()
    with plugged_in(gae=gae_as_a_double_sum):
        other, rounds = ppo_run()
    assert [each.keys() for each in rounds] == [each.keys() for each in before]
    for one, another in zip(policy.parameters(), other.parameters()):
        close(one, another, 1e-9)


def module_name(path):
    """The name that a file of the package is imported by."""
    return ".".join(path.relative_to(ROOT / "code").with_suffix("").parts).removesuffix(
        ".__init__"
    )


@pytest.mark.parametrize("name", EXERCISES)
def test_every_module_gets_the_readers_function_and_then_its_own_again(name):
    own = EXERCISES[name].function
    having = [
        module
        for path in (ROOT / "code" / "posttrain").rglob("*.py")
        if path.stem != "__main__"
        and "practice" not in path.parts
        and name in bound(path)
        for module in [importlib.import_module(module_name(path))]
    ]
    assert having and all(getattr(module, name) is own for module in having)
    with plugged_in(**{name: len}):
        assert all(getattr(module, name) is len for module in having)
        assert check(name, own), "the grader still knows the book's own"
    assert all(getattr(module, name) is own for module in having)


def bound(path):
    """The functions that a module defines or imports, at its margin."""
    nodes = ast.parse(path.read_text(encoding="utf-8")).body
    imported = [
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    return imported + [node.name for node in nodes if isinstance(node, ast.FunctionDef)]


def test_everything_is_put_back_after_an_error_and_after_two_at_once():
    kept = [
        ppo.gae,
        ppo.whiten,
        dpo.get_response_log_probs,
        logprobs.get_response_log_probs,
        enumerable.dpo_loss,
        reward_model.last_of,
        store.obtain,
        stages.obtain,
        workers.start_workers,
        workers.Workers.get,
    ]
    with (
        pytest.raises(ZeroDivisionError),
        plugged_in(gae=gae, whiten=max),
        plugged_in(gae=len),
    ):
        assert ppo.gae is len and ppo.whiten is max
        raise ZeroDivisionError
    assert kept == [
        ppo.gae,
        ppo.whiten,
        dpo.get_response_log_probs,
        logprobs.get_response_log_probs,
        enumerable.dpo_loss,
        reward_model.last_of,
        store.obtain,
        stages.obtain,
        workers.start_workers,
        workers.Workers.get,
    ]


def train():
    return {"a": torch.ones(1)}, {}


def obtain_toy():
    return store.obtain("toy", {}, train, code_of=CharTokenizer)


STAGES = [
    obtain_toy,
    lambda: stages.ppo_model(CORPUS),
    lambda: stages.dpo_model(CORPUS),
    lambda: stages.reward_model(CORPUS),
    lambda: workers.run_all(abs, [(1,)]),
    lambda: workers.run_alone(abs, 1),
    lambda: workers.run_groups(abs, {"a": [(1,)]}),
]


@pytest.mark.parametrize(
    "ask",
    STAGES,
    ids=["obtain", "ppo", "dpo", "reward", "run_all", "run_alone", "run_groups"],
)
def test_no_stage_is_read_or_written_while_a_function_is_plugged_in(
    ask, tmp_path, monkeypatch
):
    empty_shelf(monkeypatch, tmp_path)
    obtain_toy()
    before = sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir())
    with (
        pytest.raises(
            RuntimeError,
            match="gae is plugged in, .*: load the models before this block",
        ),
        plugged_in(gae=gae),
    ):
        ask()
    assert (
        sorted((path.name, path.read_bytes()) for path in tmp_path.iterdir()) == before
    )
    assert obtain_toy().weights["a"] == 1


def test_workers_that_are_running_already_are_not_asked_either(monkeypatch):
    monkeypatch.setattr(
        workers.Workers,
        "get",
        lambda self: pytest.fail("a worker knows the book's own alone"),
    )
    with pytest.raises(RuntimeError, match="is plugged in"), plugged_in(gae=gae):
        workers.run_all(abs, [(1,)])


# The chapters


LESSONS = ("pretraining", "sft", "reward", "ppo", "dpo", "comparison")
EXERCISED = (*(f"lab-{name}" for name in LESSONS), "lora", "pairs", "real", "scale")
CELL = r"```\{code-cell\}[^\n]*\n(.*?)^```\n"


def text_of(page):
    return (ROOT / "book" / f"{page}.md").read_text(encoding="utf-8")


def left_to_the_reader():
    """The functions that a lesson leaves to its reader: name to page, and the text and
    the cells from its section's heading on.
    """
    found = {}
    for page in LESSONS:
        for section in re.split(r"^## ", text_of(page), flags=re.M)[1:]:
            for name in re.findall(r"^def (\w+)\(", section, re.M):
                found[name] = page, section
    return found


STUBS = left_to_the_reader()


def definition_of(source):
    return ast.dump(ast.parse(source).body[-1].args)


@pytest.mark.parametrize("name", STUBS)
def test_a_lesson_leaves_a_function_to_its_reader_grades_it_and_trains_with_it(name):
    page, section = STUBS[name]
    cells = re.findall(CELL, section, re.M | re.S)
    place = next(i for i, cell in enumerate(cells) if f"def {name}(" in cell)
    assert definition_of(cells[place]) == ast.dump(own_definition(name).args)
    assert EXERCISES[name].chapter == LESSONS.index(page) + 1
    graded, folded = cells[place + 1 : place + 3]
    assert graded.strip() == f'check("{name}", {name})'
    shown = re.search(r"show_source\(([^)]*)\)", folded)[1]
    assert f".{name}" in shown and "hide-output" in folded and "Show ours" in folded
    # There is nothing to train with a formula for a distance
    assert name == "best_of_n_kl" or f"{name}={name}" in text_of(page)


def test_every_other_exercise_stands_at_the_end_of_a_page_and_is_graded_by_name():
    pages = {page: text_of(page).partition("\n## Exercises\n")[2] for page in EXERCISED}
    for name in names().keys() - STUBS.keys():
        ((page, found),) = [
            (page, match[0])
            for page, text in pages.items()
            for match in re.finditer(
                rf"^````\{{exercise\}}[^\n]*\n(?:(?!^````$).)*?check\(\"{name}\", "
                rf"{name}\).*?^````$",
                text,
                re.M | re.S,
            )
        ]
        assert EXERCISES[name].chapter == EXERCISED.index(page) + 1
        # The first line of the function, as the package has it
        signature = re.search(r"```python\n(.*?)\n```", found, re.S).group(1)
        written, own = ast.parse(signature + "\n    ...").body[0], own_definition(name)
        assert (written.name, ast.dump(written.args)) == (name, ast.dump(own.args))
        label = re.search(r"^:label: (ex-\S+)$", found, re.M).group(1)
        assert (
            f"{{solution}} {label}\n:label: "
            f"{label.replace('ex-', 'sol-', 1)}\n:class: dropdown\n" in pages[page]
        )


def test_the_readme_lists_what_can_be_graded():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+), [^|]+ \| ([^|]+) \|$", readme, re.M)
    assert {
        name: int(chapter)
        for chapter, row in rows
        for name in re.findall(r"`(\w+)`", row)
    } == names()
    assert 'print(check("gae", my_gae))' in readme


@pytest.mark.parametrize("page", EXERCISED)
def test_no_solution_stands_beside_a_question(page):
    """In a notebook all solutions are a cell of their own, after the last exercise; it
    has no heading.
    """
    text = (
        (ROOT / "book" / f"{page}.md")
        .read_text(encoding="utf-8")
        .partition("\n## Exercises\n")[2]
    )
    questions, solutions, *rest = text.split("\n+++\n")
    asked = re.findall(r"^`{3,4}\{exercise\}.*\n:label: (\S+)$", questions, re.M)
    assert asked == re.findall(r"^```\{solution\} (\S+)$", solutions, re.M)
    assert (
        "{solution}" not in "".join([questions, *rest])
        and "{exercise}" not in "".join([solutions, *rest])
        and not re.search("^#", solutions, re.M)
    )


# What the exercise's text has to say, so that nothing is graded which it does not
CONTRACTS = dict(
    rotate=["(..., T, heads, hs)", "(..., T, hs/2, 2)", "2j + 1"],
    visible=["`mask` (B, T)", "to (B, 1, T, T)"],
    build_labels=["list of the same length", "-100"],
    sft_loss=["logits (B, T, V), labels (B, T)", "No graded token is a ValueError"],
    bradley_terry_loss=[
        "Scores (B,)",
        "the mean surprise",
        "NaN or infinite is a ValueError",
        "for $c$",
    ],
    last_of=["(B, T) to (B,)", "without True is a ValueError"],
    kl_estimate=["1e-3", "another kind is a ValueError"],
    gae=["All (B, T-1)", "may be any number", "Advantages and returns"],
    whiten=[
        "for the whole batch",
        "small number under the root",
        "False everywhere is a ValueError",
    ],
    policy_loss=[
        "two numbers",
        "actions of all rows",
        "no action at all is a ValueError",
    ],
    value_loss=["mean over the actions", "no action at all is a ValueError"],
    get_response_log_probs=["(B, T) to (B,)", "divides the logits"],
    dpo_loss=["All (B,)", "mean over the pairs", "one for each pair"],
    best_of_n_kl=["less than one draw is a ValueError"],
    win_rate=["Two lists of scores", "A tie counts one half"],
    low_rank=["Inputs (..., in), A (r, in) and B (out, r) to (..., out)"],
    quantize=[
        "`uint8`",
        "`float32`",
        "in their order",
        "A block of zeros has the scale 0",
        "NaN or infinite is a ValueError",
    ],
    parameters=["a tied head counted once", "as (in, out)"],
    sharded_bytes=["Another stage is a ValueError"],
    break_even_tokens=["`transfers` is $k$"],
    best_and_worst=["(B, n) to (B,) and (B,)", "first of equals", "both -1"],
)


@pytest.mark.parametrize("name", EXERCISES)
def test_the_text_says_what_is_graded(name):
    if name in STUBS:
        text = STUBS[name][1]
    else:
        (text,) = [
            line
            for page in EXERCISED
            for line in text_of(page).splitlines()
            if f'check("{name}", {name})' in line
        ]
    assert not [words for words in CONTRACTS[name] if words not in text]


# What is not written yet


def unwritten(chosen, rejected, centring=0.0):
    """Mean surprise at the preferences, in nats."""
    ...


def undocumented(chosen, rejected, centring=0.0): ...


def begun(chosen, rejected, centring=0.0):
    return None if centring else chosen - rejected


def drawn(chosen, rejected, centring=0.0):
    yield chosen


@pytest.mark.parametrize("stub", [unwritten, undocumented])
def test_a_function_of_three_dots_is_not_written_yet_and_the_books_own_runs(
    stub, capsys
):
    result = check("bradley_terry_loss", stub)
    assert not result and result.name == "not written yet"
    assert "in place of the three dots" in repr(result)
    own = reward_model.bradley_terry_loss
    with plugged_in(bradley_terry_loss=stub):
        assert reward_model.bradley_terry_loss is own
    with plugged_in(bradley_terry_loss=stub, gae=gae):
        assert reward_model.bradley_terry_loss is own and ppo.gae is gae
    assert capsys.readouterr().out == (
        "With the book's, as yours is not written yet: bradley_terry_loss.\n"
        "With yours: gae.\n"
        "With the book's, as yours is not written yet: bradley_terry_loss.\n"
    )


@pytest.mark.parametrize("function", [begun, drawn, len, lambda *_: None])
def test_whatever_else_is_written_is_graded(function):
    assert check("bradley_terry_loss", function).name != "not written yet"


def own_definition(name):
    """The book's own function, parsed, without its annotations."""
    source = (
        ROOT / "code" / f"{EXERCISES[name].function.__module__.replace('.', '/')}.py"
    ).read_text(encoding="utf-8")
    found = next(
        node
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef) and node.name == name
    )
    for argument in found.args.args:
        argument.annotation = None
    return found
