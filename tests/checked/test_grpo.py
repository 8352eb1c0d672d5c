"""GRPO's loss and its choices: by hand, beside PPO's, and in its loop."""

import copy
import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import moved

from posttrain.checked.grpo import (
    Choices,
    average,
    centred,
    clipped_loss,
    group_advantages,
    grpo_losses,
    grpo_steps,
    join,
    ratios,
    varied_rollouts,
    with_a_lesson,
)
from posttrain.checked.task import Checker, letters_agree, question_of
from posttrain.lab.ppo_variants import NoValues, group_relative
from posttrain.ppo import (
    Models,
    PPOConfig,
    Rollout,
    collect_rollouts,
    minibatch_losses,
    pick,
    policy_loss,
)

CONFIG = PPOConfig(
    iterations=2,
    batch_size=8,
    group=4,
    max_new_tokens=6,
    temperature=1.0,
    no_end_score=0.0,
    minibatches=2,
    lr=1e-2,
    beta=0.0,
    kl_target=0.0,
)
PROMPTS = [question_of(word) for word in ("star", "an", "bridge", "sea")]


class First(torch.nn.Module):
    """A judge whose score is the first token's number, halved when it is even."""

    def forward(self, tokens, mask):
        first = mask.int().argmax(-1, keepdim=True)
        said = tokens.gather(1, first).squeeze(-1)
        return (said % 2).double()


def models(seed=0, judge=None):
    policy = moved(seed)
    return Models(policy, NoValues(), copy.deepcopy(policy), judge or First())


def rollout(seed=0, config=CONFIG, judge=None):
    generator = torch.Generator().manual_seed(seed)
    some = models(judge=judge)
    return some, next(collect_rollouts(some, PROMPTS, config, generator))


# Two answers of one and three tokens
ACTIONS = torch.tensor([[True, False, False], [True, True, True]])
VALUES = torch.tensor([[6.0, 99.0, 99.0], [1.0, 2.0, 3.0]])


@pytest.mark.parametrize(
    "mean, by_hand",
    [
        ("token", (6 + 1 + 2 + 3) / 4),
        ("sequence", (6 + (1 + 2 + 3) / 3) / 2),
        ("fixed", (6 / 10 + (1 + 2 + 3) / 10) / 2),
    ],
)
def test_three_means_of_the_same_tokens_by_hand(mean, by_hand):
    assert average(VALUES, ACTIONS, mean, 10).item() == pytest.approx(by_hand)


def test_advantages_are_scores_against_their_group_scaled_or_not():
    scores = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    assert centred(scores, 4).tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0]
    with pytest.raises(ValueError, match="group is 1"):
        centred(scores, 1)
    _, seen = rollout()
    for scale, compare in {True: group_relative, False: centred}.items():
        advantages, returns = group_advantages(seen, CONFIG, 0.3, scale)
        wanted = compare(seen.scores, 4)[:, None].expand_as(advantages)
        assert torch.equal(advantages, wanted * seen.actions)
        assert not returns.any()


def test_an_answers_ratio_is_the_geometric_mean_of_its_tokens_ratios():
    now = torch.tensor([[0.5, 9.0, 9.0], [0.1, 0.2, 0.6]]).log()
    old = torch.tensor([[0.25, 1.0, 1.0], [0.2, 0.2, 0.2]]).log()
    each = ratios(now, old, ACTIONS, "token")
    torch.testing.assert_close(each, torch.tensor([[2.0, 1.0, 1.0], [0.5, 1.0, 3.0]]))
    whole = ratios(now, old, ACTIONS, "sequence")
    torch.testing.assert_close(whole, torch.tensor([[2.0], [1.5 ** (1 / 3)]]))


@pytest.mark.parametrize(
    "ratio, advantage, loss, held",
    [
        (1.5, 2.0, -1.28 * 2, 1),  # above the clip, and to rise: held
        (1.25, 2.0, -2.5, 0),  # within the higher clip
        (0.5, 2.0, -1.0, 0),  # to rise again: free
        (0.5, -2.0, 1.6, 1),  # below the clip, and to fall: held
        (1.5, -2.0, 3.0, 0),
    ],
)
def test_the_clip_has_another_room_above_than_below(ratio, advantage, loss, held):
    one = partial(torch.tensor, dtype=torch.float64)
    found, where = clipped_loss(one([[ratio]]), one([[advantage]]), 0.2, 0.28)
    assert found.item() == pytest.approx(loss) and where.item() == held


