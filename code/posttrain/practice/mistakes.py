"""Typical mistakes, each as the function it makes, and small inputs that tell them apart."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from posttrain.best_of_n import best_of_n_kl
from posttrain.chat import IGNORE, build_labels
from posttrain.data.synthetic_pairs import best_and_worst
from posttrain.dpo import dpo_loss
from posttrain.evaluate import win_rate
from posttrain.gpt import rotate, rotation_table
from posttrain.logprobs import get_response_log_probs, kl_estimate, masked_mean, token_logprobs
from posttrain.lora.adapters import low_rank
from posttrain.lora.nf4 import blocks_of, int4_levels, nf4_levels, quantize
from posttrain.ppo import gae, policy_loss, value_loss, whiten
from posttrain.real.memory import Architecture, matrices, parameters
from posttrain.reward_model import bradley_terry_loss, last_of
from posttrain.sampling import visible
from posttrain.scale.estimate import break_even_tokens, sharded_bytes
from posttrain.sft import sft_loss
from posttrain.tokenizer import CharTokenizer


@dataclass(frozen=True)
class Case:
    """One input. kind says in a few words what is special about it; "" for the plain case."""

    kind: str
    arguments: dict[str, object]  # by the parameters' names, in their order
    rounding: bool = False  # whether it tells a formula that keeps its digits from another


@dataclass(frozen=True)
class Mistake:
    """One wrong implementation, by name, and what is wrong with it in a sentence."""

    name: str
    why: str
    function: Callable
    others: tuple[Callable, ...] = ()  # the same mistake, made in other ways

    @property
    def functions(self) -> tuple[Callable, ...]:
        """Every way in which it is made here."""
        return (self.function, *self.others)


@dataclass(frozen=True)
class Exercise:
    """A function of the book, the inputs it is graded on, and how it is usually got wrong."""

    function: Callable  # the book's own, which is right
    chapter: int
    cases: tuple[Case, ...]
    mistakes: tuple[Mistake, ...]
    gradients: tuple[str, ...] = ()  # the arguments whose gradient is compared
    tolerance: float = 1e-9
    results: tuple[str, ...] = ("",)  # what it returns, by name where it is several values
    by_value: tuple[str, ...] = ()  # those of which type and precision do not count


# Inputs


def case(function: Callable, kind: str, *arguments, rounding: bool = False) -> Case:
    """A case whose arguments have the names that the function gives them."""
    return Case(kind, dict(zip(inspect.signature(function).parameters, arguments)), rounding)


def numbers(*rows) -> Tensor:
    """Rows of numbers as float64, so that nothing but a mistake makes a difference."""
    return torch.tensor(rows, dtype=torch.float64)


def normal(seed: int, *shape: int) -> Tensor:
    """Random numbers of a shape, always the same for a seed; float64, one digit to read."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).round(decimals=1)


def spans(T: int, *ends: tuple[int, int]) -> Tensor:
    """A mask (B, T), True in each row from its first end up to and without its second."""
    columns = torch.arange(T)
    return torch.stack([(first <= columns) & (columns < last) for first, last in ends])


class Bigram(nn.Module):
    """The smallest language model: a row of logits for each token that may come before."""

    def __init__(self, seed: int, vocab_size: int = 3):
        super().__init__()
        self.table = nn.Parameter(normal(seed, vocab_size, vocab_size))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]  # (B, T, V)


# What several mistakes share


def rows_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of the rows' means: a token of a short row counts for more."""
    return ((values * mask).sum(1) / mask.sum(1)).mean()


def whole_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The sum where the mask is True, divided by the number of all columns."""
    return (values * mask).sum() / mask.numel()


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """The sum where the mask is True."""
    return (values * mask).sum()

# Chapter 2

SPELL = CharTokenizer()
USER, ASSISTANT, END, PAD = SPELL.user, SPELL.assistant, SPELL.end, SPELL.pad
ASK, REPLY = [USER, *SPELL.encode("hi")], [ASSISTANT, *SPELL.encode("ay"), END]


def conversation(kind: str, *tokens: int) -> Case:
    """Tokens in chat format."""
    return case(build_labels, kind, list(tokens), SPELL)


def without(token: str) -> Callable:
    """The labels, but this token of the tokenizer is not graded."""
    return lambda tokens, tokenizer: [
        IGNORE if label == getattr(tokenizer, token) else label
        for label in build_labels(tokens, tokenizer)
    ]


def also(token: str) -> Callable:
    """The labels, and this token of the tokenizer is graded, too."""
    return lambda tokens, tokenizer: [
        t if t == getattr(tokenizer, token) else label
        for t, label in zip(tokens, build_labels(tokens, tokenizer))
    ]


def inverted(tokens: list[int], tokenizer: CharTokenizer) -> list[int]:
    labels = build_labels(tokens, tokenizer)
    return [t if label == IGNORE else IGNORE for t, label in zip(tokens, labels)]


def never_ending(tokens: list[int], tokenizer: CharTokenizer) -> list[int]:
    first = tokens.index(tokenizer.assistant) if tokenizer.assistant in tokens else len(tokens)
    return [t if i > first else IGNORE for i, t in enumerate(tokens)]


def first_answer(tokens: list[int], tokenizer: CharTokenizer) -> list[int]:
    stop = tokens.index(tokenizer.end) + 1 if tokenizer.end in tokens else len(tokens)
    return build_labels(tokens[:stop], tokenizer) + [IGNORE] * (len(tokens) - stop)


def last_answer(tokens: list[int], tokenizer: CharTokenizer) -> list[int]:
    turns = [i for i, t in enumerate(tokens) if t == tokenizer.assistant]
    start = turns[-1] if turns else len(tokens)
    return [IGNORE] * start + build_labels(tokens[start:], tokenizer)


def ignoring_by(value: int | None) -> Callable:
    """The labels, with this value instead of IGNORE."""
    return lambda tokens, tokenizer: [
        value if label == IGNORE else label for label in build_labels(tokens, tokenizer)
    ]


BUILD_LABELS = Exercise(
    build_labels, 2,
    cases=(
        conversation("", *ASK, *REPLY),
        conversation("padding", *ASK, *REPLY, PAD, PAD),
        conversation("a second turn", *ASK, *REPLY, *ASK, *REPLY),
        conversation("an empty answer", *ASK, ASSISTANT, END),
        conversation("an answer that breaks off", *ASK, *REPLY[:-1]),
        conversation("text without an answer", *SPELL.encode("to be")),
    ),
    mistakes=(
        Mistake(
            "the mask is missing", "every token is its own label, the user's too",
            lambda tokens, tokenizer: list(tokens),
        ),
        Mistake(
            "the mask the wrong way round",
            "what is read is graded, and what is to be written is not", inverted,
        ),
        Mistake(
            "the end is not graded", "without a label for <|end|> the model never stops",
            without("end"),
        ),
        Mistake(
            "the role is graded", "<|assistant|> is written by us and has no label",
            also("assistant"),
        ),
        Mistake(
            "grading never stops", "after <|end|> it is the user's turn again, or padding",
            never_ending,
        ),
        Mistake("only the first answer", "every answer is graded", first_answer),
        Mistake("only the last answer", "every answer is graded", last_answer),
        Mistake(
            "off by one", "labels stand at their own token: it is the loss that shifts",
            lambda tokens, tokenizer: [*build_labels(tokens, tokenizer)[1:], IGNORE],
        ),
        Mistake(
            "0 for what is not graded", "0 is a token, the line break; IGNORE is -100",
            ignoring_by(0),
        ),
        Mistake(
            "-1 for what is not graded", "the loss skips IGNORE, and that is -100",
            ignoring_by(-1),
        ),
        Mistake(
            "None for what is not graded", "labels become a tensor: use IGNORE, which is -100",
            ignoring_by(None),
        ),
    ),
)  # fmt: skip


def surprises(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The surprise at each label as if all were graded, and which are: (B, T - 1) both."""
    graded = labels[:, 1:] != IGNORE
    return -token_logprobs(logits, labels.clamp(min=0)), graded


def sft_average(average: Callable) -> Callable:
    """The SFT loss with another average: average(surprise, graded)."""
    return lambda logits, labels, n_graded=None: average(*surprises(logits, labels))


def own_token(logits: Tensor, labels: Tensor, n_graded: int | None = None) -> Tensor:
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / (n_graded or (labels != IGNORE).sum())


def own_token_of_later(
    logits: Tensor, labels: Tensor, n_graded: int | None = None
) -> Tensor:
    """Divide by the right number, at least."""
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / (n_graded or (labels[:, 1:] != IGNORE).sum())


def own_token_mean(logits: Tensor, labels: Tensor, n_graded: int | None = None) -> Tensor:
    """The line that everybody writes first; n_graded is left out, too."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())


def token_before(logits: Tensor, labels: Tensor, n_graded: int | None = None) -> Tensor:
    logits, labels = logits[:, 1:], labels[:, :-1]
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
    return loss / (n_graded or (labels != IGNORE).sum())


def sft_of(read: Callable) -> Callable:
    """The SFT loss of the log-probabilities read(logits), (B, T - 1, V)."""
    return lambda logits, labels, n_graded=None: F.nll_loss(
        read(logits).flatten(0, 1), labels[:, 1:].flatten(), reduction="sum"
    ) / (n_graded or (labels[:, 1:] != IGNORE).sum())


def unflattened(logits: Tensor, labels: Tensor, n_graded: int | None = None) -> Tensor:
    """PyTorch's cross-entropy takes the second axis for the tokens."""
    loss = F.cross_entropy(logits[:, :-1], labels[:, 1:], reduction="sum")
    return loss / (n_graded or (labels[:, 1:] != IGNORE).sum())


def unflattened_mean(logits: Tensor, labels: Tensor, n_graded: int | None = None) -> Tensor:
    """And n_graded is left out, too."""
    return F.cross_entropy(logits[:, :-1], labels[:, 1:])


