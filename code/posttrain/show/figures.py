"""How figures look: the colours of the stages, and settings for light and dark."""

from __future__ import annotations

GREY = "#7f868e"  # reads on white and on black
# Tell lines apart by the colours of Okabe & Ito 2008
BLUE, ORANGE, GREEN = "#0072b2", "#d55e00", "#009e73"
PINK, YELLOW, SKY = "#cc79a7", "#b8860b", "#56a0d8"
# Each stage has its colour, in every figure, table and page; what differs is grey
STAGE_COLOURS = {
    "base": GREY,
    "SFT": GREEN,
    "reward model": YELLOW,
    "PPO": BLUE,
    "on-policy DPO": PINK,
    "DPO": ORANGE,
    "best of": SKY,
}


def stage_colour(name: str) -> str | None:
    """The colour of the stage that a row, a box or a line is named after, or None."""
    name = name.lower().removeprefix("after ")
    stages = (stage for stage in STAGE_COLOURS if name.startswith(stage.lower()))
    return next((STAGE_COLOURS[stage] for stage in stages), None)


def setup_figures(*formats: str) -> None:
    """Make figures that read in light and dark and are the same bytes from run to run.

    Transparent, grey text; SVG where no formats are named, as IPython knows them.
    """
    import matplotlib.pyplot as plt
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats(*(formats or ["svg"]), metadata={"Date": None})
    grey = ["text.color", "xtick.color", "ytick.color", "axes.edgecolor"]
    grey += ["axes.labelcolor", "axes.titlecolor"]
    clear = ("figure.facecolor", "axes.facecolor", "savefig.facecolor")
    plt.rcParams.update(
        {name: GREY for name in grey} | {name: "none" for name in clear}
    )
    plt.rcParams.update(
        {
            "savefig.transparent": True,
            "svg.hashsalt": "posttrain",
            "svg.fonttype": "path",
            "legend.frameon": False,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": plt.cycler(
                color=[BLUE, ORANGE, GREEN, PINK, YELLOW, SKY]
            ),
            "figure.figsize": (6.4, 3.4),
            "figure.constrained_layout.use": True,
        }
    )
