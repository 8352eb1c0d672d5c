"""What pages show: source, tables, token views, figures, checks, results over seeds."""

from posttrain.show.charts import curves, diagram, frontier, histogram, intervals
from posttrain.show.checks import COMPARISONS, CheckFailed, verify
from posttrain.show.figures import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    STAGE_COLOURS,
    YELLOW,
    setup_figures,
    stage_colour,
)
from posttrain.show.glue import record
from posttrain.show.interactive import Interactive
from posttrain.show.progress_bar import progress
from posttrain.show.runs import Runs
from posttrain.show.scoreboards import POLICY_COLUMNS, scoreboard, side_by_side
from posttrain.show.seeds import Seeds
from posttrain.show.source import Listing, show_source
from posttrain.show.tables import Table
from posttrain.show.tokens import ScoreView, TokenTable, TokenView, shade

__all__ = [
    "BLUE",
    "COMPARISONS",
    "GREEN",
    "GREY",
    "ORANGE",
    "PINK",
    "POLICY_COLUMNS",
    "SKY",
    "STAGE_COLOURS",
    "YELLOW",
    "CheckFailed",
    "Interactive",
    "Listing",
    "Runs",
    "ScoreView",
    "Seeds",
    "Table",
    "TokenTable",
    "TokenView",
    "curves",
    "diagram",
    "frontier",
    "histogram",
    "intervals",
    "progress",
    "record",
    "scoreboard",
    "setup_figures",
    "shade",
    "show_source",
    "side_by_side",
    "stage_colour",
    "verify",
]
