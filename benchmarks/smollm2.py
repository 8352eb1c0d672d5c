"""SFT and DPO on SmolLM2 with adapters, against TRL and peft: a step's time and memory.

    PYTHONPATH=code python benchmarks/smollm2.py            # after `make real`

Each run is a process of its own, ours and theirs in turn: the same rows in the same
order, the same adapter to begin with, AdamW, float32. A step's time is the median over
a run without its first step; memory is the most that the process held while it trained,
and how much of that was not there before the first step. Losses have to agree.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from posttrain.data.row_files import RowFile
from posttrain.lab.real_trials import CONVERSATIONS, PAIRS, RealTrial
from posttrain.real.adapter import save_adapter
from posttrain.real.model import library
from posttrain.real.peers import trl_trainer
from posttrain.real.run import Setup, begin
from posttrain.real.smollm import smollm2

STEPS = 7
RANK, APART = 8, 1e-4  # how far losses may differ, of their size
# DPO's own loss alone: the chosen answers' is averaged otherwise there
SETTINGS = {"sft": RealTrial().sft, "dpo": replace(RealTrial().dpo, nll_weight=0.0)}
DATA = {"sft": CONVERSATIONS, "dpo": PAIRS}
KINDS = {"sft": "conversations", "dpo": "preferences"}


def memory(name: str) -> float:
    """A line of /proc/self/status, in GB: VmRSS is held now, VmHWM was the most."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) / 1e6
    raise ValueError(f"no {name} in /proc/self/status")


def session_of(stage: str, out: str):
    """Our run, before its first step, and its settings: STEPS long."""
    config = replace(SETTINGS[stage], steps=STEPS)
    setup = Setup(str(smollm2()), str(DATA[stage]), out, rank=RANK, device="cpu")
    return begin(setup, config), config


def ours(stage: str, out: str) -> dict:
    """A run of this book's."""
    session, _ = session_of(stage, out)

    def steps():
        seen = [(one["loss"], time.perf_counter()) for one in session.steps(0, {})]
        return zip(*seen)

    return measured(steps)


def theirs(stage: str, out: str, **changes) -> dict:
    """A run of TRL's on peft's adapter, which begins as ours does."""
    session, config = session_of(stage, out)
    begun = Path(out) / "begun"
    begun.mkdir()
    save_adapter(
        begun, session.trained["model"].inner, session.adapters, str(smollm2())
    )
    del session
    rows = RowFile(DATA[stage], KINDS[stage]).kept()
    trainer = trl_trainer(smollm2(), rows, config, out, begun, **changes)

    def steps():
        marks = []

        class Marks(library().TrainerCallback):
            def on_step_end(self, *arguments, **others):
                marks.append(time.perf_counter())

        trainer.add_callback(Marks())
        trainer.train()
        noted = [row["loss"] for row in trainer.state.log_history if "loss" in row]
        return noted, marks

    return measured(steps)


def measured(steps) -> dict:
    """Losses, seconds of each step but the first, and memory of some training.

    steps: trains, and gives the losses and the times at which steps ended.
    """
    # Forget what loading took
    Path("/proc/self/clear_refs").write_text("5")
    held = memory("VmRSS")
    losses, marks = steps()
    peak = memory("VmHWM")
    taken = [b - a for a, b in zip(marks, marks[1:])]
    return dict(losses=losses, seconds=taken, peak=peak, added=peak - held)


SIDES = {
    "ours": ours,
    "theirs": theirs,
    "theirs, reference before": lambda stage, out: theirs(
        stage, out, precompute_ref_log_probs=True
    ),
}


def once(stage: str, side: str) -> dict:
    """A run in a process of its own."""
    command = [sys.executable, __file__, "--stage", stage, "--side", side]
    told = subprocess.run(command, capture_output=True, text=True)
    if told.returncode:
        sys.exit(told.stderr)
    return json.loads(told.stdout.splitlines()[-1])


def compare(stage: str, peer: str, pairs: int) -> None:
    """Print a row: ours and theirs, medians, and the median, least and greatest
    ratio.
    """
    found = [(once(stage, "ours"), once(stage, peer)) for _ in range(pairs)]
    apart = max(
        abs(a / b - 1)
        for mine, other in found
        for a, b in zip(mine["losses"], other["losses"], strict=True)
    )
    cells = [f"{stage}, TRL + peft{peer.removeprefix('theirs')}"]
    for name in ("seconds", "peak", "added"):
        sides = [[middle(run[name]) for run in pair] for pair in found]
        ratios = sorted(mine / other for mine, other in sides)
        mine, other = (middle(column) for column in zip(*sides))
        unit = "s" if name == "seconds" else "GB"
        ratio = f"{middle(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        cells.append(f"{mine:.2f} against {other:.2f} {unit}: {ratio}")
    print(f"| {' | '.join(cells)} | {apart:.0e} |", flush=True)
    assert apart < APART, apart


def middle(values) -> float:
    """The median of numbers, or a number itself."""
    return statistics.median(values) if isinstance(values, (list, tuple)) else values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=3, help="of runs (default 3)")
    parser.add_argument("--stage", choices=[*SETTINGS])
    parser.add_argument("--side", choices=[*SIDES])
    options = parser.parse_args()
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    if options.side:
        with tempfile.TemporaryDirectory() as out:
            print(json.dumps(SIDES[options.side](options.stage, out)))
        return
    smollm2()
    print(
        f"{torch.get_num_threads()} threads, PyTorch {torch.__version__}, Python "
        f"{platform.python_version()}; {STEPS} steps, rank {RANK}, batches as in "
        "`make real`\n\n"
        "| stage, peer | a step | most memory | of it while training "
        "| losses apart |\n|---|---|---|---|---|",
        flush=True,
    )
    for stage in [options.stage] if options.stage else SETTINGS:
        for peer in [*SIDES][1:]:
            if stage == "dpo" or peer == "theirs":
                compare(stage, peer, options.pairs)


if __name__ == "__main__":
    main()