SFT_LABELS = torch.tensor([[IGNORE, 1, 0, 1], [IGNORE, IGNORE, 1, IGNORE]])
SFT_LOSS = Exercise(
    sft_loss, 2, gradients=("logits",),
    cases=(
        case(sft_loss, "", numbers([[0, 1], [2, 0], [0, 0]]), torch.tensor([[IGNORE, 1, 1]])),
        case(
            sft_loss, "padding", numbers([[0, 1], [2, 0], [3, 0]]),
            torch.tensor([[IGNORE, 1, IGNORE]]),
        ),
        case(
            sft_loss, "a first token that is graded", numbers([[0, 1], [2, 0], [0, 0]]),
            torch.tensor([[0, 1, 1]]),
        ),
        case(sft_loss, "answers of unequal length", normal(0, 2, 4, 2), SFT_LABELS),
        case(sft_loss, "a given n_graded", normal(1, 1, 4, 2), SFT_LABELS[:1], 7),
        case(
            sft_loss, "extreme logits", numbers([[2000, 0], [0, -2000], [0, 0]]),
            torch.tensor([[IGNORE, 1, 1]]), rounding=True,
        ),
        case(
            sft_loss, "no graded token", numbers([[0, 1], [2, 0]]), torch.full((1, 2), IGNORE)
        ),
        case(
            sft_loss, "no graded token but the first, which nothing precedes",
            numbers([[0, 1], [2, 0]]), torch.tensor([[1, IGNORE]]),
        ),
    ),
    mistakes=(
        Mistake(
            "off by one", "each position is graded by its own token, not by the one after it",
            own_token, (own_token_of_later, own_token_mean),
        ),
        Mistake(
            "shifted the wrong way", "each position is graded by the token before it",
            token_before,
        ),
        Mistake(
            "the sum instead of the mean", "divide by the number of graded tokens",
            sft_average(masked_sum),
        ),
        Mistake(
            "the mean over all tokens", "what is not graded does not count in the mean",
            sft_average(whole_mean),
        ),
        Mistake(
            "the mean of the rows' means", "a token of a short answer counts for more",
            sft_average(rows_mean),
        ),
        Mistake(
            "the mask is ignored", "labels of -100 are graded as if they were token 0",
            sft_average(lambda surprise, graded: surprise.mean()),
        ),
        Mistake(
            "the first token is counted", "nothing stands before it, so it is not graded",
            lambda logits, labels, n_graded=None: sft_loss(
                logits, labels, n_graded or (labels != IGNORE).sum()
            ),
        ),
        Mistake(
            "n_graded is ignored", "the losses of a batch's parts have to add up",
            lambda logits, labels, n_graded=None: sft_loss(logits, labels),
        ),
        Mistake(
            "the wrong sign", "a surprise is minus the log-probability",
            lambda *arguments: -sft_loss(*arguments),
        ),
        Mistake(
            "the logarithm of a rounded 0", "softmax rounds, so use log_softmax",
            sft_of(lambda logits: logits.softmax(-1).log()[:, :-1]),
        ),
        Mistake(
            "softmax over the wrong axis",
            "the probabilities of the V tokens add up to 1, and V is the last axis",
            sft_of(lambda logits: logits.log_softmax(1)[:, :-1]),
            (
                sft_of(lambda logits: logits[:, :-1].log_softmax(1)),
                sft_of(lambda logits: logits[:, :-1].log_softmax(0)),
                unflattened, unflattened_mean,
            ),
        ),
    ),
)  # fmt: skip


# Chapter 3


def of_gap(loss: Callable) -> Callable:
    """A Bradley-Terry loss from the gap of the scores, with the centring as it should be."""
    return lambda chosen, rejected, centring=0.0: (
        loss(chosen - rejected) + centring * (chosen + rejected).square().mean()
    )


def centred(term: Callable) -> Callable:
    """The Bradley-Terry loss as it should be, but for the centring: c times this term."""
    return lambda chosen, rejected, centring=0.0: (
        bradley_terry_loss(chosen, rejected) + centring * term(chosen, rejected)
    )


def all_pairs(chosen: Tensor, rejected: Tensor, centring: float = 0.0) -> Tensor:
    """Each chosen answer against each rejected one."""
    loss = -F.logsigmoid(chosen[:, None] - rejected).mean()
    return loss + centring * (chosen + rejected).square().mean()


# The small numbers that are put below a probability, so that it has a logarithm
FLOORS = (*(10.0**-k for k in (*range(3, 17), 20, 30)), torch.finfo(torch.float32).eps,
          torch.finfo(torch.float32).tiny, torch.finfo(torch.float64).eps)  # fmt: skip


def clamped(floor: float, upper: float | None = None) -> Callable:
    """The surprise, but never more than the floor's."""
    return of_gap(lambda gap: -torch.sigmoid(gap).clamp(floor, upper).log().mean())


def raised(floor: float) -> Callable:
    """The surprise at a probability to which a small number is added."""
    return of_gap(lambda gap: -(torch.sigmoid(gap) + floor).log().mean())


BRADLEY_TERRY = Exercise(
    bradley_terry_loss, 3, gradients=("chosen", "rejected"),
    cases=(
        case(bradley_terry_loss, "", numbers(1), numbers(0)),
        case(bradley_terry_loss, "several pairs", numbers(2, -1, 0.5), numbers(0.5, 1, 0.5)),
        case(bradley_terry_loss, "centring", numbers(1, 2), numbers(0.5, -3), 0.1),
        case(bradley_terry_loss, "extreme scores", numbers(-1000, 1000), numbers(1000, 0),
             rounding=True),
        case(bradley_terry_loss, "a score that is NaN", numbers(math.nan), numbers(0)),
        case(bradley_terry_loss, "a rejected score that is NaN", numbers(0), numbers(math.nan)),
        case(bradley_terry_loss, "a score that is infinite", numbers(math.inf), numbers(0)),
        case(bradley_terry_loss, "a rejected score that is infinite", numbers(0, 1),
             numbers(0, -math.inf)),
    ),
    mistakes=(
        Mistake(
            "chosen and rejected the wrong way round", "the chosen answer's score is to rise",
            lambda chosen, rejected, *rest: bradley_terry_loss(rejected, chosen, *rest),
        ),
        Mistake(
            "the sum instead of the mean", "take the mean over the pairs",
            lambda chosen, rejected, centring=0.0: (
                len(chosen) * bradley_terry_loss(chosen, rejected, centring)
            ),
        ),
        Mistake(
            "the wrong sign", "a surprise is minus the logarithm",
            of_gap(lambda gap: F.logsigmoid(gap).mean()),
        ),
        Mistake(
            "the logarithm of a rounded 0", "sigmoid rounds, so use logsigmoid",
            of_gap(lambda gap: -torch.sigmoid(gap).log().mean()),
        ),
        Mistake(
            "no logarithm", "the surprise is -log p, and not 1 - p",
            of_gap(lambda gap: (1 - torch.sigmoid(gap)).mean()),
        ),
        Mistake(
            "the mean before the logarithm", "first each pair's surprise, then the mean",
            of_gap(lambda gap: -F.logsigmoid(gap.mean())),
        ),
        Mistake(
            "a pointwise loss", "each answer is judged by itself, not the gap of the two",
            lambda chosen, rejected, centring=0.0: (
                -(F.logsigmoid(chosen) + F.logsigmoid(-rejected)).mean()
                + centring * (chosen + rejected).square().mean()
            ),
        ),
        Mistake(
            "centring is ignored", "add c times the mean of (chosen + rejected) squared",
            lambda chosen, rejected, centring=0.0: bradley_terry_loss(chosen, rejected),
        ),
        Mistake(
            "centring of the gap", "it is the sum of the two scores that is held near 0",
            centred(lambda chosen, rejected: (chosen - rejected).square().mean()),
        ),
        Mistake(
            "the centring's sum", "of c (chosen + rejected) squared, too, it is the mean",
            centred(lambda chosen, rejected: (chosen + rejected).square().sum()),
        ),
        Mistake(
            "half the centring", "it is c times the mean of the squares, without a half",
            centred(lambda chosen, rejected: (chosen + rejected).square().mean() / 2),
        ),
        Mistake(
            "the centring is taken off", "what lies far from 0 costs: add it",
            centred(lambda chosen, rejected: -(chosen + rejected).square().mean()),
        ),
        Mistake(
            "each score is centred by itself",
            "it is the sum of the two that is squared, and not each of them",
            centred(lambda chosen, rejected: (chosen.square() + rejected.square()).mean()),
        ),
        Mistake(
            "the centring's mean is squared", "first square, then take the mean",
            centred(lambda chosen, rejected: (chosen + rejected).mean().square()),
        ),
        Mistake(
            "the sigmoid is clamped",
            "a lost pair has then no gradient, and its surprise is cut: use logsigmoid",
            clamped(1e-12),
            tuple(
                make(floor)
                for make in (clamped, raised, lambda floor: clamped(floor, 1 - floor))
                for floor in FLOORS
            ),
        ),
        Mistake(
            "all against all", "compare the two answers of each pair", all_pairs,
            (
                lambda chosen, rejected, centring=0.0: all_pairs(chosen, rejected)
                + centring * (chosen[:, None] + rejected).square().mean(),
            ),
        ),
        Mistake(
            "half the gradient", "the rejected score is detached; both have to move",
            lambda chosen, rejected, *rest: bradley_terry_loss(
                chosen, rejected.detach(), *rest
            ),
        ),
    ),
)  # fmt: skip


def at_column(column: Callable) -> Callable:
    """Each row's value at the column that column(mask) says, kept inside the row."""
    return lambda values, mask: values.gather(
        1, column(mask).clamp(0, mask.size(1) - 1)[:, None]
    ).squeeze(1)


def last_column(mask: Tensor) -> Tensor:
    """Where each row's mask is True for the last time: (B,)."""
    return last_of(torch.arange(mask.size(1)).expand_as(mask), mask)


