"""The small world's stored runs: what is read is what was found, and each setting has its own."""

import pytest
import torch
from tiny import empty_shelf, seeded

from posttrain.lab import enumerable_trials as module
from posttrain.lab.enumerable import World, build_world, dpo_run, draw_pairs, ppo_run
from posttrain.lab.enumerable_trials import stored_dpo_run, stored_ppo_run

WORLD, PAIRS = build_world(), draw_pairs(build_world(), 20, seeded(), exact=True)
SHORT = dict(iterations=2, batch_size=16)


@pytest.fixture(autouse=True)
def begun(monkeypatch, tmp_path):
    """An empty shelf, and the list of the runs that were not found on it."""
    empty_shelf(monkeypatch, tmp_path)
    runs = []
    for name, run in (("ppo_run", ppo_run), ("dpo_run", dpo_run)):
        monkeypatch.setattr(module, name, lambda *given, run=run, **settings: runs.append(given) or run(*given, **settings))
    return runs


def equal(one, other):
    return torch.equal(one[0].logits, other[0].logits) and one[1] == other[1]


def test_a_run_of_ppo_is_found_again_to_the_last_bit_with_its_history(begun):
    found = [stored_ppo_run(WORLD, 0.5, 3, **SHORT) for _ in range(2)]
    assert len(begun) == 1
    for each in found:
        assert equal(each, ppo_run(WORLD, 0.5, 3, **SHORT)) and each[0].logits.dtype == torch.float64


def test_a_run_of_dpo_is_found_again_to_the_last_bit_with_its_history(begun):
    found = [stored_dpo_run(WORLD, 0.5, PAIRS, 3, steps=30) for _ in range(2)]
    assert len(begun) == 1
    for each in found:
        assert equal(each, dpo_run(WORLD, 0.5, PAIRS, 3, steps=30))


def test_another_world_beta_seed_setting_or_pair_is_another_run(begun):
    richer = World(WORLD.reference, WORLD.rewards + torch.eye(64, dtype=torch.float64)[0])
    ppo_jobs = [(WORLD, 0.5, 0), (WORLD, 0.5, 1), (WORLD, 0.4, 0), (richer, 0.5, 0), (build_world(1), 0.5, 0)]
    outcomes = [stored_ppo_run(*job, **SHORT) for job in ppo_jobs]
    outcomes += [stored_ppo_run(WORLD, 0.5, 0, **SHORT, kl_in="loss", kl_estimator="k3")]
    wrong, turned = PAIRS._replace(wrong=PAIRS.wrong / 2), PAIRS._replace(chosen=PAIRS.rejected, rejected=PAIRS.chosen)
    dpo_jobs = [(WORLD, 0.5, PAIRS, 0), (WORLD, 0.4, PAIRS, 0), (richer, 0.5, wrong, 0), (WORLD, 0.5, wrong, 0), (WORLD, 0.5, turned, 0)]
    outcomes += [stored_dpo_run(*job, steps=3) for job in dpo_jobs] + [stored_dpo_run(WORLD, 0.5, PAIRS, 0, steps=4)]
    assert len(begun) == len(outcomes) == 12
    assert not [(i, j) for i, one in enumerate(outcomes) for j in range(i) if equal(one, outcomes[j])]


def test_a_setting_that_cannot_work_is_refused_each_time_and_nothing_is_stored(tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="temperature 1"):
            stored_ppo_run(WORLD, 0.5, 0, temperature=0.8)
        with pytest.raises(ValueError, match="at least one pair"):
            stored_dpo_run(WORLD, 0.5, PAIRS, 0, steps=0)
    assert not list(tmp_path.glob("*.json"))
