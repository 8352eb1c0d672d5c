"""The small world's trials: which run each setting is, and on which pairs."""

from dataclasses import replace

import pytest
import torch
from tiny import CORPUS, seeded

from posttrain.lab import enumerable_trials as module
from posttrain.lab.enumerable import (
    WORDS,
    build_world,
    distribution,
    dpo_rounds,
    dpo_run,
    draw_pairs,
    ppo_run,
)
from posttrain.lab.enumerable_trials import WorldTrial, pairs_of, without_a, world_trial

WORLD = build_world()
SHORT = dict(iterations=2, batch_size=16)
PPO, DPO = WorldTrial(ppo=SHORT), WorldTrial("dpo", pairs=20)


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def found(run):
    """What a trial says of a run."""
    policy, history = run
    return dict(history=history, probabilities=distribution(policy).tolist())


@pytest.mark.parametrize("beta", [0.5, 0.4])
def test_a_run_of_ppo_is_that_of_its_beta_settings_and_seed(beta):
    trial = replace(PPO, beta=beta)
    assert world_trial(CORPUS, trial, 3) == found(ppo_run(WORLD, beta, 3, **SHORT))
    in_loss = dict(variant="k3 in the loss")
    expected = found(ppo_run(WORLD, beta, 3, **in_loss, **SHORT))
    assert world_trial(CORPUS, replace(trial, **in_loss), 3) == expected
    assert expected != world_trial(CORPUS, trial, 3) != world_trial(CORPUS, trial, 4)


@pytest.mark.parametrize("method", ["dpo", "rounds"])
def test_a_run_of_dpo_is_that_of_its_beta_pairs_and_seed(monkeypatch, method):
    run, name = dict(dpo=(dpo_run, "dpo_run"), rounds=(dpo_rounds, "dpo_rounds"))[
        method
    ]
    asked = []

    def short(world, beta, pairs, seed):
        asked.append((beta, pairs, seed))
        return run(world, beta, pairs, seed, steps=3)

    monkeypatch.setattr(module, name, short)
    trial = replace(DPO, method=method, beta=0.4)
    expected = found(run(WORLD, 0.4, pairs_of(trial, 3), 3, steps=3))
    assert world_trial(CORPUS, trial, 3) == expected
    ((beta, pairs, seed),) = asked
    assert (beta, seed) == (0.4, 3) and equal(pairs, pairs_of(trial, 3))


@pytest.mark.parametrize("exact", [True, False])
def test_pairs_are_drawn_by_the_trials_seed_known_or_labelled(exact):
    drawn = pairs_of(replace(DPO, exact=exact), 3)
    assert equal(drawn, draw_pairs(WORLD, 20, seeded(3), exact=exact))
    assert not equal(drawn, pairs_of(replace(DPO, exact=exact), 4))
    assert len(pairs_of(replace(DPO, pairs=7), 3).chosen) == 7


def test_a_gap_leaves_out_the_words_that_begin_with_a():
    kept = [WORDS[i][0] for i in without_a().nonzero().flatten().tolist()]
    assert "a" not in kept and len(kept) == 48
    pairs = pairs_of(WorldTrial("dpo", gap=True), 0)
    assert without_a()[pairs.chosen].all() and without_a()[pairs.rejected].all()
    plain = pairs_of(WorldTrial("dpo"), 0)
    assert not without_a()[plain.chosen].all()


def test_whitening_and_the_slip_are_variants_and_change_the_run():
    slip = "returns after whitening"
    runs = {
        name: world_trial(CORPUS, replace(PPO, variant=name), 0)
        for name in ("not whitened", "", slip)
    }
    assert runs["not whitened"] == world_trial(CORPUS, PPO, 0)
    assert runs[slip] == found(ppo_run(WORLD, 0.5, 0, variant=slip, **SHORT))
    assert len({str(run["probabilities"]) for run in runs.values()}) == 3


def test_a_setting_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="method is 'grpo': use one of"):
        WorldTrial("grpo")
    with pytest.raises(ValueError, match="variant is 'k4'"):
        WorldTrial(variant="k4")
    with pytest.raises(ValueError, match="temperature 1"):
        world_trial(CORPUS, WorldTrial(ppo=dict(temperature=0.8)), 0)