LAST_OF = Exercise(
    last_of, 3, gradients=("values",),
    cases=(
        case(last_of, "", numbers([1, 2, 4]), spans(3, (0, 3))),
        case(last_of, "padding", numbers([1, 2, 4, 8]), spans(4, (0, 2))),
        case(last_of, "a prompt before the answer", numbers([1, 2, 4]), spans(3, (1, 3))),
        case(last_of, "answers of one token", numbers([1, 2, 4]), spans(3, (1, 2))),
        case(last_of, "rows of unequal length", normal(0, 2, 3),
             spans(3, (0, 2), (1, 3))),
        case(last_of, "a row without an answer", numbers([1, 2]), spans(2, (0, 0))),
        case(last_of, "a row without an answer beside one with it", numbers([1, 2], [4, 8]),
             spans(2, (0, 1), (0, 0))),
    ),
    mistakes=(
        Mistake(
            "the last column", "a short row is scored by its padding",
            lambda values, mask: values[:, -1],
        ),
        Mistake(
            "off by one", "it is the token before the last",
            at_column(lambda mask: last_column(mask) - 1),
        ),
        Mistake(
            "one too far", "it is the token after the last",
            at_column(lambda mask: last_column(mask) + 1),
        ),
        Mistake(
            "the first instead of the last", "the first token has read nothing of the answer",
            at_column(lambda mask: mask.to(torch.int8).argmax(1)),
        ),
        Mistake(
            "the prompt is forgotten", "the answer's length is no column: the prompt precedes",
            at_column(lambda mask: mask.sum(1) - 1),
        ),
        Mistake(
            "the mean over the answer", "read one token, the last",
            lambda values, mask: (values * mask).sum(1) / mask.sum(1),
        ),
        Mistake(
            "the sum over the answer", "read one token, the last",
            lambda values, mask: (values * mask).sum(1),
        ),
        Mistake(
            "the largest", "read the last token, whatever the others say",
            lambda values, mask: values.masked_fill(~mask, -math.inf).amax(1),
        ),
        Mistake(
            "one column for all rows", "each row ends where its own mask does",
            at_column(lambda mask: last_column(mask).max().expand(len(mask))),
        ),
        Mistake(
            "the mask multiplies", "the last column of values * mask is 0 in a short row",
            lambda values, mask: (values * mask)[:, -1],
        ),
    ),
)  # fmt: skip


# Chapter 4


def one_kind(kind: str, formula: Callable) -> Callable:
    """The KL estimates, but this kind by a formula of d = log policy - log reference."""
    return lambda logprobs, reference, asked="k1": (
        formula(logprobs - reference)
        if asked == kind
        else kl_estimate(logprobs, reference, asked)
    )


POLICY, REFERENCE = numbers([-1, -2]), numbers([-2, -1.5])
NEAR = torch.full((1, 4), -2.0), -2 + torch.tensor([[1e-3, -2e-3, 3e-3, -5e-3]])  # float32
KL_ESTIMATE = Exercise(
    kl_estimate, 4, gradients=("logprobs",), tolerance=5e-9,  # of single precision near 0
    cases=(
        case(kl_estimate, "", POLICY, REFERENCE),
        case(kl_estimate, "k1", POLICY, REFERENCE, "k1"),
        case(kl_estimate, "k2", POLICY, REFERENCE, "k2"),
        case(kl_estimate, "k3", POLICY, REFERENCE, "k3"),
        case(kl_estimate, "k3 of two that are close", *NEAR, "k3", rounding=True),
        case(kl_estimate, "k3 of two far apart", numbers([-1, -60]), numbers([-60, -40]), "k3"),
        case(kl_estimate, "another kind", POLICY, REFERENCE, "k4"),
    ),
    mistakes=(
        Mistake(
            "the two the wrong way round", "d is the policy's less the reference's",
            lambda logprobs, reference, *kind: kl_estimate(reference, logprobs, *kind),
        ),
        Mistake("k1 has the wrong sign", "k1 is d", one_kind("k1", lambda d: -d)),
        Mistake("k1 without a sign", "it may be below 0: a size would be too large on average",
                one_kind("k1", torch.abs)),
        Mistake("k2 without the half", "k2 is d squared over 2",
                one_kind("k2", torch.square)),
        Mistake("k3 has the wrong sign", "the exponent is -d, the reference over the policy",
                one_kind("k3", lambda d: torch.expm1(d) - d)),
        Mistake("k3 with -d at the end", "it is + d there: only so is it never below 0",
                one_kind("k3", lambda d: torch.expm1(-d) - d)),
        Mistake("k3 without the -1", "k3 is 0 where the two agree",
                one_kind("k3", lambda d: (-d).exp() + d)),
        Mistake("k3 loses its digits", "exp(-d) - 1 rounds where d is near 0, so use expm1",
                one_kind("k3", lambda d: (-d).exp() - 1 + d)),
        Mistake(
            "the kind is ignored", "k1, k2 and k3 are three formulas",
            lambda logprobs, reference, kind="k1": kl_estimate(logprobs, reference),
        ),
        Mistake(
            "the mean instead of each token's", "the KL is charged token by token",
            lambda *arguments: kl_estimate(*arguments).mean(),
        ),
        Mistake(
            "the sum instead of each token's", "the KL is charged token by token",
            lambda *arguments: kl_estimate(*arguments).sum(-1),
        ),
    ),
)  # fmt: skip


def other_gae(
    surprise=lambda reward, gamma, after, value: reward + gamma * after - value,
    decay=lambda gamma, lam: gamma * lam,
    start=lambda values: torch.zeros_like(values[:, 0]),
    order=reversed, mask_values=True, mask_inside=True, mask_returns=True,
) -> Callable:  # fmt: skip
    """Generalised advantage estimates with one part of the loop exchanged."""

    def wrong(rewards, values, actions, gamma=1.0, lam=0.95):
        values = values * actions if mask_values else values
        advantages = torch.zeros_like(values)
        next_value, running = start(values), torch.zeros_like(values[:, 0])
        for t in order(range(values.size(1))):
            found = surprise(rewards[:, t], gamma, next_value, values[:, t])
            running = found + decay(gamma, lam) * running
            running = running * actions[:, t] if mask_inside else running
            next_value = values[:, t]
            advantages[:, t] = running * actions[:, t]
        return advantages, advantages + (values * actions if mask_returns else values)

    return wrong


def generous_gae(rewards, values, actions, gamma=1.0, lam=0.95):
    """The value of the last action is expected once more after it."""
    last = spans(values.size(1), *((i, i + 1) for i in last_column(actions).tolist()))
    return gae(rewards + gamma * values * last, values, actions, gamma, lam)


def forward_gae(rewards, values, actions, gamma=1.0, lam=0.95):
    """Add up the surprises from the first action on."""
    surprise, _ = gae(rewards, values, actions, gamma, 0.0)
    flipped, _ = gae(surprise.flip(1), torch.zeros_like(values), actions.flip(1), gamma, lam)
    advantages = flipped.flip(1)
    return advantages, advantages + values * actions


def reward_to_go(rewards, values, actions, gamma=1.0, lam=0.95):
    """Right advantages, and the discounted rewards still to come for the returns."""
    returns, _ = gae(rewards, torch.zeros_like(values), actions, gamma, 1.0)
    return gae(rewards, values, actions, gamma, lam)[0], returns


def changed_returns(returns: Callable) -> Callable:
    """Right advantages, and returns(advantages, values, actions)."""

    def wrong(rewards, values, actions, *rest):
        advantages, _ = gae(rewards, values, actions, *rest)
        return advantages, returns(advantages, values * actions, actions)

    return wrong


