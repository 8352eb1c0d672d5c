"""Chapter 10: `sharded_bytes` and `break_even_tokens`."""

from posttrain.practice.cases import exercise
from posttrain.scale.estimate import break_even_tokens, sharded_bytes

SHARDED_BYTES = exercise(
    sharded_bytes,
    10,
    [
        ("", 1e6, 4, 3),
        ("nothing is cut up", 1e6, 4, 0),
        ("the optimiser alone is cut up", 1e6, 4, 1),
        ("optimiser and gradients are cut up", 7.5e9, 64, 2),
        ("one GPU", 1e6, 1, 3),
        ("a stage that does not exist", 1e6, 4, 4),
    ],
    """
everything from stage 1 on: stage 1 cuts up the optimiser's state alone
  'weights' -> 'adam'
  'gradients' -> 'adam'
the weights first: the optimiser's state comes first, the weights last
  'weights' -> 'adam'
  'adam' -> 'weights'
gradients stay whole: stage 2 cuts up the gradients, too
  slice_of('gradients', gpus, zero) -> 1
weights stay whole: stage 3 cuts up the weights, too
  slice_of('weights', gpus, zero) -> 1
nothing is divided: from stage 1 on something is cut up
  weights + gradients + optimizer -> WEIGHTS + GRADIENTS + OPTIMIZER
no float32 copy: the optimiser's 12 bytes are a copy and two moments
  OPTIMIZER -> (OPTIMIZER - 4)
  or
  weights + gradients + optimizer -> 12 / 16 * (weights + gradients + optimizer)
the sum over the GPUs: it is bytes on each GPU
  parameters * (weights + gradients + optimizer)
    -> gpus * parameters * (weights + gradients + optimizer)
""",
    by_value=("",),
)

BREAK_EVEN = exercise(
    break_even_tokens,
    10,
    [
        ("", 300.0, 10.0, 2.0),
        ("three transfers", 600.0, 10.0, 3.0),
        ("another network", 400.0, 50.0, 2.0),
    ],
    """
@ 6 * bytes_per_second
bits for bytes: the speed is in bytes
  -> 6 * bytes_per_second / 8
@ transfers * 2
one byte a number: 16 bits are two bytes
  -> transfers
four bytes a number: 16 bits are two bytes
  -> transfers * 4
the forward pass alone: forward and backward pass are 6 P operations
  6 * bytes_per_second -> 2 * bytes_per_second
the backward pass alone: forward and backward pass are 6 P operations
  6 * bytes_per_second -> 4 * bytes_per_second
one transfer: the bytes are sent `transfers` times
  -> 2
upside down: t is the tokens, not their inverse
  transfers * 2 * flops_per_second / (6 * bytes_per_second)
    -> 6 * bytes_per_second / (transfers * 2 * flops_per_second)
""",
    by_value=("",),
    tolerance=1e-6,
)

EXERCISES = (SHARDED_BYTES, BREAK_EVEN)
