"""What the chapter on a real model shows of its memory: measured, and computed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from posttrain.show.charts import add_legend
from posttrain.show.figures import BLUE, GREEN, GREY, ORANGE, PINK, YELLOW
from posttrain.show.tables import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# How a case of `benchmarks/real_gpu.py` was trained, in words
TRAINED = {
    "full32": "all weights, float32",
    "full16": "all weights, bfloat16",
    "lora": "LoRA",
    "qlora": "QLoRA",
}
# What is drawn of `real.memory.memory`: the parts that can be seen
PARTS = dict(
    weights=BLUE, gradients=ORANGE, adam=YELLOW, activations=GREEN, logits=PINK
)


def measured_table(cases: Sequence[dict], caption: str) -> Table:
    """A row per measured case: how it was trained, its peak, the computed total, its
    speed.

    cases: as `real.memory.measured` gives them, each with `computed`, the bytes that
    `real.memory.memory` finds.
    """
    # PyTorch takes a second to import
    from posttrain.real.memory import setting_of

    header = ["", "", "trained", "checkpointing", "rows x tokens"]
    header += ["peak (GB)", "computed (GB)", "tokens/s"]
    rows = []
    for case in cases:
        trained, again = TRAINED[case["how"]], "yes" if case["checkpointing"] else "no"
        size = f"{setting_of(case).batch_size} x {case['length']}"
        numbers = f"{case['peak']:.1f}", f"{case['computed']['total'] / 1e9:.1f}"
        speed = f"{case['tokens_per_second']:,}"
        stage = case["stage"].upper()
        rows.append((case["model"], stage, trained, again, size, *numbers, speed))
    return Table(header, rows, caption)


def memory_bars(cases: Sequence[dict]) -> Figure:
    """A bar per case, stacked of what memory holds, in GB; a dot at the measured peak.

    cases: as `measured_table` takes them.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 2.8), layout="constrained")
    axis = figure.subplots()
    names = [name_of(case) for case in cases]
    ends = [0.0] * len(cases)
    for part, colour in PARTS.items():
        sizes = [case["computed"][part] / 1e9 for case in cases]
        axis.barh(names, sizes, left=ends, color=colour, label=part, height=0.6)
        ends = [end + size for end, size in zip(ends, sizes)]
    dots = dict(color=GREY, markersize=5, label="measured peak")
    axis.plot([case["peak"] for case in cases], names, "o", **dots)
    axis.set_xlabel("memory (GB)")
    axis.invert_yaxis()
    add_legend(figure)
    return figure


def name_of(case: dict) -> str:
    """How a case was trained, on one line."""
    again = ", checkpointing" if case["checkpointing"] else ""
    return TRAINED[case["how"]] + again