GAE_INPUT = numbers([0, 0, 1]), numbers([0.5, 0.25, 0.5])
RAGGED = spans(3, (0, 3), (1, 2))
GAE = Exercise(
    gae, 4, results=("advantages", "returns"),
    cases=(
        case(gae, "", *GAE_INPUT, spans(3, (0, 3))),
        case(gae, "gamma and lambda", *GAE_INPUT, spans(3, (0, 3)), 0.9, 0.5),
        case(gae, "padding", numbers([1, 2, 4]), numbers([0.5, 1, 3]), spans(3, (0, 2))),
        case(gae, "a prompt before the answer", numbers([4, 0, 1]), numbers([3, 0.5, 1]),
             spans(3, (1, 3))),
        case(gae, "answers of one token", numbers([0, 1]), numbers([0, 0.25]),
             spans(2, (1, 2))),
        case(gae, "rows of unequal length", normal(0, 2, 3), normal(1, 2, 3), RAGGED,
             0.8, 0.7),
    ),
    mistakes=(
        Mistake(
            "off by one", "the surprise takes V_t where V_{t+1} belongs",
            other_gae(lambda reward, gamma, after, value: reward + gamma * value - value),
        ),
        Mistake(
            "something after the end", "after the last action the next value is 0",
            generous_gae,
            (
                other_gae(start=lambda values: values[:, -1]),
                other_gae(start=lambda values: values[:, -1], mask_values=False),
                other_gae(
                    start=lambda values: values[:, -1], mask_values=False, mask_returns=False
                ),
            ),
        ),
        Mistake(
            "the mask is ignored", "what stands in prompt and padding flows into the answer",
            lambda r, v, m, *rest: gae(r, v, torch.ones_like(m), *rest),
        ),
        Mistake(
            "only the results are masked",
            "what stands in the padding flows into the answer: mask inside the loop, too",
            other_gae(mask_values=False, mask_inside=False),
            (
                other_gae(mask_inside=False),
                other_gae(mask_values=False, mask_inside=False, mask_returns=False),
            ),
        ),
        Mistake(
            "the padding's value leaks in",
            "the last action has no V_{t+1}: mask the values before the loop",
            other_gae(mask_values=False), (other_gae(mask_values=False, mask_returns=False),),
        ),
        Mistake(
            "lambda is ignored", "each further surprise is discounted by lambda, too",
            lambda r, v, m, gamma=1.0, lam=0.95: gae(r, v, m, gamma, 1.0),
        ),
        Mistake(
            "gamma is ignored", "gamma stands in the surprise, and in the sum",
            lambda r, v, m, gamma=1.0, lam=0.95: gae(r, v, m, 1.0, lam),
        ),
        Mistake(
            "gamma is missing in the surprise", "V_{t+1} is discounted by gamma",
            other_gae(lambda reward, gamma, after, value: reward + after - value),
        ),
        Mistake(
            "gamma is missing in the sum", "A_{t+1} is discounted by gamma times lambda",
            other_gae(decay=lambda gamma, lam: lam),
        ),
        Mistake(
            "gamma and lambda the wrong way round", "the next value is discounted by gamma",
            lambda r, v, m, gamma=1.0, lam=0.95: gae(r, v, m, lam, gamma),
        ),
        Mistake(
            "one surprise alone", "the surprises that follow belong to the advantage",
            lambda r, v, m, gamma=1.0, lam=0.95: gae(r, v, m, gamma, 0.0),
        ),
        Mistake(
            "forwards in time", "an advantage looks at what comes after: go backwards",
            forward_gae, (other_gae(order=iter),),
        ),
        Mistake(
            "the sign of a value", "a surprise is r_t + gamma V_{t+1} - V_t",
            other_gae(lambda reward, gamma, after, value: reward + gamma * after + value),
            (
                other_gae(lambda reward, gamma, after, value: reward - gamma * after + value),
                other_gae(lambda reward, gamma, after, value: reward - gamma * after - value),
            ),
        ),
        Mistake(
            "the two results swapped", "first the advantages, then the returns",
            lambda *arguments: gae(*arguments)[::-1],
        ),
        Mistake(
            "returns without the values", "a return is the advantage plus the value",
            changed_returns(lambda advantages, values, actions: advantages),
        ),
        Mistake(
            "returns of whitened advantages", "whiten later: returns keep the reward's unit",
            changed_returns(
                lambda advantages, values, actions: whiten(advantages, actions) + values
            ),
        ),
        Mistake(
            "returns less the values", "the return is A + V, and not A - V",
            changed_returns(lambda advantages, values, actions: advantages - values),
        ),
        Mistake(
            "returns of the rewards alone",
            "the return is A + V, and not the sum of the rewards still to come", reward_to_go,
            (
                lambda rewards, values, actions, *rest: (
                    gae(rewards, values, actions, *rest)[0],
                    gae(rewards, 0 * values, actions, 1.0, 1.0)[0],
                ),
            ),
        ),
        Mistake(
            "returns that are not masked", "both results are 0 where actions is False",
            lambda rewards, values, actions, *rest: (
                gae(rewards, values, actions, *rest)[0],
                gae(rewards, values, actions, *rest)[0] + values,
            ),
        ),
    ),
)  # fmt: skip


def rescaled(values, mask, shift_mean=True, *, less=0, power=0.5):
    """Whitening that divides by n - less, and by the variance to some power."""
    mean, n = masked_mean(values, mask), mask.sum()
    variance = ((values - mean) * mask).square().sum() / (n - less)
    white = (values - mean) / (variance + 1e-8) ** power
    return (white if shift_mean else white + mean) * mask


def white_rows(values, mask, *shift):
    """Each row by itself."""
    rows = zip(values.split(1), mask.split(1))
    return torch.cat([whiten(row, chosen, *shift) for row, chosen in rows])


def unmasked_white(values, mask, shift_mean=True):
    """Mean and variance over everything, padding included; only the result is masked."""
    everything = torch.ones_like(mask)
    return whiten(values, everything, shift_mean) * mask


def spilt_white(values, mask, shift_mean=True):
    """Right where the mask is True, and not 0 elsewhere."""
    mean = masked_mean(values, mask)
    deviation = (masked_mean((values - mean).square(), mask) + 1e-8).sqrt()
    return (values - mean) / deviation + (0 if shift_mean else mean)


def scaled_mean(values, mask, shift_mean=True):
    """Without the shift, the mean is divided by the deviation along with the rest."""
    mean = masked_mean(values, mask)
    deviation = (masked_mean((values - mean).square(), mask) + 1e-8).sqrt()
    return whiten(values, mask) if shift_mean else values / deviation * mask


WHITEN = Exercise(
    whiten, 4, tolerance=1e-5,  # so that any small number inside the root is right
    cases=(
        case(whiten, "", numbers([1, 3, 8]), spans(3, (0, 3))),
        case(whiten, "padding", numbers([1, 4, 9]), spans(3, (0, 2))),
        case(whiten, "shift_mean=False", numbers([1, 3, 8]), spans(3, (0, 3)), False),
        case(whiten, "one value alone", numbers([2, 5]), spans(2, (0, 1))),
        case(whiten, "rows of unequal length", 3 * normal(0, 2, 3) + 2, RAGGED),
        case(whiten, "rows of unequal length", 3 * normal(1, 2, 3) - 1, RAGGED, False),
        case(whiten, "a mask that is False everywhere", numbers([1, 2]), spans(2, (0, 0))),
    ),
    mistakes=(
        Mistake(
            "n - 1 instead of n", "divide by n: one value alone would be divided by 0",
            lambda *arguments: rescaled(*arguments, less=1),
        ),
        Mistake(
            "the variance instead of the deviation", "divide by the variance's square root",
            lambda *arguments: rescaled(*arguments, power=1.0),
        ),
        Mistake(
            "not scaled", "the variance has to become 1",
            lambda *arguments: rescaled(*arguments, power=0.0),
        ),
        Mistake(
            "the mask is ignored", "mean and variance are those of the masked values alone",
            unmasked_white,
        ),
        Mistake("padding is not 0", "where the mask is False the result is 0", spilt_white),
        Mistake(
            "each row by itself", "one mean and one variance for the whole batch", white_rows
        ),
        Mistake(
            "shift_mean is ignored", "without shift_mean the mean is added again",
            lambda values, mask, shift_mean=True: whiten(values, mask),
        ),
        Mistake(
            "the mean is scaled, too", "without shift_mean the mean stays what it was",
            scaled_mean,
        ),
        Mistake(
            "the mean is added again", "only without shift_mean does the mean stay",
            lambda values, mask, shift_mean=True: whiten(values, mask, False),
        ),
        Mistake(
            "shift_mean the wrong way round", "True takes the mean away, False keeps it",
            lambda values, mask, shift_mean=True: whiten(values, mask, not shift_mean),
        ),
    ),
)  # fmt: skip


def ratio_of(logprobs: Tensor, old_logprobs: Tensor) -> Tensor:
    """The new policy's probability over the old one's."""
    return (logprobs - old_logprobs).exp()


def averaged_wrongly(other: Callable) -> tuple[Mistake, ...]:
    """Three ways not to take the mean over the actions; other(average=...) makes the loss."""
    return (
        Mistake(
            "the sum instead of the mean", "take the mean over the actions",
            other(average=masked_sum),
        ),
        Mistake(
            "the mean over all columns", "prompt and padding do not count in the mean",
            other(average=whole_mean),
        ),
        Mistake(
            "the mean of the rows' means", "a token of a short answer counts for more",
            other(average=rows_mean),
        ),
    )  # fmt: skip


def other_policy_loss(
    ratio=ratio_of, choose=torch.max, average=masked_mean, sign=-1, room=None,
    held=lambda free, clipped, rho, eps: clipped > free, count=masked_mean,
) -> Callable:  # fmt: skip
    """PPO's clipped loss with one of its parts exchanged."""

    def wrong(logprobs, old_logprobs, advantages, actions, clip_eps=0.2):
        rho, eps = ratio(logprobs, old_logprobs), room or clip_eps
        free = sign * rho * advantages
        clipped = sign * rho.clamp(1 - eps, 1 + eps) * advantages
        share = count(held(free, clipped, rho, eps).to(rho.dtype), actions)
        return average(choose(free, clipped), actions), share

    return wrong


def swapped_share(*arguments):
    """The share first, as Python's number."""
    loss, share = policy_loss(*arguments)
    return share.item(), loss


OLD = normal(1, 2, 3) - 2
ONE = spans(1, (0, 1))
PPO_INPUT = OLD + 0.4 * normal(0, 2, 3), OLD, normal(2, 2, 3)
POLICY_LOSS = Exercise(
    policy_loss, 4, gradients=("logprobs",), results=("loss", "share"), by_value=("share",),
    cases=(
        case(policy_loss, "", numbers([0.1]), numbers([0]), numbers([1]), ONE),
        case(policy_loss, "a good token far more likely", numbers([0.5]), numbers([0]),
             numbers([1]), ONE),
        case(policy_loss, "a bad token far more likely", numbers([0.5]), numbers([0]),
             numbers([-1]), ONE),
        case(policy_loss, "a good token far less likely", numbers([-0.5]), numbers([0]),
             numbers([1]), ONE),
        case(policy_loss, "padding", numbers([0.1, 2]), numbers([0, 0]), numbers([1, 5]),
             spans(2, (0, 1))),
        case(policy_loss, "rows of unequal length", *PPO_INPUT, RAGGED),
        case(policy_loss, "clip_eps", *PPO_INPUT, RAGGED, 0.05),
        case(policy_loss, "actions that are False everywhere", numbers([0.1]), numbers([0]),
             numbers([1]), ~ONE),
    ),
    mistakes=(
        Mistake(
            "no clip", "a ratio outside the range goes on being paid",
            other_policy_loss(
                choose=lambda free, clipped: free,
                held=lambda free, clipped, rho, eps: torch.zeros_like(rho),
            ),
        ),
        Mistake(
            "the smaller loss instead of the larger", "of two losses the maximum counts",
            other_policy_loss(choose=torch.min),
        ),
        Mistake(
            "the clipped loss alone", "a bad token that became likely has to count in full",
            other_policy_loss(choose=lambda free, clipped: clipped),
        ),
        Mistake(
            "the wrong sign", "a loss falls where the advantage is gained: it is minus",
            other_policy_loss(sign=1),
        ),
        Mistake(
            "the ratio upside down", "it is the new probability over the old one",
            other_policy_loss(ratio=lambda new, old: (old - new).exp()),
        ),
        Mistake(
            "no exponential", "the difference of logarithms is not yet the ratio",
            other_policy_loss(ratio=lambda new, old: new - old),
        ),
        *averaged_wrongly(other_policy_loss),
        Mistake(
            "the mask is ignored", "prompt and padding are no actions",
            lambda new, old, advantages, actions, *eps: policy_loss(
                new, old, advantages, torch.ones_like(actions), *eps
            ),
        ),
        Mistake(
            "clip_eps is ignored", "the room around 1 is an argument",
            other_policy_loss(room=0.2),
        ),
        Mistake(
            "the share of ratios outside",
            "the clip holds where it makes the loss larger, not wherever the ratio is far",
            other_policy_loss(held=lambda free, clipped, rho, eps: (rho - 1).abs() > eps),
        ),
        Mistake(
            "the share with >=", "where the two sides are the same the clip holds nothing",
            other_policy_loss(held=lambda free, clipped, rho, eps: clipped >= free),
        ),
        Mistake(
            "a number instead of the share", "divide it by the number of actions",
            other_policy_loss(count=masked_sum),
        ),
        Mistake(
            "the share of all columns", "prompt and padding do not count in the share",
            other_policy_loss(count=whole_mean),
            (other_policy_loss(count=lambda held, actions: held.mean()),),
        ),
        Mistake(
            "the two results swapped", "first the loss, then the share",
            lambda *arguments: policy_loss(*arguments)[::-1],
            (swapped_share,),
        ),
    ),
)  # fmt: skip


