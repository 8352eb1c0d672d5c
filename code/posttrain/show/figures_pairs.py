"""Chapter 8's figure: a policy that trains on its own answers, round by round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.show.charts import curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from posttrain.show.runs import Runs

PANELS = {
    "score": "reward model's score",
    "gold_score": "gold score",
    "finished": "answers finished (share)",
    "kl": "KL to SFT (nats/answer)",
}


def round_by_round(runs: Runs) -> Figure:
    """Scores, finished answers and the KL after each round: the seeds, and their mean.

    runs: as `pairs_trial` returns them, with a card before the first round.
    """
    name = "on-policy DPO"
    panels = {label: {name: runs.series("cards", key)} for key, label in PANELS.items()}
    figure = curves(panels, x="round", draw="mean")
    for axis in figure.axes:
        axis.set(xticks=range(len(runs[0]["cards"])))
    return figure
