"""Chapter 7's figure: what adapters forget for what they learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from posttrain.show.charts import add_legend, panel_grid
from posttrain.show.figures import BLUE, GREEN, GREY, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from posttrain.show.runs import Runs

# Runs that are drawn from their first measurement on, and those whose end is marked
WHOLE = {"all weights": GREY, "LoRA": GREEN}
ENDS = {
    "all weights, rate / 3": ("s", GREY),
    "LoRA, rate / 3": ("s", GREEN),
    "rank 1": ("v", BLUE),
    "rank 32": ("^", BLUE),
    "QLoRA": ("X", ORANGE),
    "replay": ("D", GREY),
}


def learned_and_forgotten(trials: Mapping[str, Runs]) -> Figure:
    """The rise of Shakespeare's loss against the loss on what was trained on, in nats.

    trials: name to runs with `learned`, `shakespeare_loss` and, before the training,
    `base_loss`. A line per seed for whole runs, a mark per seed for ends of others.
    """
    figure, (axis,) = panel_grid(1)
    looks = {name: ("o-", colour, 3) for name, colour in WHOLE.items()}
    looks |= {name: (*look, 8) for name, look in ENDS.items()}
    for name, (form, colour, size) in looks.items():
        first = 0 if name in WHOLE else -1
        for run in trials[name]:
            losses, start = run["shakespeare_loss"][first:], run["base_loss"]
            rise = [loss - start for loss in losses]
            look = dict(color=colour, markersize=size, label=name)
            axis.plot(run["learned"][first:], rise, form, **look)
    axis.set(xlabel="loss on the conversations (nats/token)")
    axis.set(ylabel="rise on Shakespeare (nats/char)", ylim=(0, None))
    add_legend(figure)
    return figure