def test_with_a_mean_over_tokens_it_is_ppos_own_loss():
    some, seen = rollout()
    policy = moved(3)
    advantages, zeros = group_advantages(seen, CONFIG, 0.0)
    some = replace(some, policy=policy)
    found = grpo_losses(some, seen, advantages, zeros, CONFIG, Choices(mean="token"))
    theirs = minibatch_losses(some, seen, advantages, zeros, CONFIG)
    for name in ("policy_loss", "clip_fraction", "entropy"):
        torch.testing.assert_close(found[name], theirs[name])
    assert 0 < found["clip_fraction"] < 1


def test_at_the_first_step_ratios_are_1_the_loss_is_nearly_0_and_the_gradient_is_not():
    some, seen = rollout()
    advantages, zeros = group_advantages(seen, CONFIG, 0.0)
    found = grpo_losses(some, seen, advantages, zeros, CONFIG, Choices())
    assert found["ratio_error"] < 1e-9 and found["total"].abs() < 1e-9
    found["total"].backward()
    norms = [p.grad.norm() for p in some.policy.parameters() if p.grad is not None]
    assert max(norms) > 1e-3


def test_the_penalty_is_k3_in_the_same_mean_and_0_at_the_start():
    some, seen = rollout()
    advantages, zeros = group_advantages(seen, CONFIG, 0.0)
    priced = replace(CONFIG, beta=0.5)
    for mean in ("sequence", "token", "fixed"):
        choices = Choices(mean=mean)
        for policy, moves in ((some.policy, False), (moved(3), True)):
            those = replace(some, policy=policy)
            free, paid = (
                grpo_losses(those, seen, advantages, zeros, config, choices)
                for config in (CONFIG, priced)
            )
            assert free["total"] == free["policy_loss"] == paid["policy_loss"]
            gap = (paid["total"] - free["total"]).item()
            if not moves:
                assert gap == pytest.approx(0, abs=1e-12)
                continue
            from posttrain.logprobs import token_logprobs

            said = token_logprobs(policy(seen.tokens), seen.tokens, 1.0)
            d = (said - seen.reference_logprobs) * seen.actions
            k3 = (-d).exp() - 1 + d
            assert gap == pytest.approx(0.5 * average(k3, seen.actions, mean, 6).item())


def test_groups_of_one_score_teach_nothing_and_are_found_and_counted():
    some, seen = rollout()
    scores = torch.tensor([1.0, 1, 1, 1, 0, 1, 0, 0], dtype=torch.float64)
    seen = replace(seen, scores=scores)
    assert with_a_lesson(seen, 4).tolist() == [4, 5, 6, 7]
    advantages, zeros = group_advantages(seen, CONFIG, 0.0)
    found = grpo_losses(some, seen, advantages, zeros, CONFIG, Choices())
    assert found["idle"].item() == 0.5
    found["total"].backward()
    alone = group_advantages(pick(seen, torch.arange(4)), CONFIG, 0.0)[0]
    assert not alone.any()


def test_joined_rollouts_are_each_as_they_were():
    _, one = rollout(0)
    _, other = rollout(1, replace(CONFIG, max_new_tokens=3))
    whole = join([one, other])
    n = len(one.scores)
    for part, rows in ((one, range(n)), (other, range(n, 2 * n))):
        back = pick(whole, torch.tensor([*rows]))
        for name, value in vars(part).items():
            kept = getattr(back, name)
            wanted = value[:, : kept.size(1)] if value.dim() == 2 else value
            assert torch.equal(kept, wanted), name


def scored(rows):
    """Rollouts of two groups of four, with these scores."""
    _, seen = rollout()
    return [replace(seen, scores=torch.tensor(each).double()) for each in rows]


