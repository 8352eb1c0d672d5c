"""Chapter 1's picture: where each character looks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from posttrain.show.charts import panel_grid
from posttrain.show.figures import BLUE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def heat_maps(
    maps: Mapping[str, Sequence[Sequence[float]]], letters: Sequence[str]
) -> Figure:
    """A square of blue per title: row t, column s is the weight (0 to 1) of s for t.

    No weight is no ink, so that light and dark paper show through.
    """
    from matplotlib.colors import LinearSegmentedColormap, to_rgb

    clear_to_blue = [(*to_rgb(BLUE), opacity) for opacity in (0, 1)]
    ink = LinearSegmentedColormap.from_list("ink", clear_to_blue)
    spelt = [{"\n": "⏎", " ": "·"}.get(letter, letter) for letter in letters]
    figure, axes = panel_grid(len(maps))
    figure.set_size_inches(7.6, 8.0)
    for axis, (title, weights) in zip(axes, maps.items()):
        axis.imshow(weights, cmap=ink, vmin=0, vmax=1)
        axis.set_title(title, fontsize=9)
        axis.set_xticks(range(len(spelt)), spelt, fontsize=7)
        axis.set_yticks(range(len(spelt)), spelt, fontsize=7)
    return figure
