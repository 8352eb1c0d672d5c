"""What methods cost: the steps that are timed, each method's run, and a process of its
own for each.
"""

import subprocess
import sys

import pytest
from tiny import CORPUS, judge, moved, stored

from posttrain.dpo import DPOConfig
from posttrain.gpt import GPT, GPTConfig
from posttrain.lab import costs as module
from posttrain.lab.costs import (
    METHODS,
    WATCHED,
    begin,
    cost_trial,
    measure,
    peak_memory,
)
from posttrain.lab.experiments import EXPERIMENTS
from posttrain.online_dpo import OnlineDPOConfig
from posttrain.ppo import PPOConfig
from posttrain.reward_model import RewardConfig
from posttrain.sft import SFTConfig

WHOLE = {
    "SFT": SFTConfig().steps,
    "reward model": RewardConfig().steps,
    "PPO": PPOConfig().iterations,
    "DPO": DPOConfig().steps,
    "on-policy DPO": OnlineDPOConfig().rounds,
    "best of n": 0,
}
ROOM = GPTConfig(vocab_size=69, context=256, n_layer=1, n_head=1, width=16)


def test_the_peak_counts_from_the_programs_start_and_grows_with_what_it_holds():
    # Start it from a process that has held far more
    program = (
        "import subprocess, sys; x = bytearray(900_000_000); "
        "print(subprocess.run([sys.executable, '-c', sys.argv[1]], "
        "capture_output=True, text=True, check=True).stdout)"
    )
    child = (
        "import sys; sys.path.insert(0, sys.argv[1]) if len(sys.argv) > 1 else None; "
        "from posttrain.lab.costs import peak_memory; a = peak_memory(); "
        "x = bytearray(300_000_000); b = peak_memory(); del x; print(a, b, "
        "peak_memory())"
    )
    small, large, after = map(
        float,
        subprocess.run(
            [sys.executable, "-c", program, child],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split(),
    )
    assert 30 < small < 800 and 250 < large - small < 350 and after > large - 10
    assert peak_memory() > 30


@pytest.fixture
def models(monkeypatch):
    grown = moved(config=ROOM).float()
    small = GPTConfig(vocab_size=65, context=256, n_layer=1, n_head=1, width=16)
    monkeypatch.setattr(module, "base_model", lambda corpus: (GPT(small), {}))
    monkeypatch.setattr(module, "sft_model", stored(grown)[0])
    monkeypatch.setattr(module, "reward_model", stored(judge(config=ROOM).float())[0])
    monkeypatch.setattr(
        module,
        "encode_split",
        lambda corpus: (__import__("torch").arange(2000) % 65, None),
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_begun_and_measured(models, method):
    run, steps = begin(CORPUS, method)
    assert steps == WHOLE[method]
    next(run)
    cost = measure(CORPUS, method)
    assert (
        cost["steps"] == steps
        and cost["seconds"] > 0
        and cost["memory"] >= cost["before"] > 30
    )


def test_the_first_step_is_not_timed(monkeypatch):
    clock = iter([10.0, 16.0])
    taken = []
    monkeypatch.setattr(module, "begin", lambda corpus, method: (iter(range(99)), 24))
    monkeypatch.setattr(module, "next", lambda run: taken.append(1), raising=False)
    monkeypatch.setattr(
        module.time, "perf_counter", lambda: taken.append("t") or next(clock)
    )
    assert measure(CORPUS, "PPO")["seconds"] == pytest.approx(6.0 / WATCHED)
    assert taken == [1, "t", *[1] * WATCHED, "t"]


def test_an_unknown_method_is_refused_by_name(models):
    with pytest.raises(
        ValueError,
        match="'GRPO' is none of SFT, reward model, PPO, DPO, on-policy DPO, best of n",
    ):
        begin(CORPUS, "GRPO")


def test_what_is_measured_has_its_models_before_anything_is_timed(monkeypatch):
    done = []
    for name in ("sft_model", "reward_model"):
        monkeypatch.setattr(module, name, lambda corpus, name=name: done.append(name))
    monkeypatch.setattr(
        module, "measure", lambda *given: done.append(given) or dict(steps=1)
    )
    assert cost_trial(CORPUS, "DPO", 0) == dict(steps=1)
    assert done == ["sft_model", "reward_model", (CORPUS, "DPO")]


def test_every_method_is_measured_in_a_process_of_its_own_with_nothing_beside_it():
    experiment = EXPERIMENTS["costs"]
    assert experiment.trial is cost_trial and experiment.alone
    assert tuple(experiment.settings) == METHODS