def test_rollouts_are_drawn_until_all_groups_teach_or_four_times():
    dull, half, full = [1] * 8, [1] * 4 + [0, 1, 1, 1], [0, 1, 1, 1] * 2
    found = list(varied_rollouts(iter(scored([dull, half, full, full])), CONFIG))
    # One group of the second and the first of the third; then the fourth
    assert [len(each.scores) for each in found] == [8, 8]
    assert all(len(with_a_lesson(each, 4)) == 8 for each in found)
    found = list(varied_rollouts(iter(scored([dull, dull, dull, half, full])), CONFIG))
    assert [len(each.scores) for each in found] == [4, 8]
    # Where four draws teach nothing, the next that teaches ends the wait
    found = list(varied_rollouts(iter(scored([dull] * 5 + [half])), CONFIG))
    assert [len(each.scores) for each in found] == [4]


@pytest.mark.parametrize("varied", [False, True])
def test_a_run_takes_its_rounds_and_is_the_same_twice(varied):
    runs = []
    for _ in range(2):
        some = models()
        config = replace(CONFIG, iterations=3)
        choices = Choices(varied=varied)
        steps = grpo_steps(
            some.policy, some.reference, First(), PROMPTS, config, choices
        )
        runs.append(list(steps))
        assert not torch.equal(some.policy.head.weight, some.reference.head.weight)
    assert runs[0] == runs[1] and len(runs[0]) == 3
    assert {"score", "kl", "idle", "total", "clip_fraction"} <= runs[0][0].keys()


def test_each_choice_reaches_the_run():
    runs = []
    others = [{}, dict(scale=False), dict(mean="token"), dict(ratio="sequence")]
    for changed in [*others, dict(clip_low=0.01), dict(clip_high=0.01)]:
        some, config = models(), replace(CONFIG, minibatches=4)
        choices = Choices(**changed)
        ends = (some.policy, some.reference, First(), PROMPTS, config, choices)
        runs.append(str(list(grpo_steps(*ends))))
    assert len(set(runs)) == len(runs)


def test_a_prompt_that_the_policy_would_never_write_spoils_no_loss():
    some, seen = rollout()
    advantages, zeros = group_advantages(seen, CONFIG, 0.0)
    first = int(seen.actions.any(0).nonzero().min())
    far = torch.zeros(*seen.tokens.shape, some.policy.config.vocab_size).double()
    asked = seen.tokens[:, 1 : first + 1, None]
    far[:, :first] = far[:, :first].scatter(-1, asked, -1000.0)
    some = replace(some, policy=lambda tokens: far)
    priced = replace(CONFIG, beta=0.5)
    found = grpo_losses(some, seen, advantages, zeros, priced, Choices())
    assert all(torch.isfinite(value) for value in found.values()), found


def test_the_policy_learns_what_the_checker_pays_for():
    some = models()
    config = replace(CONFIG, iterations=25, batch_size=32, group=8, lr=5e-3)
    checker = Checker(letters_agree)
    steps = grpo_steps(some.policy, some.reference, checker, PROMPTS, config, Choices())
    scores = [step["score"] for step in itertools.islice(steps, 25)]
    assert sum(scores[-5:]) / 5 > sum(scores[:5]) / 5 + 0.3, scores


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(mean="words"), "mean is 'words': use one of"),
        (dict(ratio="batch"), "ratio is 'batch': use one of"),
        (dict(clip_high=-0.1), "clip_high is -0.1: use at least 0"),
    ],
)
def test_choices_that_cannot_be_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        Choices(**changes)


def test_ppos_clip_is_the_same_clip():
    generator = torch.Generator().manual_seed(0)
    old, now, A = (torch.randn(3, 5, generator=generator) for _ in range(3))
    actions = torch.ones(3, 5, dtype=torch.bool)
    theirs = policy_loss(now, old, A, actions, 0.2)
    mine, held = clipped_loss(ratios(now, old, actions, "token"), A, 0.2, 0.2)
    torch.testing.assert_close((mine.mean(), held.mean()), theirs)
    assert isinstance(rollout()[1], Rollout)