def other_value_loss(
    size=torch.square, choose=torch.max, average=masked_mean, half=0.5, room=None
) -> Callable:
    """The clipped value loss with one of its parts exchanged."""

    def wrong(values, old_values, returns, actions, clip=0.2):
        limit = clip if room is None else room
        near = old_values + (values - old_values).clamp(-limit, limit)
        free, held = size(values - returns), size(near - returns)
        return half * average(choose(free, held) if clip else free, actions)

    return wrong


def near_zero(values, old_values, returns, actions, clip=0.2):
    """The value is kept near 0 instead of near the old value."""
    return value_loss(values, torch.zeros_like(values), returns, actions, clip)


VALUES = normal(0, 2, 3), normal(1, 2, 3), normal(2, 2, 3)
VALUE_LOSS = Exercise(
    value_loss, 4, gradients=("values",),
    cases=(
        case(value_loss, "", numbers([0.1]), numbers([0]), numbers([1]), ONE),
        case(value_loss, "a value far from the old one", numbers([0.5]), numbers([0]),
             numbers([1]), ONE),
        case(value_loss, "a value gone the wrong way", numbers([-0.5]), numbers([0]),
             numbers([1]), ONE),
        case(value_loss, "padding", numbers([0.1, 3]), numbers([0, 0]), numbers([1, 0]),
             spans(2, (0, 1))),
        case(value_loss, "rows of unequal length", *VALUES, RAGGED),
        case(value_loss, "another clip", *VALUES, RAGGED, 0.5),
        case(value_loss, "clip=0", numbers([0.5]), numbers([0]), numbers([1]), ONE, 0.0),
        case(value_loss, "actions that are False everywhere", numbers([0.1]), numbers([0]),
             numbers([1]), ~ONE),
    ),
    mistakes=(
        Mistake("without the half", "it is half the squared error", other_value_loss(half=1)),
        Mistake(
            "no clip", "the value kept near the old one is judged, too",
            lambda values, old, returns, actions, clip=0.2: value_loss(
                values, old, returns, actions, 0.0
            ),
        ),
        Mistake(
            "the smaller error instead of the larger", "the worse of the two counts",
            other_value_loss(choose=torch.min),
        ),
        Mistake(
            "the clipped error alone", "the value itself is judged, too",
            other_value_loss(choose=lambda free, held: held),
        ),
        Mistake(
            "the value itself is clipped", "it is its distance from the old value", near_zero
        ),
        Mistake("not squared", "the error is squared", other_value_loss(size=torch.abs)),
        *averaged_wrongly(other_value_loss),
        Mistake(
            "the mask is ignored", "prompt and padding are no actions",
            lambda values, old, returns, actions, *clip: value_loss(
                values, old, returns, torch.ones_like(actions), *clip
            ),
        ),
        Mistake(
            "clip is ignored", "the room around the old value is an argument",
            other_value_loss(room=0.2),
        ),
        Mistake(
            "clip 0 leaves no room", "0 stands for no clipping",
            lambda values, old, returns, actions, clip=0.2: value_loss(
                values, old, returns, actions, clip or 1e-300
            ),
        ),
    ),
)  # fmt: skip


# Chapter 5


def response_sum(read: Callable = token_logprobs, chosen: Callable = lambda mask: mask[:, 1:]):
    """A response's log-probability: read(logits, tokens, temperature), summed where chosen."""
    return lambda model, tokens, mask, temperature=1.0: (
        read(model(tokens), tokens, temperature) * chosen(mask)
    ).sum(-1)


def up_to_the_end(mask: Tensor) -> Tensor:
    """The prompt counts, the padding does not: (B, T - 1)."""
    return (mask.flip(1).cumsum(1).flip(1) > 0)[:, 1:]


def without_the_end(mask: Tensor) -> Tensor:
    """The response without its last token: (B, T - 1)."""
    return mask[:, 1:] & (mask.flip(1).cumsum(1).flip(1) > 1)[:, 1:]


