"""Chapter 1: `rotate` and `visible`."""

import torch

from posttrain.gpt import rotate, rotation_table
from posttrain.practice.cases import exercise, normal
from posttrain.sampling import visible

TURNS = rotation_table(8, 4).double()
ROTATE = exercise(
    rotate,
    1,
    [
        ("", normal(0, 3, 1, 4), TURNS[:3]),
        ("the first position", normal(1, 1, 1, 4), TURNS[:1]),
        ("two heads, two rows", normal(2, 2, 3, 2, 4), TURNS[:3]),
        (
            "positions of each row",
            normal(3, 2, 2, 1, 4),
            TURNS[torch.tensor([[0, 1], [4, 5]])],
        ),
    ],
    """
the other way round: (x, y) becomes (x cos - y sin, x sin + y cos)
  torch.view_as_complex(rotation) -> torch.view_as_complex(rotation).conj()
cosine and sine exchanged: rotation[..., 0] is the cosine, [..., 1] the sine
  torch.view_as_complex(rotation) -> torch.view_as_complex(rotation.flip(-1))
@ torch.view_as_real(turned)
no minus: a turn has one minus: x cos - y sin
  -> torch.stack([turned.real  + 2 * pairs.imag * rotation.unsqueeze(-3)[..., 1],
    turned.imag], -1)
the second feature is left as it is: both features of a pair are turned
  -> torch.stack([turned.real, pairs.imag], -1)
the new first feature is used for the second: compute both from the old pair, then write
    them
  -> torch.stack([turned.real, turned.imag + (turned.real - pairs.real) *
    rotation.unsqueeze(-3)[..., 1]], -1)
halves instead of neighbours: features 2j and 2j + 1 are a pair; pairing j with j + hs/2
    is another convention, for other weights
  x.unflatten(-1, (-1, 2)) -> x.unflatten(-1, (2, -1)).mT.contiguous()
  -> torch.view_as_real(turned).mT
pairs come out sorted apart: put the two features of a pair side by side again
  -> torch.view_as_real(turned).mT
""",
    gradients=("x",),
    tolerance=1e-6,
)

VISIBLE = exercise(
    visible,
    1,
    [
        ("", torch.tensor([[True, True, True]])),
        ("padding on the left", torch.tensor([[False, False, True]])),
        ("two lengths", torch.tensor([[False, True, True], [True, True, True]])),
        ("one token", torch.tensor([[True]])),
    ],
    """
not causal: a token must not see those that come after it
  torch.ones(T, T, dtype=torch.bool).tril() -> torch.ones(T, T, dtype=torch.bool)
the wrong triangle: row t is the token that looks and column s the one it looks at: s <=
    t
  torch.ones(T, T, dtype=torch.bool).tril() -> torch.ones(T, T, dtype=torch.bool).triu()
a token does not see itself: the diagonal is visible, in every row
  mask[:, None, :] | torch.eye(T, dtype=torch.bool)
    -> mask[:, None, :] & ~torch.eye(T, dtype=torch.bool)
@ mask[:, None, :]
padding is seen: no real token may look at padding
  -> torch.ones_like(mask)[:, None, :]
padding sees nothing: a softmax over nothing is NaN: let every token see itself, padding
    too
  mask[:, None, :] | torch.eye(T, dtype=torch.bool) -> mask[:, None, :]
who looks is masked, and not what is looked at: the mask belongs to the columns: mask[:,
    None, :]
  -> mask[:, :, None]
the mask is turned round: True marks the real tokens
  -> ~mask[:, None, :]
no dimension for the heads: attention wants (B, 1, T, T)
  allowed[:, None] -> allowed
""",
)

EXERCISES = (ROTATE, VISIBLE)
