"""Chapter 5: `get_response_log_probs` and `dpo_loss`."""

import torch

from posttrain.dpo import dpo_loss
from posttrain.logprobs import get_response_log_probs
from posttrain.practice.cases import Bigram, exercise, normal, numbers, spans

TOKENS = torch.tensor([[0, 1, 2, 1, 0], [2, 0, 1, 1, 2], [1, 1, 0, 2, 0]])
RESPONSES = spans(5, (1, 5), (3, 4), (2, 4))
FOUR = TOKENS[:1, :4]
RESPONSE_LOG_PROBS = exercise(
    get_response_log_probs,
    5,
    [
        ("", Bigram(0), FOUR, spans(4, (2, 4))),
        ("padding", Bigram(0), FOUR, spans(4, (1, 3))),
        ("answers of one token", Bigram(1), TOKENS[1:2, :3], spans(3, (2, 3))),
        ("rows of unequal length", Bigram(2), TOKENS, RESPONSES),
        ("a temperature", Bigram(0), FOUR, spans(4, (2, 4)), 0.5),
    ],
    """
the mean instead of the sum: the logarithm of an answer's probability is the sum over
    its tokens
  logprobs.masked_fill(~mask[:, 1:], 0.0).sum(-1)
    -> logprobs.masked_fill(~mask[:, 1:], 0.0).sum(-1) / mask.sum(-1)
@ mask[:, 1:]
off by one: the logits at t are about token t + 1, and not about token t
  token_logprobs(model(tokens), tokens, temperature) -> (model(tokens) / temperature)
    .log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
  -> mask
the prompt is counted: only the answer's tokens count
  -> (mask.flip(1).cumsum(1).flip(1) > 0)[:, 1:]
the padding is counted: nothing after the answer counts
  -> (mask[:, 1:].cumsum(1) > 0)
the mask is ignored: prompt and padding do not count
  logprobs.masked_fill(~mask[:, 1:], 0.0) -> logprobs
the mask is not shifted: it moves with the tokens: mask[:, 1:]
  -> mask[:, :-1]
the end is not counted: the answer's last token is part of it
  -> (mask & (mask.flip(1).cumsum(1).flip(1) > 1))[:, 1:]
@ token_logprobs(model(tokens), tokens, temperature)
logits instead of log-probabilities: log_softmax is missing
  -> (model(tokens)[:, :-1] / temperature).gather(-1, tokens[:, 1:, None]).squeeze(-1)
the temperature is ignored: it divides the logits
  -> token_logprobs(model(tokens), tokens)
the temperature after the softmax: divide the logits, not the log-probabilities
  -> token_logprobs(model(tokens), tokens) / temperature
@ logprobs.masked_fill(~mask[:, 1:], 0.0).sum(-1)
the probability instead of its logarithm: leave out the exponential
  -> logprobs.masked_fill(~mask[:, 1:], 0.0).sum(-1).exp()
the wrong sign: a log-probability is below 0: it is no surprise
  token_logprobs(model(tokens), tokens, temperature)
    -> -token_logprobs(model(tokens), tokens, temperature)
the temperature multiplies: it divides the logits
  token_logprobs(model(tokens), tokens, temperature)
    -> token_logprobs(model(tokens), tokens, 1 / temperature)
the mean over all columns: sum over the answer's tokens, and do not divide
  -> logprobs.masked_fill(~mask[:, 1:], 0.0).mean(-1)
  or
  -> logprobs.masked_fill(~mask[:, 1:], 0.0).sum(-1) / tokens.size(1)
""",
    gradients=("model",),
)

PAIR = numbers(-40), numbers(-52), numbers(-43), numbers(-50)
PAIRS = tuple(-50 + 5 * normal(seed, 3) for seed in range(4))
FAR = numbers(-90000), numbers(-10), numbers(-10), numbers(-10)
DPO_LOSS = exercise(
    dpo_loss,
    5,
    [
        ("", *PAIR),
        ("beta", *PAIR, 0.5),
        ("several pairs", *PAIRS),
        ("label smoothing", *PAIR, 0.1, 0.2),
        ("a smoothing per pair", *PAIRS, 0.1, numbers(0, 0.1, 0.4)),
        ("extreme log-probabilities", *FAR),
    ],
    """
@ beta * (chosen_ratio - rejected_ratio)
beta the wrong way round: beta multiplies the log-ratios, and does not divide
  -> (chosen_ratio - rejected_ratio) / beta
beta is ignored: a nat of log-ratio counts beta, an argument
  -> 0.1 * (chosen_ratio - rejected_ratio)
beta is missing: beta multiplies the log-ratios
  -> chosen_ratio - rejected_ratio
beta outside the sigmoid: it belongs inside, with the log-ratios
  -> chosen_ratio - rejected_ratio
  (1 - wrong) * F.logsigmoid(h) -> beta * (1 - wrong) * F.logsigmoid(h)
  wrong * F.logsigmoid(-h) -> beta * wrong * F.logsigmoid(-h)
the reference is ignored: it is the change since the reference that counts
  chosen - reference_chosen -> chosen
  rejected - reference_rejected -> rejected
the references the wrong way round: each answer is compared with what the reference says
    of that answer
  chosen - reference_chosen -> chosen - reference_rejected
  rejected - reference_rejected -> rejected - reference_chosen
chosen and rejected the wrong way round: the chosen answer's ratio is to rise; it falls
    where h has the wrong sign, and just so where epsilon and 1 - epsilon are swapped
  chosen_ratio - rejected_ratio -> rejected_ratio - chosen_ratio
  or
  wrong = label_smoothing -> wrong = 1 - label_smoothing
the sum instead of the mean: take the mean over the pairs
  (1 - wrong) * F.logsigmoid(h) -> len(h) * (1 - wrong) * F.logsigmoid(h)
  wrong * F.logsigmoid(-h) -> len(h) * wrong * F.logsigmoid(-h)
the wrong sign: a surprise is minus the logarithm
  (1 - wrong) * F.logsigmoid(h) -> -(1 - wrong) * F.logsigmoid(h)
  wrong * F.logsigmoid(-h) -> -wrong * F.logsigmoid(-h)
the logarithm of a rounded 0: sigmoid rounds, so use logsigmoid
  F.logsigmoid(h) -> torch.sigmoid(h).log()
  F.logsigmoid(-h) -> (1 - torch.sigmoid(h)).log()
the smoothing is ignored: label_smoothing is the chance that a label is wrong
  wrong = label_smoothing -> wrong = 0.0
the smoothing is added: the weights 1 - epsilon and epsilon add up to 1
  (1 - wrong) * F.logsigmoid(h) -> F.logsigmoid(h)
half the gradient: the rejected answer is detached; both have to move
  rejected - reference_rejected -> rejected.detach() - reference_rejected
""",
    rounding=("extreme log-probabilities",),
    gradients=("chosen", "rejected"),
)

EXERCISES = (RESPONSE_LOG_PROBS, DPO_LOSS)
