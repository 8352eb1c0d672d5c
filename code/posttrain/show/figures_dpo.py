"""Chapter 5's own figures: the world of 64 words, and DPO on eighteen pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from posttrain.show.charts import STYLES, curves, draw_lines
from posttrain.show.figures import GREY, stage_colour
from posttrain.show.interactive import Interactive
from posttrain.show.runs import Runs
from posttrain.show.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A loss on a logarithmic scale must not be 0
LEAST_LOSS = 1e-5


def one_policy(
    words: Sequence[str],
    odds: Mapping[str, Sequence[float]],
    runs: Mapping[str, Runs],
    aim: float,
    kl: float,
) -> Figure:
    """Where methods end, word by word, and their way there: distance and divergence.

    odds: name to a probability per word, of which the first are drawn as bars. runs:
    method to runs whose `history` has `tv` and `kl`. aim and kl: where these should
    end.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 3.4), layout="constrained")
    bars, distance, divergence = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    draw_odds(bars, words, odds)
    for axis, key, level in ((distance, "tv", aim), (divergence, "kl", kl)):
        for style, (method, found) in zip(STYLES, runs.items()):
            lines = [
                (percent_done(line), line) for line in found.series("history", key)
            ]
            look = (stage_colour(method) or GREY, style, "")
            draw_lines(axis, lines, method, look, "lines")
        axis.axhline(level, linestyle=":", color=GREY)
        axis.set(xlabel="training done (%)")
    distance.set(ylabel="total variation to the optimum", yscale="log")
    divergence.set(ylabel="KL to the reference (nats)")
    return figure


def draw_odds(
    axis: Axes, words: Sequence[str], odds: Mapping[str, Sequence[float]], n: int = 20
) -> None:
    """The n likeliest words of the first distribution, as bars; the others as marks."""
    (name, best), *others = odds.items()
    top = likeliest(best, n)
    heights = [float(best[i]) for i in top]
    axis.bar(range(len(top)), heights, color="none", edgecolor=GREY, label=name)
    for mark, (name, probabilities) in zip("_oxs", others):
        found = [float(probabilities[i]) for i in top]
        look = dict(color=stage_colour(name) or GREY, markersize=5, label=name)
        axis.plot(range(len(top)), found, mark, **look)
    names = [words[i] for i in top]
    axis.set_xticks(range(len(top)), names, rotation=90, fontsize=7)
    axis.set(ylabel="probability")
    axis.legend(fontsize=8)


def likeliest(probabilities: Sequence[float], n: int) -> list[int]:
    """The places of the n highest probabilities, the highest first."""
    order = sorted(range(len(probabilities)), key=lambda i: -float(probabilities[i]))
    return order[:n]


def percent_done(line: Sequence[float]) -> list[float]:
    """How much of the training is done at each of a line's points, in percent."""
    return [100 * i / (len(line) - 1) for i in range(len(line))]


def best_by_beta(
    words: Sequence[str],
    betas: Sequence[float],
    optima: Sequence[Sequence[float]],
    kls: Sequence[float],
    reference: Sequence[float],
    rewards: Sequence[float],
) -> Interactive:
    """The best policy at every beta, to be gone through; still, a table of some of
    them.

    optima: a probability per word for each beta. Shown are the sixteen words that are
    likeliest at the beta in the middle.
    """
    middle = len(betas) // 2
    rows = likeliest(optima[middle], 16)
    means = [sum(float(p) * float(r) for p, r in zip(at, rewards)) for at in optima]
    said = [words[likeliest(at, 1)[0]] for at in optima]
    lines = [
        (f"{beta:.2f}", f"{mean:.2f}", f"{kl:.2f}", word)
        for beta, mean, kl, word in zip(betas, means, kls, said)
    ]
    still = Table(("beta", "mean reward", "KL (nats)", "likeliest word"), lines[::4])
    return Interactive(
        "beta",
        still,
        betas=list(betas),
        start=middle,
        words=[words[i] for i in rows],
        rewards=numbers(rewards[i] for i in rows),
        reference=numbers(reference[i] for i in rows),
        best=[numbers(at[i] for i in rows) for at in optima],
        reward=means,
        kl=list(kls),
    )


def numbers(values: Iterable[float]) -> list[float]:
    """Numbers as JSON holds them, with five places after the point."""
    return [round(float(value), 5) for value in values]


def training_curves(groups: Mapping[str, Runs]) -> Figure:
    """DPO as it trains: loss, implicit rewards on training and held-out pairs,
    accuracy.

    groups: label to runs as `dpo_trial` returns them; the first has DPO's colour, the
    others are grey. Held-out accuracy begins after the start, where all pairs are ties.
    """
    losses, ranked, training, heldout, colours = {}, {}, {}, {}, {}
    for label, runs in groups.items():
        lines = runs.series("steps", "loss")
        losses[label] = [[max(x, LEAST_LOSS) for x in line] for line in lines]
        seen = runs.series("heldout", "accuracy", x=("heldout", "step"))
        ranked[label] = [(xs[1:], [100 * y for y in ys[1:]]) for xs, ys in seen]
        colours[label] = GREY if colours else "DPO"
        for side in ("chosen", "rejected"):
            name, key = f"{side}, {label}", f"{side}_reward"
            training[name] = runs.series("steps", key)
            heldout[name] = runs.series("heldout", key, x=("heldout", "step"))
            colours[name] = colours[label]
    panels = {
        "loss (nats)": losses,
        "reward, training pairs": training,
        "reward, held-out pairs": heldout,
        "held-out ranked right (%)": ranked | {"guessing": 50.0},
    }
    figure = curves(panels, x="step", draw="mean", colours=colours)
    figure.axes[0].set(yscale="log")
    return figure
