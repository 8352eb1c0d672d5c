"""Chapter 6: `best_of_n_kl` and `win_rate`."""

from posttrain.best_of_n import best_of_n_kl
from posttrain.evaluate import win_rate
from posttrain.practice.cases import exercise

BEST_OF_N_KL = exercise(
    best_of_n_kl,
    6,
    [
        ("", 2),
        ("one draw", 1),
        ("more draws", 16),
        ("many draws", 1000),
        ("no draw", 0),
        ("a number of draws below 0", -1),
    ],
    """
@ math.log(n) - (n - 1) / n
log n alone: (n - 1) / n is taken off it
  -> math.log(n)
bits: nats: the natural logarithm
  math.log(n) -> math.log2(n)
the wrong sign: (n - 1) / n is taken off, not added
  -> math.log(n) + (n - 1) / n
@ (n - 1) / n
1 / n: it is (n - 1) / n that is taken off
  -> 1 / n
not divided by n: it is (n - 1) / n that is taken off
  -> (n - 1)
the limit of many draws: (n - 1) / n is 1 for large n only
  -> 1
the two the wrong way round: KL(one draw || best of n) is n - 1 - log n: another number
  math.log(n) - (n - 1) / n -> n - 1 - math.log(n)
negated: a KL divergence is never below 0
  math.log(n) - (n - 1) / n -> (n - 1) / n - math.log(n)
""",
)

WIN_RATE = exercise(
    win_rate,
    6,
    [
        ("", [1.0, 0.0, 2.0], [0.0, 1.0, 0.5]),
        ("a tie", [1.0, 0.5], [0.0, 0.5]),
        ("one prompt", [1.0], [0.0]),
        ("ties alone", [0.0, 1.0], [0.0, 1.0]),
        ("scores that are close", [0.51, 0.75], [0.5, 0.7499]),
        ("scores below 0", [-1.0, -3.0, -1.0, 0.5], [-2.0, -2.5, -1.0, -7.0]),
    ],
    """
a tie is a loss: a tie counts one half
  (a > b) + (a == b) / 2 -> a > b
a tie is a win: a tie counts one half
  (a > b) + (a == b) / 2 -> a >= b
ties are left out: a tie counts one half, and as a prompt
  zip(scores, others) -> zip(scores, others) if a != b
  len(wins) -> max(1, len(wins))
@ sum(wins) / len(wins)
the number instead of the share: divide by the number of prompts
  -> sum(wins)
percent: the share is a number from 0 to 1
  -> 100 * sum(wins) / len(wins)
the wrong way round: it is the first that wins where it is higher
  a > b -> a < b
wins less losses: a loss counts 0, and not -1
  (a > b) + (a == b) / 2 -> (a > b) - (a < b)
the mean of the gaps: by how much it wins does not count
  (a > b) + (a == b) / 2 -> a - b
all against all: compare the answers to the same prompt
  zip(scores, others) -> ((a, b) for a in scores for b in others)
the means are compared: compare prompt by prompt, then take the mean
  -> float(sum(scores) / len(scores) > sum(others) / len(others))
  or
  -> float(sum(scores) / len(scores) >= sum(others) / len(others))
  or
  zip(scores, others) -> [(sum(scores) / len(scores), sum(others) / len(others))]
negated: a share is never below 0
  -> -sum(wins) / len(wins)
""",
    tolerance=1e-6,  # so that single precision is right
)

EXERCISES = (BEST_OF_N_KL, WIN_RATE)
