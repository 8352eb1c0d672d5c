"""Chapter 3: `bradley_terry_loss` and `last_of`."""

import math

import torch

from posttrain.practice.cases import exercise, normal, numbers, spans
from posttrain.reward_model import bradley_terry_loss, last_of

# Put these small numbers below a probability, so that it has a logarithm
SINGLE, DOUBLE = torch.finfo(torch.float32), torch.finfo(torch.float64)
FLOORS = [1e-12, *(10.0**-k for k in (*range(3, 12), *range(13, 17), 20, 30))]
FLOORS += [SINGLE.eps, SINGLE.tiny, DOUBLE.eps]
FLOORED = "\n  or\n".join(
    f"  F.logsigmoid(chosen - rejected) -> {way}.log()"
    for floor in FLOORS
    for way in (
        f"torch.sigmoid(chosen - rejected).clamp({floor})",
        f"torch.sigmoid(chosen - rejected).clamp({floor}, {1 - floor})",
        f"(torch.sigmoid(chosen - rejected) + {floor})",
    )
)
BRADLEY_TERRY = exercise(
    bradley_terry_loss,
    3,
    [
        ("", numbers(1), numbers(0)),
        ("several pairs", numbers(2, -1, 0.5), numbers(0.5, 1, 0.5)),
        ("centring", numbers(1, 2), numbers(0.5, -3), 0.1),
        ("extreme scores", numbers(-1000, 1000), numbers(1000, 0)),
        ("a score that is NaN", numbers(math.nan), numbers(0)),
        ("a rejected score that is NaN", numbers(0), numbers(math.nan)),
        ("a score that is infinite", numbers(math.inf), numbers(0)),
        ("a rejected score that is infinite", numbers(0, 1), numbers(0, -math.inf)),
    ],
    f"""
chosen and rejected the wrong way round: the chosen answer's score is to rise
  chosen - rejected -> rejected - chosen
the sum instead of the mean: take the mean over the pairs
  F.logsigmoid(chosen - rejected).mean() -> F.logsigmoid(chosen - rejected).sum()
  (chosen + rejected).square().mean() -> (chosen + rejected).square().sum()
the wrong sign: a surprise is minus the logarithm
  -F.logsigmoid(chosen - rejected) -> F.logsigmoid(chosen - rejected)
@ F.logsigmoid(chosen - rejected)
the logarithm of a rounded 0: sigmoid rounds, so use logsigmoid
  -> torch.sigmoid(chosen - rejected).log()
no logarithm: the surprise is -log p, and not 1 - p
  -F.logsigmoid(chosen - rejected) -> (1 - torch.sigmoid(chosen - rejected))
the mean before the logarithm: first each pair's surprise, then the mean
  F.logsigmoid(chosen - rejected).mean() -> F.logsigmoid((chosen - rejected).mean())
a pointwise loss: each answer is judged by itself, not the gap of the two
  -> (F.logsigmoid(chosen) + F.logsigmoid(-rejected))
  or
  -> (F.logsigmoid(chosen) + F.logsigmoid(-rejected)).div(2)
centring is ignored: add c times the mean of (chosen + rejected) squared
  loss + centring * (chosen + rejected).square().mean() -> loss
centring of the gap: it is the sum of the two scores that is held near 0
  chosen + rejected -> chosen - rejected
@ (chosen + rejected).square().mean()
the centring's sum: of c (chosen + rejected) squared, too, it is the mean
  -> (chosen + rejected).square().sum()
half the centring: it is c times the mean of the squares, without a half
  -> (chosen + rejected).square().mean() / 2
the centring is taken off: what lies far from 0 costs: add it
  loss + centring -> loss - centring
each score is centred by itself: it is the sum of the two that is squared, and not each
    of them
  (chosen + rejected).square() -> (chosen.square() + rejected.square())
the centring's mean is squared: first square, then take the mean
  -> (chosen + rejected).mean().square()
the sigmoid is clamped: a lost pair has then no gradient, and its surprise is cut: use
    logsigmoid
{FLOORED}
@ chosen - rejected
all against all: compare the two answers of each pair
  -> chosen[:, None] - rejected
  or
  -> chosen[:, None] - rejected
  chosen + rejected -> chosen[:, None] + rejected
half the gradient: the rejected score is detached; both have to move
  -> chosen - rejected.detach()
  chosen + rejected -> chosen + rejected.detach()
""",
    rounding=("extreme scores",),
    gradients=("chosen", "rejected"),
)

LAST_OF = exercise(
    last_of,
    3,
    [
        ("", numbers([1, 2, 4]), spans(3, (0, 3))),
        ("padding", numbers([1, 2, 4, 8]), spans(4, (0, 2))),
        ("a prompt before the answer", numbers([1, 2, 4]), spans(3, (1, 3))),
        ("answers of one token", numbers([1, 2, 4]), spans(3, (1, 2))),
        ("rows of unequal length", normal(0, 2, 3), spans(3, (0, 2), (1, 3))),
        ("a row without an answer", numbers([1, 2]), spans(2, (0, 0))),
        (
            "a row without an answer beside one with it",
            numbers([1, 2], [4, 8]),
            spans(2, (0, 1), (0, 0)),
        ),
    ],
    """
@ values.gather(1, last).squeeze(1)
the last column: a short row is scored by its padding
  -> values[:, -1]
@ values.gather(1, last)
off by one: it is the token before the last
  -> values.gather(1, (last - 1).clamp(min=0))
one too far: it is the token after the last
  -> values.gather(1, (last + 1).clamp(max=mask.size(1) - 1))
the first instead of the last: the first token has read nothing of the answer
  -> values.gather(1, mask.int().argmax(1, keepdim=True))
the prompt is forgotten: the answer's length is no column: the prompt precedes
  -> values.gather(1, mask.sum(1, keepdim=True) - 1)
@ values.gather(1, last).squeeze(1)
the mean over the answer: read one token, the last
  -> (values * mask).sum(1) / mask.sum(1)
the sum over the answer: read one token, the last
  -> (values * mask).sum(1)
the largest: read the last token, whatever the others say
  -> values.masked_fill(~mask, -torch.inf).amax(1)
one column for all rows: each row ends where its own mask does
  values.gather(1, last) -> values.gather(1, last.max().expand_as(last))
the mask multiplies: the last column of values * mask is 0 in a short row
  -> (values * mask)[:, -1]
""",
    gradients=("values",),
)

EXERCISES = (BRADLEY_TERRY, LAST_OF)
