"""Chapter 7: `low_rank` and `quantize`."""

import math

from posttrain.lora.adapters import low_rank
from posttrain.lora.nf4 import int4_levels, nf4_levels, quantize
from posttrain.practice.cases import exercise, normal, numbers

LOW_RANK = exercise(
    low_rank,
    7,
    [
        ("", normal(0, 2, 3), normal(1, 2, 3), normal(2, 4, 2), 6.0),
        ("rank 1", normal(3, 3), normal(4, 1, 3), normal(5, 2, 1), 2.0),
        ("(B, T, in)", normal(6, 2, 2, 4), normal(7, 3, 4), normal(8, 5, 3), 1.0),
    ],
    """
@ alpha / A.size(0)
alpha without the rank: it is alpha / r
  -> alpha
alpha is ignored: it is scaled by alpha / r
  -> 1.0
alpha over the inputs: r is the first of A's sizes
  A.size(0) -> A.size(1)
alpha over the root of the rank: that is rsLoRA; here it is alpha / r
  A.size(0) -> A.size(0) ** 0.5
the rank over alpha: it is alpha / r
  -> A.size(0) / alpha
""",
    gradients=("x", "A", "B"),
)

QUANTIZE = exercise(
    quantize,
    7,
    [
        ("", normal(0, 8), nf4_levels(), 4),
        ("a last block that is not full", normal(1, 2, 5), nf4_levels(), 4),
        ("a matrix", normal(2, 3, 6), nf4_levels(), 6),
        ("a block of zeros", numbers(0, 0, 1, -2), nf4_levels(), 2),
        ("even levels", normal(3, 12) + 0.013, int4_levels(), 6),
        ("64 in a block", normal(4, 200), nf4_levels()),
        ("NaN", numbers(1, math.nan), nf4_levels(), 2),
    ],
    """
the level below: the nearest counts
  torch.bucketize(unit, midpoints.to(unit.device))
    -> torch.bucketize(unit, levels, right=True).sub(1).clamp_min(0)
the level above: the nearest counts
  torch.bucketize(unit, midpoints.to(unit.device))
    -> torch.bucketize(unit, levels).clamp_max(len(levels) - 1)
@ rows.abs().amax(-1)
the largest weight with its sign: it is the largest without its sign
  -> rows.amax(-1)
the mean size as the scale: it is the block's largest
  -> rows.abs().mean(-1)
one scale for all: each block has its own
  -> rows.abs().amax().expand(len(rows)).clone()
""",
    results=("codes", "scales"),
    tolerance=1e-6,
)

EXERCISES = (LOW_RANK, QUANTIZE)
