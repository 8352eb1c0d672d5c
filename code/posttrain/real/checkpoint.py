"""A run's state on disk: all that is needed to go on as if nothing had happened."""

from __future__ import annotations

import json
import os
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from posttrain.real.model import ModelError

CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """What gets gradients, by name, each parameter once."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """An optimiser's averages and counters, by the number of their parameter and their
    name.
    """
    states = optimizer.state_dict()["state"]
    return {
        f"{i}.{name}": torch.as_tensor(value)
        for i, state in states.items()
        for name, value in state.items()
    }


def save_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict
) -> None:
    """Write weights, optimiser and state in one file, which is there whole or not at
    all.

    state: what else the run has to know, as JSON can hold it.
    """
    tensors = {f"model.{name}": value for name, value in trained_state(model).items()}
    averages = optimizer_tensors(optimizer).items()
    tensors |= {f"optimizer.{name}": value for name, value in averages}
    whole = {name: value.cpu().contiguous() for name, value in tensors.items()}
    part = folder / f"{CHECKPOINT}.part"
    safetensors.torch.save_file(whole, part, metadata=dict(state=json.dumps(state)))
    os.replace(part, folder / CHECKPOINT)


@torch.no_grad()
def load_checkpoint(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Put a checkpoint's weights into the model, and its averages into the
    optimiser.
    """
    tensors = safetensors.torch.load_file(folder / CHECKPOINT)
    own = trained_state(model)
    if {f"model.{name}" for name in own} != {
        n for n in tensors if n.startswith("model.")
    }:
        raise ModelError(
            f"the checkpoint in {folder} is of another model: give another --out"
        )
    for name, parameter in own.items():
        parameter.copy_(tensors[f"model.{name}"])
    states: dict[int, dict] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, i, key = name.split(".", 2)
            states.setdefault(int(i), {})[key] = value
    take_averages(optimizer, states)


def take_averages(optimizer: torch.optim.Optimizer, states: dict[int, dict]) -> None:
    """Put averages and counters, by the number of their parameter, into an
    optimiser.
    """
    # Keep the very groups that a descent sets the rates in
    groups, described = optimizer.param_groups, optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict(dict(state=states, param_groups=described))
    optimizer.param_groups = groups


def stored_state(folder: Path) -> dict | None:
    """What the checkpoint in a folder says of its run, or None where there is none."""
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    with safetensors.safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["state"])


def append_metrics(folder: Path, step: int, values: dict[str, float]) -> None:
    """Add a step's line to the metrics."""
    with open(folder / METRICS, "a", encoding="utf-8") as file:
        file.write(json.dumps(dict(step=step, **values)) + "\n")


def read_metrics(folder: str | Path) -> list[dict]:
    """A run's metrics, a dictionary per step; a last line that was cut off is left
    out.
    """
    path = Path(folder) / METRICS
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.is_file() else []
    return [json.loads(line) for line in lines]


def cut_metrics(folder: Path, steps: int) -> None:
    """Forget what was noted after so many steps: it will be done, and noted, again."""
    kept = [json.dumps(row) + "\n" for row in read_metrics(folder)[:steps]]
    part = folder / f"{METRICS}.part"
    part.write_text("".join(kept), encoding="utf-8")
    os.replace(part, folder / METRICS)