def at_own_position(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """Each token's log-probability at its own position, where it has been read already."""
    logprobs = (logits / temperature).log_softmax(-1)
    return logprobs.gather(-1, tokens[..., None]).squeeze(-1)


def raw_logits(logits: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    """The logits themselves."""
    return (logits[:, :-1] / temperature).gather(-1, tokens[:, 1:, None]).squeeze(-1)


TOKENS = torch.tensor([[0, 1, 2, 1, 0], [2, 0, 1, 1, 2], [1, 1, 0, 2, 0]])
RESPONSES = spans(5, (1, 5), (3, 4), (2, 4))
RESPONSE_LOG_PROBS = Exercise(
    get_response_log_probs, 5, gradients=("model",),
    cases=(
        case(get_response_log_probs, "", Bigram(0), TOKENS[:1, :4], spans(4, (2, 4))),
        case(get_response_log_probs, "padding", Bigram(0), TOKENS[:1, :4], spans(4, (1, 3))),
        case(get_response_log_probs, "answers of one token", Bigram(1), TOKENS[1:2, :3],
             spans(3, (2, 3))),
        case(get_response_log_probs, "rows of unequal length", Bigram(2), TOKENS, RESPONSES),
        case(get_response_log_probs, "a temperature", Bigram(0), TOKENS[:1, :4],
             spans(4, (2, 4)), 0.5),
    ),
    mistakes=(
        Mistake(
            "the mean instead of the sum",
            "the logarithm of an answer's probability is the sum over its tokens",
            lambda model, tokens, mask, *temperature: get_response_log_probs(
                model, tokens, mask, *temperature
            ) / mask.sum(-1),
        ),
        Mistake(
            "off by one", "the logits at t are about token t + 1, and not about token t",
            response_sum(at_own_position, lambda mask: mask),
        ),
        Mistake(
            "the prompt is counted", "only the answer's tokens count",
            response_sum(chosen=up_to_the_end),
        ),
        Mistake(
            "the padding is counted", "nothing after the answer counts",
            response_sum(chosen=lambda mask: mask[:, 1:].cumsum(1) > 0),
        ),
        Mistake(
            "the mask is ignored", "prompt and padding do not count",
            response_sum(chosen=lambda mask: torch.ones_like(mask[:, 1:])),
        ),
        Mistake(
            "the mask is not shifted", "it moves with the tokens: mask[:, 1:]",
            response_sum(chosen=lambda mask: mask[:, :-1]),
        ),
        Mistake(
            "the end is not counted", "the answer's last token is part of it",
            response_sum(chosen=without_the_end),
        ),
        Mistake(
            "logits instead of log-probabilities", "log_softmax is missing",
            response_sum(raw_logits),
        ),
        Mistake(
            "the temperature is ignored", "it divides the logits",
            lambda model, tokens, mask, temperature=1.0: get_response_log_probs(
                model, tokens, mask
            ),
        ),
        Mistake(
            "the temperature after the softmax", "divide the logits, not the log-probabilities",
            lambda model, tokens, mask, temperature=1.0: get_response_log_probs(
                model, tokens, mask
            ) / temperature,
        ),
        Mistake(
            "the probability instead of its logarithm", "leave out the exponential",
            lambda *arguments: get_response_log_probs(*arguments).exp(),
        ),
        Mistake(
            "the wrong sign", "a log-probability is below 0: it is no surprise",
            lambda *arguments: -get_response_log_probs(*arguments),
        ),
        Mistake(
            "the temperature multiplies", "it divides the logits",
            lambda model, tokens, mask, temperature=1.0: get_response_log_probs(
                model, tokens, mask, 1 / temperature
            ),
        ),
        Mistake(
            "the mean over all columns", "sum over the answer's tokens, and do not divide",
            lambda model, tokens, *rest: get_response_log_probs(model, tokens, *rest)
            / (tokens.size(1) - 1),
            (
                lambda model, tokens, *rest: get_response_log_probs(model, tokens, *rest)
                / tokens.size(1),
            ),
        ),
    ),
)  # fmt: skip


def of_h(loss: Callable) -> Callable:
    """A DPO loss as loss(gap, beta, label_smoothing), gap being h without its beta."""
    return lambda c, r, ref_c, ref_r, beta=0.1, smoothing=0.0: loss(
        (c - ref_c) - (r - ref_r), beta, smoothing
    )


def smoothed(h: Tensor, smoothing: float | Tensor) -> Tensor:
    """Each pair's loss, as it should be: (B,)."""
    return -(1 - smoothing) * F.logsigmoid(h) - smoothing * F.logsigmoid(-h)


def naive_dpo(gap: Tensor, beta: float, smoothing: float | Tensor) -> Tensor:
    p = torch.sigmoid(beta * gap)
    return -((1 - smoothing) * p.log() + smoothing * (1 - p).log()).mean()


PAIR = numbers(-40), numbers(-52), numbers(-43), numbers(-50)
PAIRS = tuple(-50 + 5 * normal(seed, 3) for seed in range(4))
DPO_LOSS = Exercise(
    dpo_loss, 5, gradients=("chosen", "rejected"),
    cases=(
        case(dpo_loss, "", *PAIR),
        case(dpo_loss, "beta", *PAIR, 0.5),
        case(dpo_loss, "several pairs", *PAIRS),
        case(dpo_loss, "label smoothing", *PAIR, 0.1, 0.2),
        case(dpo_loss, "a smoothing per pair", *PAIRS, 0.1, numbers(0, 0.1, 0.4)),
        case(dpo_loss, "extreme log-probabilities", numbers(-90000), numbers(-10),
             numbers(-10), numbers(-10), rounding=True),
    ),
    mistakes=(
        Mistake(
            "beta the wrong way round", "beta multiplies the log-ratios, and does not divide",
            of_h(lambda gap, beta, smoothing: smoothed(gap / beta, smoothing).mean()),
        ),
        Mistake(
            "beta is ignored", "a nat of log-ratio counts beta, an argument",
            of_h(lambda gap, beta, smoothing: smoothed(0.1 * gap, smoothing).mean()),
        ),
        Mistake(
            "beta is missing", "beta multiplies the log-ratios",
            of_h(lambda gap, beta, smoothing: smoothed(gap, smoothing).mean()),
        ),
        Mistake(
            "beta outside the sigmoid", "it belongs inside, with the log-ratios",
            of_h(lambda gap, beta, smoothing: beta * smoothed(gap, smoothing).mean()),
        ),
        Mistake(
            "the reference is ignored", "it is the change since the reference that counts",
            lambda c, r, ref_c, ref_r, *rest: dpo_loss(c, r, 0 * c, 0 * r, *rest),
        ),
        Mistake(
            "the references the wrong way round",
            "each answer is compared with what the reference says of that answer",
            lambda c, r, ref_c, ref_r, *rest: dpo_loss(c, r, ref_r, ref_c, *rest),
        ),
        Mistake(
            "chosen and rejected the wrong way round",
            "the chosen answer's ratio is to rise; it falls where h has the wrong sign, and "
            "just so where epsilon and 1 - epsilon are swapped",
            lambda c, r, ref_c, ref_r, *rest: dpo_loss(r, c, ref_r, ref_c, *rest),
            (of_h(lambda gap, beta, smoothing: smoothed(beta * gap, 1 - smoothing).mean()),),
        ),
        Mistake(
            "the sum instead of the mean", "take the mean over the pairs",
            lambda c, *rest: len(c) * dpo_loss(c, *rest),
        ),
        Mistake(
            "the wrong sign", "a surprise is minus the logarithm",
            lambda *arguments: -dpo_loss(*arguments),
        ),
        Mistake(
            "the logarithm of a rounded 0", "sigmoid rounds, so use logsigmoid",
            of_h(naive_dpo),
        ),
        Mistake(
            "the smoothing is ignored", "label_smoothing is the chance that a label is wrong",
            lambda c, r, ref_c, ref_r, beta=0.1, smoothing=0.0: dpo_loss(
                c, r, ref_c, ref_r, beta
            ),
        ),
        Mistake(
            "the smoothing is added", "the weights 1 - epsilon and epsilon add up to 1",
            of_h(lambda gap, beta, smoothing: (
                smoothed(beta * gap, 0.0) - smoothing * F.logsigmoid(-beta * gap)
            ).mean()),
        ),
        Mistake(
            "half the gradient", "the rejected answer is detached; both have to move",
            lambda c, r, *rest: dpo_loss(c, r.detach(), *rest),
        ),
    ),
)  # fmt: skip


# Chapter 6

BEST_OF_N_KL = Exercise(
    best_of_n_kl, 6,
    cases=tuple(
        case(best_of_n_kl, kind, n)
        for n, kind in ((2, ""), (1, "one draw"), (16, "more draws"), (1000, "many draws"),
                        (0, "no draw"), (-1, "a number of draws below 0"))
    ),
    mistakes=(
        Mistake("log n alone", "(n - 1) / n is taken off it", lambda n: math.log(n)),
        Mistake("bits", "nats: the natural logarithm",
                lambda n: math.log2(n) - (n - 1) / n),
        Mistake("the wrong sign", "(n - 1) / n is taken off, not added",
                lambda n: math.log(n) + (n - 1) / n),
        Mistake("1 / n", "it is (n - 1) / n that is taken off",
                lambda n: math.log(n) - 1 / n),
        Mistake("not divided by n", "it is (n - 1) / n that is taken off",
                lambda n: math.log(n) - (n - 1)),
        Mistake("the limit of many draws", "(n - 1) / n is 1 for large n only",
                lambda n: math.log(n) - 1),
        Mistake("the two the wrong way round",
                "KL(one draw || best of n) is n - 1 - log n: another number",
                lambda n: n - 1 - math.log(n)),
        Mistake("negated", "a KL divergence is never below 0",
                lambda n: (n - 1) / n - math.log(n)),
    ),
)  # fmt: skip


def share(won: Callable) -> Callable:
    """The mean of won(one, other) over the prompts."""
    return lambda scores, others: sum(map(won, scores, others)) / len(scores)


def decided_only(scores: list[float], others: list[float]) -> float:
    decided = [one > other for one, other in zip(scores, others) if one != other]
    return sum(decided) / max(1, len(decided))


def compared_means(tie: float) -> Callable:
    """Whether the first mean is the higher one, and what it is where the two are the same."""

    def wrong(scores: list[float], others: list[float]) -> float:
        one, other = sum(scores) / len(scores), sum(others) / len(others)
        return tie if one == other else float(one > other)

    return wrong


WIN_RATE = Exercise(
    win_rate, 6, tolerance=1e-6,  # so that single precision is right
    cases=(
        case(win_rate, "", [1.0, 0.0, 2.0], [0.0, 1.0, 0.5]),
        case(win_rate, "a tie", [1.0, 0.5], [0.0, 0.5]),
        case(win_rate, "one prompt", [1.0], [0.0]),
        case(win_rate, "ties alone", [0.0, 1.0], [0.0, 1.0]),
        case(win_rate, "scores that are close", [0.51, 0.75], [0.5, 0.7499]),
        case(win_rate, "scores below 0", [-1.0, -3.0, -1.0, 0.5], [-2.0, -2.5, -1.0, -7.0]),
    ),
    mistakes=(
        Mistake("a tie is a loss", "a tie counts one half", share(lambda a, b: a > b)),
        Mistake("a tie is a win", "a tie counts one half", share(lambda a, b: a >= b)),
        Mistake("ties are left out", "a tie counts one half, and as a prompt", decided_only),
        Mistake("the number instead of the share", "divide by the number of prompts",
                lambda scores, others: len(scores) * win_rate(scores, others)),
        Mistake("percent", "the share is a number from 0 to 1",
                lambda scores, others: 100 * win_rate(scores, others)),
        Mistake("the wrong way round", "it is the first that wins where it is higher",
                lambda scores, others: win_rate(others, scores)),
        Mistake("wins less losses", "a loss counts 0, and not -1",
                share(lambda a, b: (a > b) - (a < b))),
        Mistake("the mean of the gaps", "by how much it wins does not count",
                share(lambda a, b: a - b)),
        Mistake("all against all", "compare the answers to the same prompt",
                lambda scores, others: sum(win_rate([one] * len(others), others)
                                           for one in scores) / len(scores)),
        Mistake("the means are compared", "compare prompt by prompt, then take the mean",
                compared_means(0.0), (compared_means(0.5), compared_means(1.0))),
        Mistake("negated", "a share is never below 0",
                lambda scores, others: -win_rate(scores, others)),
    ),
)  # fmt: skip

def among(mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A mask of attention's parts: causal (T, T), real tokens (B, 1, T), itself (T, T)."""
    T = mask.size(1)
    causal = torch.ones(T, T, dtype=torch.bool).tril()
    return causal, mask[:, None, :], torch.eye(T, dtype=torch.bool)


def sees(allowed: Callable) -> Callable:
    """A mask of attention for all heads from allowed(causal, real, itself), (B, T, T)."""
    return lambda mask: allowed(*among(mask))[:, None]


VISIBLE = Exercise(
    visible, 1,
    cases=(
        case(visible, "", torch.tensor([[True, True, True]])),
        case(visible, "padding on the left", torch.tensor([[False, False, True]])),
        case(visible, "two lengths", torch.tensor([[False, True, True], [True, True, True]])),
        case(visible, "one token", torch.tensor([[True]])),
    ),
    mistakes=(
        Mistake(
            "not causal", "a token must not see those that come after it",
            sees(lambda causal, real, itself: real | itself),
        ),
        Mistake(
            "the wrong triangle",
            "row t is the token that looks and column s the one it looks at: s <= t",
            sees(lambda causal, real, itself: causal.T & (real | itself)),
        ),
        Mistake(
            "a token does not see itself", "the diagonal is visible, in every row",
            sees(lambda causal, real, itself: causal & real & ~itself),
        ),
        Mistake(
            "padding is seen", "no real token may look at padding",
            sees(lambda causal, real, itself: causal.expand(real.size(0), -1, -1)),
        ),
        Mistake(
            "padding sees nothing",
            "a softmax over nothing is NaN: let every token see itself, padding too",
            sees(lambda causal, real, itself: causal & real),
        ),
        Mistake(
            "who looks is masked, and not what is looked at",
            "the mask belongs to the columns: mask[:, None, :]",
            sees(lambda causal, real, itself: causal & (real.mT | itself)),
        ),
        Mistake(
            "the mask is turned round", "True marks the real tokens",
            sees(lambda causal, real, itself: causal & (~real | itself)),
        ),
        Mistake(
            "no dimension for the heads", "attention wants (B, 1, T, T)",
            lambda mask: visible(mask)[:, 0],
        ),
    ),
)  # fmt: skip


def turned(first: Callable, second: Callable) -> Callable:
    """`rotate` from what becomes of a pair (x, y) by (cos, sin): its first, its second."""

    def wrong(x, rotation):
        x, y = x[..., 0::2], x[..., 1::2]  # (..., T, heads, hs/2)
        cos, sin = rotation.unsqueeze(-3).unbind(-1)  # (..., T, 1, hs/2)
        return torch.stack([first(x, y, cos, sin), second(x, y, cos, sin)], -1).flatten(-2)

    return wrong


def by_halves(x, rotation):
    """Feature j paired with j + hs/2."""
    x, y = x.chunk(2, -1)
    cos, sin = rotation.unsqueeze(-3).unbind(-1)
    return torch.cat([x * cos - y * sin, x * sin + y * cos], -1)


def sorted_apart(x, rotation):
    """All first features, then all second ones."""
    done = rotate(x, rotation)
    return torch.cat([done[..., 0::2], done[..., 1::2]], -1)


TURNS = rotation_table(8, 4).double()
ROTATE = Exercise(
    rotate, 1, gradients=("x",), tolerance=1e-6,
    cases=(
        case(rotate, "", normal(0, 3, 1, 4), TURNS[:3]),
        case(rotate, "the first position", normal(1, 1, 1, 4), TURNS[:1]),
        case(rotate, "two heads, two rows", normal(2, 2, 3, 2, 4), TURNS[:3]),
        case(rotate, "positions of each row", normal(3, 2, 2, 1, 4),
             TURNS[torch.tensor([[0, 1], [4, 5]])]),
    ),
    mistakes=(
        Mistake(
            "the other way round", "(x, y) becomes (x cos - y sin, x sin + y cos)",
            turned(lambda x, y, cos, sin: x * cos + y * sin,
                   lambda x, y, cos, sin: y * cos - x * sin),
        ),
        Mistake(
            "cosine and sine exchanged", "rotation[..., 0] is the cosine, [..., 1] the sine",
            turned(lambda x, y, cos, sin: x * sin - y * cos,
                   lambda x, y, cos, sin: x * cos + y * sin),
        ),
        Mistake(
            "no minus", "a turn has one minus: x cos - y sin",
            turned(lambda x, y, cos, sin: x * cos + y * sin,
                   lambda x, y, cos, sin: x * sin + y * cos),
        ),
        Mistake(
            "the second feature is left as it is", "both features of a pair are turned",
            turned(lambda x, y, cos, sin: x * cos - y * sin, lambda x, y, cos, sin: y),
        ),
        Mistake(
            "the new first feature is used for the second",
            "compute both from the old pair, then write them",
            turned(lambda x, y, cos, sin: x * cos - y * sin,
                   lambda x, y, cos, sin: (x * cos - y * sin) * sin + y * cos),
        ),
        Mistake(
            "halves instead of neighbours",
            "features 2j and 2j + 1 are a pair; pairing j with j + hs/2 is another convention, "
            "for other weights",
            by_halves,
        ),
        Mistake(
            "pairs come out sorted apart", "put the two features of a pair side by side again",
            sorted_apart,
        ),
    ),
)  # fmt: skip


# Chapter 7


def scaled(scale: Callable[[Tensor, float], float]) -> Callable:
    """The addition with another factor, made of A and alpha."""
    return lambda x, A, B, alpha: F.linear(F.linear(x, A), B) * scale(A, alpha)


LOW_RANK = Exercise(
    low_rank, 7, gradients=("x", "A", "B"),
    cases=(
        case(low_rank, "", normal(0, 2, 3), normal(1, 2, 3), normal(2, 4, 2), 6.0),
        case(low_rank, "rank 1", normal(3, 3), normal(4, 1, 3), normal(5, 2, 1), 2.0),
        case(low_rank, "(B, T, in)", normal(6, 2, 2, 4), normal(7, 3, 4), normal(8, 5, 3), 1.0),
    ),
    mistakes=(
        Mistake("alpha without the rank", "it is alpha / r", scaled(lambda A, alpha: alpha)),
        Mistake("alpha is ignored", "it is scaled by alpha / r", scaled(lambda A, alpha: 1.0)),
        Mistake(
            "alpha over the inputs", "r is the first of A's sizes",
            scaled(lambda A, alpha: alpha / A.size(1)),
        ),
        Mistake(
            "alpha over the root of the rank", "that is rsLoRA; here it is alpha / r",
            scaled(lambda A, alpha: alpha / A.size(0) ** 0.5),
        ),
        Mistake(
            "the rank over alpha", "it is alpha / r", scaled(lambda A, alpha: A.size(0) / alpha)
        ),
    ),
)  # fmt: skip


def other_quantize(
    scale: Callable = lambda rows: rows.abs().amax(-1),
    choose: Callable = lambda unit, levels: (unit[..., None] - levels).abs().argmin(-1),
) -> Callable:
    """Codes and scales with another scale, or another way to choose a level."""

    def quantized(weights: Tensor, levels: Tensor, block: int = 64) -> tuple[Tensor, Tensor]:
        rows = blocks_of(weights.float(), block)
        scales = scale(rows)
        unit = rows / scales.clamp_min(1e-30)[:, None]
        return choose(unit, levels).to(torch.uint8), scales

    return quantized


def level_below(unit: Tensor, levels: Tensor) -> Tensor:
    """The last level that is not above a weight."""
    return (unit[..., None] >= levels).sum(-1).sub(1).clamp_min(0)


def level_above(unit: Tensor, levels: Tensor) -> Tensor:
    """The first level that is not below a weight."""
    return (unit[..., None] > levels).sum(-1).clamp_max(len(levels) - 1)


QUANTIZE = Exercise(
    quantize, 7, results=("codes", "scales"), tolerance=1e-6,
    cases=(
        case(quantize, "", normal(0, 8), nf4_levels(), 4),
        case(quantize, "a last block that is not full", normal(1, 2, 5), nf4_levels(), 4),
        case(quantize, "a matrix", normal(2, 3, 6), nf4_levels(), 6),
        case(quantize, "a block of zeros", numbers(0, 0, 1, -2), nf4_levels(), 2),
        case(quantize, "even levels", normal(3, 12) + 0.013, int4_levels(), 6),
        case(quantize, "64 in a block", normal(4, 200), nf4_levels()),
        case(quantize, "NaN", numbers(1, math.nan), nf4_levels(), 2),
    ),
    mistakes=(
        Mistake("the level below", "the nearest counts", other_quantize(choose=level_below)),
        Mistake("the level above", "the nearest counts", other_quantize(choose=level_above)),
        Mistake(
            "the largest weight with its sign", "it is the largest without its sign",
            other_quantize(lambda rows: rows.amax(-1)),
        ),
        Mistake(
            "the mean size as the scale", "it is the block's largest",
            other_quantize(lambda rows: rows.abs().mean(-1)),
        ),
        Mistake(
            "one scale for all", "each block has its own",
            other_quantize(lambda rows: rows.abs().amax().expand(len(rows)).clone()),
        ),
    ),
)  # fmt: skip


# Chapter 8


def chosen_by(best: Callable, worst: Callable, even: Callable = torch.le) -> Callable:
    """`best_and_worst` from other rankings of the answers; even: which rows give no pair."""

    def function(scores: Tensor, usable: Tensor, leave_out: bool = False):
        (high, one), (low, other) = (
            best(scores, usable).max(1), worst(scores, usable, leave_out).min(1)
        )  # fmt: skip
        none = even(high, low)
        return one.masked_fill(none, -1), other.masked_fill(none, -1)

    return function


def filled(value: float) -> Callable:
    """Scores with those of answers that cannot be used replaced by a value."""
    return lambda scores, usable, leave_out=False: scores.masked_fill(~usable, value)


def least(scores: Tensor, usable: Tensor, leave_out: bool) -> Tensor:
    """The scores among which the worst answer is looked for."""
    return filled(torch.inf if leave_out else -torch.inf)(scores, usable)


def as_given(scores: Tensor, usable: Tensor, leave_out: bool = False) -> Tensor:
    """The scores, whether the answers can be used or not."""
    return scores


def last_of_equals(scores: Tensor, usable: Tensor, leave_out: bool = False):
    """`best_and_worst`, looking from the end."""
    found = best_and_worst(scores.flip(1), usable.flip(1), leave_out)
    return tuple(torch.where(place < 0, -1, scores.size(1) - 1 - place) for place in found)


top, bottom = filled(-torch.inf), filled(torch.inf)
BEST_AND_WORST = Exercise(
    best_and_worst, 8, results=("best", "worst"), by_value=("best", "worst"),
    cases=(
        case(best_and_worst, "", numbers([0.5, 2.0, -1.0]), numbers([1, 1, 1]) > 0),
        case(best_and_worst, "equal scores", numbers([1.0, 2.0, 2.0, 1.0]),
             numbers([1, 1, 1, 1]) > 0),
        case(best_and_worst, "a row without a pair", numbers([1.0, 1.0], [0.0, 3.0]),
             numbers([1, 1], [1, 1]) > 0),
        case(best_and_worst, "an answer that cannot be used",
             numbers([0.5, 2.0, -1.0, 9.0], [0.5, 2.0, -1.0, 1.0]),
             numbers([1, 1, 1, 0], [1, 1, 1, 0]) > 0),
        case(best_and_worst, "one left out", numbers([0.5, 2.0, -1.0], [0.5, 2.0, 4.0]),
             numbers([1, 1, 0], [1, 1, 0]) > 0, True),
        case(best_and_worst, "nothing to use", numbers([0.5, 2.0], [0.5, 2.0]),
             numbers([0, 0], [1, 0]) > 0),
        case(best_and_worst, "nothing to use, left out", numbers([0.5, 2.0], [0.5, 2.0]),
             numbers([0, 0], [1, 0]) > 0, True),
    ),
    mistakes=(
        Mistake("what cannot be used is used", "an answer without its end is never the best",
                chosen_by(as_given, as_given), (chosen_by(as_given, least),)),
        Mistake("its score still counts", "an answer that cannot be used is worse than any",
                chosen_by(top, as_given)),
        Mistake("always left out", "without leave_out an unusable answer is the worst",
                chosen_by(top, bottom)),
        Mistake("never left out", "with leave_out an unusable answer is not chosen",
                chosen_by(top, top)),
        Mistake("best and worst exchanged", "the best comes first",
                lambda *given: best_and_worst(*given)[::-1]),
        Mistake("a pair of equals", "where none is better than another, both are -1",
                chosen_by(top, least, torch.lt)),
        Mistake("the last of equals", "of equal scores the first is meant", last_of_equals),
    ),
)  # fmt: skip


TURNS = rotation_table(8, 4).double()
ROTATE = Exercise(
    rotate, 1, gradients=("x",), tolerance=1e-6,
    cases=(
        case(rotate, "", normal(0, 3, 1, 4), TURNS[:3]),
        case(rotate, "the first position", normal(1, 1, 1, 4), TURNS[:1]),
        case(rotate, "two heads, two rows", normal(2, 2, 3, 2, 4), TURNS[:3]),
        case(rotate, "positions of each row", normal(3, 2, 2, 1, 4),
             TURNS[torch.tensor([[0, 1], [4, 5]])]),
    ),
    mistakes=(
        Mistake(
            "the other way round", "(x, y) becomes (x cos - y sin, x sin + y cos)",
            turned(lambda x, y, cos, sin: x * cos + y * sin,
                   lambda x, y, cos, sin: y * cos - x * sin),
        ),
        Mistake(
            "cosine and sine exchanged", "rotation[..., 0] is the cosine, [..., 1] the sine",
            turned(lambda x, y, cos, sin: x * sin - y * cos,
                   lambda x, y, cos, sin: x * cos + y * sin),
        ),
        Mistake(
            "no minus", "a turn has one minus: x cos - y sin",
            turned(lambda x, y, cos, sin: x * cos + y * sin,
                   lambda x, y, cos, sin: x * sin + y * cos),
        ),
        Mistake(
            "the second feature is left as it is", "both features of a pair are turned",
            turned(lambda x, y, cos, sin: x * cos - y * sin, lambda x, y, cos, sin: y),
        ),
        Mistake(
            "the new first feature is used for the second",
            "compute both from the old pair, then write them",
            turned(lambda x, y, cos, sin: x * cos - y * sin,
                   lambda x, y, cos, sin: (x * cos - y * sin) * sin + y * cos),
        ),
        Mistake(
            "halves instead of neighbours",
            "features 2j and 2j + 1 are a pair; pairing j with j + hs/2 is another convention, "
            "for other weights",
            by_halves,
        ),
        Mistake(
            "pairs come out sorted apart", "put the two features of a pair side by side again",
            sorted_apart,
        ),
    ),
)  # fmt: skip


# Chapter 9

PLAIN = Architecture(vocab_size=9, width=4, n_layer=2, n_head=2, n_kv_head=2, mlp_width=8)
GROUPED = replace(PLAIN, n_kv_head=1)


def one_block(shape: Architecture) -> int:
    return parameters(replace(shape, n_layer=1))


def matrices_alone(shape: Architecture) -> int:
    rows = shape.vocab_size * (1 if shape.tied else 2) + shape.positions
    return rows * shape.width + shape.n_layer * sum(m * n for m, n in matrices(shape).values())


def tied_twice(shape: Architecture) -> int:
    return parameters(replace(shape, tied=False))


def untied_once(shape: Architecture) -> int:
    return parameters(replace(shape, tied=True))


def without_last_norm(shape: Architecture) -> int:
    return parameters(shape) - shape.width * (1 if shape.gated else 2)


def one_norm_per_block(shape: Architecture) -> int:
    return parameters(shape) - shape.n_layer * shape.width * (1 if shape.gated else 2)


def all_heads_have_keys(shape: Architecture) -> int:
    return parameters(replace(shape, n_kv_head=shape.n_head))


PARAMETERS = Exercise(
    parameters, 9,
    cases=(
        case(parameters, "", PLAIN),
        case(parameters, "a head of its own", replace(PLAIN, tied=False)),
        case(parameters, "fewer heads with keys", GROUPED),
        case(parameters, "learned positions and LayerNorm",
             replace(PLAIN, positions=6, gated=False)),
        case(parameters, "biases of queries, keys and values",
             replace(GROUPED, qkv_bias=True)),
    ),
    mistakes=(
        Mistake("a tied head counted twice", "it is the embedding, and counts once",
                tied_twice),
        Mistake("a head of its own left out", "where it is not tied, it is a table more",
                untied_once),
        Mistake("keys and values for every head", "n_kv_head of the heads have them",
                all_heads_have_keys),
        Mistake("one block alone", "there are n_layer of them", one_block),
        Mistake("matrices alone", "norms have gains, and biases count", matrices_alone),
        Mistake("the last norm left out", "there is one more behind the blocks",
                without_last_norm),
        Mistake("one norm per block", "attention and MLP have one each", one_norm_per_block),
        Mistake("positions left out", "a learned table of positions has a row for each",
                lambda shape: parameters(replace(shape, positions=0))),
    ),
)  # fmt: skip


# Chapter 10


def cut(weights: Callable, gradients: Callable, optimizer: Callable) -> Callable:
    """`sharded_bytes` from what each of its parts is divided by, given GPUs and stage."""
    def wrong(parameters, gpus, zero):
        each = weights(gpus, zero), gradients(gpus, zero), optimizer(gpus, zero)
        return parameters * sum(size / n for size, n in zip((2.0, 2.0, 12.0), each))

    return wrong


def from_stage(stage: int) -> Callable:
    """Divided by the GPUs from a stage on."""
    return lambda gpus, zero: gpus if zero >= stage else 1


def of_break_even(times: float) -> Callable:
    """`break_even_tokens`, wrong by a factor."""
    return lambda F, W, transfers=2.0: times * break_even_tokens(F, W, transfers)


SHARDED_BYTES = Exercise(
    sharded_bytes, 10, by_value=("",),
    cases=(
        case(sharded_bytes, "", 1e6, 4, 3),
        case(sharded_bytes, "nothing is cut up", 1e6, 4, 0),
        case(sharded_bytes, "the optimiser alone is cut up", 1e6, 4, 1),
        case(sharded_bytes, "optimiser and gradients are cut up", 7.5e9, 64, 2),
        case(sharded_bytes, "one GPU", 1e6, 1, 3),
        case(sharded_bytes, "a stage that does not exist", 1e6, 4, 4),
    ),
    mistakes=(
        Mistake("everything from stage 1 on", "stage 1 cuts up the optimiser's state alone",
                cut(from_stage(1), from_stage(1), from_stage(1))),
        Mistake("the weights first", "the optimiser's state comes first, the weights last",
                cut(from_stage(1), from_stage(2), from_stage(3))),
        Mistake("gradients stay whole", "stage 2 cuts up the gradients, too",
                cut(from_stage(3), from_stage(4), from_stage(1))),
        Mistake("weights stay whole", "stage 3 cuts up the weights, too",
                cut(from_stage(4), from_stage(2), from_stage(1))),
        Mistake("nothing is divided", "from stage 1 on something is cut up",
                lambda parameters, gpus, zero: 16.0 * parameters),
        Mistake("no float32 copy", "the optimiser's 12 bytes are a copy and two moments",
                lambda parameters, gpus, zero:
                sharded_bytes(parameters, gpus, zero) * 12 / 16),
        Mistake("the sum over the GPUs", "it is bytes on each GPU",
                lambda parameters, gpus, zero: gpus * sharded_bytes(parameters, gpus, zero)),
    ),
)  # fmt: skip
BREAK_EVEN = Exercise(
    break_even_tokens, 10, by_value=("",), tolerance=1e-6,
    cases=(
        case(break_even_tokens, "", 300.0, 10.0, 2.0),
        case(break_even_tokens, "three transfers", 600.0, 10.0, 3.0),
        case(break_even_tokens, "another network", 400.0, 50.0, 2.0),
    ),
    mistakes=(
        Mistake("bits for bytes", "the speed is in bytes", of_break_even(8)),
        Mistake("one byte a number", "16 bits are two bytes", of_break_even(1 / 2)),
        Mistake("four bytes a number", "16 bits are two bytes", of_break_even(2)),
        Mistake("the forward pass alone", "forward and backward pass are 6 P operations",
                of_break_even(3)),
        Mistake("the backward pass alone", "forward and backward pass are 6 P operations",
                of_break_even(6 / 4)),
        Mistake("one transfer", "the bytes are sent `transfers` times",
                lambda F, W, transfers=2.0: 2 * F / (6 * W)),
        Mistake("upside down", "t is the tokens, not their inverse",
                lambda F, W, transfers=2.0: 1 / break_even_tokens(F, W, transfers)),
    ),
)  # fmt: skip

EXERCISES = {
    exercise.function.__name__: exercise
    for exercise in (
        ROTATE, VISIBLE, BUILD_LABELS, SFT_LOSS, BRADLEY_TERRY, LAST_OF, KL_ESTIMATE, GAE,
        WHITEN, POLICY_LOSS, VALUE_LOSS, RESPONSE_LOG_PROBS, DPO_LOSS, BEST_OF_N_KL, WIN_RATE,
        LOW_RANK, QUANTIZE, BEST_AND_WORST, PARAMETERS, SHARDED_BYTES, BREAK_EVEN,
    )
}  # fmt: skip
