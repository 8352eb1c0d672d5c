"""Chapter 9: `parameters`."""

from dataclasses import replace

from posttrain.practice.cases import exercise
from posttrain.real.memory import Architecture, parameters

PLAIN = Architecture(
    vocab_size=9, width=4, n_layer=2, n_head=2, n_kv_head=2, mlp_width=8
)
GROUPED = replace(PLAIN, n_kv_head=1)
PARAMETERS = exercise(
    parameters,
    9,
    [
        ("", PLAIN),
        ("a head of its own", replace(PLAIN, tied=False)),
        ("fewer heads with keys", GROUPED),
        (
            "learned positions and LayerNorm",
            replace(PLAIN, positions=6, gated=False),
        ),
        (
            "biases of queries, keys and values",
            replace(GROUPED, qkv_bias=True),
        ),
    ],
    """
a tied head counted twice: it is the embedding, and counts once
  1 if shape.tied else 2 -> 2
a head of its own left out: where it is not tied, it is a table more
  1 if shape.tied else 2 -> 1
keys and values for every head: n_kv_head of the heads have them
  shape.keys -> shape.queries
  block_matrix_parameters(shape)
    -> block_matrix_parameters(replace(shape, n_kv_head=shape.n_head))
one block alone: there are n_layer of them
  shape.n_layer * (biases + 2 * norm) -> biases + 2 * norm
  block_matrix_parameters(shape) -> block_matrix_parameters(replace(shape, n_layer=1))
matrices alone: norms have gains, and biases count
  block_matrix_parameters(shape) + vectors -> block_matrix_parameters(shape)
the last norm left out: there is one more behind the blocks
  shape.n_layer * (biases + 2 * norm) + norm -> shape.n_layer * (biases + 2 * norm)
one norm per block: attention and MLP have one each
  2 * norm -> norm
positions left out: a learned table of positions has a row for each
  shape.positions -> 0
""",
)

EXERCISES = (PARAMETERS,)
