"""The world of 64 words under trial: its runs of PPO and DPO, stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

from torch import Tensor

from posttrain.keep import store
from posttrain.lab.enumerable import SMALL_PPO, Pairs, TabularPolicy, World, dpo_run, ppo_run

Outcome = tuple[TabularPolicy, list[dict[str, float]]]  # a run's policy and its history


def stored_ppo_run(world: World, beta: float, seed: int, **changes) -> Outcome:
    """What `ppo_run` finds from the reference; stored.

    changes: to fields of SMALL_PPO. Raises ValueError for a setting that cannot work.
    """
    inputs = dict(config=asdict(replace(SMALL_PPO, beta=beta, seed=seed, **changes)))
    run = lambda: ppo_run(world, beta, seed, **changes)  # noqa: E731
    return stored_run("small-ppo", world, inputs, run)


def stored_dpo_run(
    world: World, beta: float, pairs: Pairs, seed: int, **settings
) -> Outcome:
    """What `dpo_run` finds from the reference; stored. Settings and errors are `dpo_run`'s."""
    drawn = {name: part.tolist() for name, part in pairs._asdict().items()}
    inputs = dict(beta=beta, seed=seed, settings=settings, pairs=drawn)
    run = lambda: dpo_run(world, beta, pairs, seed, **settings)  # noqa: E731
    return stored_run("small-dpo", world, inputs, run)


def stored_run(
    name: str, world: World, inputs: dict, run: Callable[[], Outcome]
) -> Outcome:
    """The outcome of a run in this world, found by its inputs, or of run() if there is none."""

    def train() -> tuple[dict[str, Tensor], dict]:
        policy, history = run()
        return policy.state_dict(), dict(history=history)

    known = dict(reference=world.reference.logits.tolist(), rewards=world.rewards.tolist())
    stage = store.obtain(name, inputs | dict(world=known), train, source=__name__)
    return TabularPolicy(stage.weights["logits"]), stage.history["history"]
