"""Chapter 2: `build_labels` and `sft_loss`."""

import torch

from posttrain.chat import IGNORE, build_labels
from posttrain.practice.cases import exercise, normal, numbers
from posttrain.sft import sft_loss
from posttrain.tokenizer import CharTokenizer

SPELL = CharTokenizer()
ASK = [SPELL.user, *SPELL.encode("hi")]
REPLY = [SPELL.assistant, *SPELL.encode("ay"), SPELL.end]
BUILD_LABELS = exercise(
    build_labels,
    2,
    [
        ("", [*ASK, *REPLY], SPELL),
        ("padding", [*ASK, *REPLY, SPELL.pad, SPELL.pad], SPELL),
        ("a second turn", [*ASK, *REPLY, *ASK, *REPLY], SPELL),
        ("an empty answer", [*ASK, SPELL.assistant, SPELL.end], SPELL),
        ("an answer that breaks off", [*ASK, *REPLY[:-1]], SPELL),
        ("text without an answer", SPELL.encode("to be"), SPELL),
    ],
    """
@ token if answering else IGNORE
the mask is missing: every token is its own label, the user's too
  -> token
the mask the wrong way round: what is read is graded, and what is to be written is not
  -> IGNORE if answering else token
the end is not graded: without a label for <|end|> the model never stops
  -> token if answering and token != tokenizer.end else IGNORE
the role is graded: <|assistant|> is written by us and has no label
  -> token if answering or token == tokenizer.assistant else IGNORE
grading never stops: after <|end|> it is the user's turn again, or padding
  answering = False -> pass
only the first answer: every answer is graded
  if token == tokenizer.assistant:
    -> if token == tokenizer.assistant and tokenizer.end not in tokens[:len(labels)]:
only the last answer: every answer is graded
  -> token if answering and tokenizer.assistant not in tokens[len(labels):] else IGNORE
off by one: labels stand at their own token: it is the loss that shifts
  return labels -> return [*labels[1:], IGNORE]
0 for what is not graded: 0 is a token, the line break; IGNORE is -100
  -> token if answering else 0
-1 for what is not graded: the loss skips IGNORE, and that is -100
  -> token if answering else -1
None for what is not graded: labels become a tensor: use IGNORE, which is -100
  -> token if answering else None
""",
)

LOGITS = numbers([[0, 1], [2, 0], [0, 0]])
LABELS = torch.tensor([[IGNORE, 1, 0, 1], [IGNORE, IGNORE, 1, IGNORE]])
TWO = torch.tensor([[IGNORE, 1, 1]])
SFT_LOSS = exercise(
    sft_loss,
    2,
    [
        ("", LOGITS, TWO),
        (
            "padding",
            numbers([[0, 1], [2, 0], [3, 0]]),
            torch.tensor([[IGNORE, 1, IGNORE]]),
        ),
        ("a first token that is graded", LOGITS, torch.tensor([[0, 1, 1]])),
        ("answers of unequal length", normal(0, 2, 4, 2), LABELS),
        ("a given n_graded", normal(1, 1, 4, 2), LABELS[:1], 7),
        ("extreme logits", numbers([[2000, 0], [0, -2000], [0, 0]]), TWO),
        ("no graded token", LOGITS[:, :2], torch.full((1, 2), IGNORE)),
        (
            "no graded token but the first, which nothing precedes",
            LOGITS[:, :2],
            torch.tensor([[1, IGNORE]]),
        ),
    ],
    """
@ logits, targets = logits[:, :-1], labels[:, 1:]
off by one: each position is graded by its own token, not by the one after it
  -> targets = labels
  count_graded(labels) -> (labels != IGNORE).sum()
  or
  -> targets = labels
  or
  -> targets = labels
  surprise / n_graded -> surprise / (labels != IGNORE).sum()
shifted the wrong way: each position is graded by the token before it
  logits[:, :-1] -> logits[:, 1:]
  labels[:, 1:] -> labels[:, :-1]
  count_graded(labels) -> (targets != IGNORE).sum()
@ surprise / n_graded
the sum instead of the mean: divide by the number of graded tokens
  -> surprise
the mean over all tokens: what is not graded does not count in the mean
  -> surprise / targets.numel()
the mean of the rows' means: a token of a short answer counts for more
  'sum' -> 'none'
  -> (surprise.view_as(targets).sum(1) / (targets != IGNORE).sum(1)).mean()
the mask is ignored: labels of -100 are graded as if they were token 0
  targets.flatten() -> targets.flatten().clamp(min=0)
  -> surprise / targets.numel()
the first token is counted: nothing stands before it, so it is not graded
  count_graded(labels) -> (labels != IGNORE).sum()
n_graded is ignored: the losses of a batch's parts have to add up
  count_graded(labels) if n_graded is None else n_graded -> count_graded(labels)
the wrong sign: a surprise is minus the log-probability
  -> -surprise / n_graded
@ F.cross_entropy
the logarithm of a rounded 0: softmax rounds, so use log_softmax
  -> F.nll_loss
  logits.flatten(0, 1) -> logits.softmax(-1).log().flatten(0, 1)
softmax over the wrong axis: the probabilities of the V tokens add up to 1, and V is the
    last axis
  -> F.nll_loss
  logits[:, :-1] -> logits.log_softmax(1)[:, :-1]
  or
  -> F.nll_loss
  logits.flatten(0, 1) -> logits.log_softmax(1).flatten(0, 1)
  or
  -> F.nll_loss
  logits.flatten(0, 1) -> logits.log_softmax(0).flatten(0, 1)
  or
  logits.flatten(0, 1) -> logits
  targets.flatten() -> targets
  or
  logits.flatten(0, 1) -> logits
  targets.flatten() -> targets
  'sum' -> 'mean'
  surprise / n_graded -> surprise
""",
    rounding=("extreme logits",),
    gradients=("logits",),
)

EXERCISES = (BUILD_LABELS, SFT_LOSS)
