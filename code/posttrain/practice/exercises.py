"""Exercises that grade themselves: what is wrong with a reader's function, by name."""

from __future__ import annotations

import copy
import dis
import inspect
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from posttrain.practice.cases import Case, Exercise, Mistake
from posttrain.practice.mistakes import EXERCISES
from posttrain.practice.patches import in_place_of
from posttrain.tokenizer import SPECIAL_TOKENS, CharTokenizer

SINGLE = 1e-5  # tolerance for a result in single precision where double is wanted
SHARE = 1e-6  # and for one of which the value alone counts
UNWRITTEN = "not written yet"
WRITE_IT = (
    "Put your own lines in place of the three dots, and run the cell again.\n"
    "Until then the cells below use the book's."
)


# What Python makes of a function without a body
GENERATOR = inspect.CO_GENERATOR
EMPTY = ("RESUME", "NOP")
STUBS = (["RETURN_CONST"], ["LOAD_CONST", "RETURN_VALUE"])


@dataclass(frozen=True, repr=False)
class Result:
    """What `check` found. True where the function is right; shown, it is the
    sentence.
    """

    right: bool
    name: str  # of the mistake, or in a few words what differs; "" where nothing does
    sentence: str

    def __bool__(self) -> bool:
        return self.right

    def __repr__(self) -> str:
        return self.sentence


@dataclass(frozen=True)
class Outcome:
    """What a function made of one case."""

    parts: tuple  # what it returned; a tuple's items by themselves
    gradients: tuple[Tensor, ...] | None = None  # None where the result has none
    changed: tuple[str, ...] = ()  # the arguments that it changed in place
    error: BaseException | None = None  # what it raised instead
    given: tuple[str, ...] = ()  # the arguments that it takes, in its own order


def names() -> dict[str, int]:
    """The functions that `check` grades, and the chapter in which the book writes
    each.
    """
    return {name: exercise.chapter for name, exercise in EXERCISES.items()}


def check(name: str, function: Callable) -> Result:
    """Grade a function against the book's own: right, or what is wrong, with an
    example.

    The last line of a cell shows the answer; elsewhere print it. Raises ValueError for
    a name that `names` does not list, and TypeError for what cannot be called.
    """
    exercise = find(name, function)
    if is_stub(function):
        return Result(False, UNWRITTEN, f"{name}: {UNWRITTEN}.\n{WRITE_IT}")
    right = [outcome(exercise, exercise.function, case) for case in exercise.cases]
    mine = [outcome(exercise, function, case) for case in exercise.cases]
    # Look first at the values, then at their dtype, at what is refused, and at the
    # manners
    for found in (
        wrong_value(exercise, mine, right),
        wrong_dtype(exercise, mine, right),
        not_refused(exercise, mine, right),
        changed_input(exercise, mine),
        other_order(exercise, mine),
    ):
        if found is not None:
            what, i = found
            shown = example(exercise.cases[i], mine[i], right[i])
            return Result(False, what.partition(":")[0], f"{name}: {what}.\n{shown}")
    grade = "values and gradients" if exercise.gradients else "values"
    return Result(True, "", f"{name}: right, {grade}, in all {len(right)} cases.")


def find(name: str, function: Callable) -> Exercise:
    """The exercise of this name. Raises as `check` does."""
    if name not in EXERCISES:
        raise ValueError(f"{name!r} is no exercise: use one of {', '.join(EXERCISES)}")
    if not callable(function):
        raise TypeError(
            f"{name} is graded by calling it, and {function!r} cannot be called: give "
            "the "
            "function itself, without brackets"
        )
    return EXERCISES[name]


def is_stub(function: Callable) -> bool:
    """Whether a function has a head, perhaps a docstring, and three dots: no body."""
    code = getattr(function, "__code__", None)
    if code is None or code.co_name == "<lambda>" or code.co_flags & GENERATOR:
        return False
    done = [step for step in dis.get_instructions(code) if step.opname not in EMPTY]
    return [step.opname for step in done] in STUBS and done[0].argval is None


def outcome(exercise: Exercise, function: Callable, case: Case) -> Outcome:
    """Call a function on copies of a case's arguments, and take gradients where
    asked.
    """
    given, leaves = copies(case, exercise.gradients)
    names = taken(exercise, function, given)
    try:
        returned = function(*(given[name] for name in names))
        parts = parts_of(returned, len(exercise.results) > 1)
        gradients = gradients_of(parts[0], leaves) if leaves and parts else None
    except (Exception, SystemExit) as error:
        return Outcome((), error=error, given=names)
    before = case.arguments
    changed = tuple(name for name in given if not unchanged(before[name], given[name]))
    parts = tuple(part.detach() if torch.is_tensor(part) else part for part in parts)
    return Outcome(parts, gradients, changed, given=names)


def taken(exercise: Exercise, function: Callable, given: dict) -> tuple[str, ...]:
    """The arguments to call a function with, in its order, by the book's names.

    A draft may order them in another way, where its parameters have the book's names,
    and may lack what is optional.
    """
    own = inspect.signature(exercise.function).parameters
    needed = [name for name, each in own.items() if each.default is each.empty]
    try:
        mine = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return tuple(given)
    kinds = {each.kind for each in mine.values()}
    if kinds - {inspect.Parameter.POSITIONAL_OR_KEYWORD} or len(mine) < len(needed):
        return tuple(given)
    names = (
        list(mine) if set(needed) <= set(mine) <= set(own) else list(own)[: len(mine)]
    )
    # Stop at the first that is not given, so that none takes another's place
    lacking = next((i for i, name in enumerate(names) if name not in given), len(names))
    return tuple(names[:lacking])


def copies(case: Case, gradients: tuple[str, ...]) -> tuple[dict, list[Tensor]]:
    """Copies of a case's arguments, and the tensors to take gradients with respect
    to.
    """
    given, leaves = copy.deepcopy(case.arguments), []
    for name in gradients:
        if isinstance(given[name], nn.Module):
            leaves += given[name].parameters()
        else:
            leaves.append(given[name].requires_grad_())
            # A function may change this copy in place, and be told so
            given[name] = given[name].clone()
    return given, leaves


def unchanged(before: object, after: object) -> bool:
    """Whether an argument is what it was. Models and tokenizers are not looked into."""
    if isinstance(before, Tensor):
        return near(before, after.detach(), 0.0)
    return before == after or not isinstance(before, list)


def parts_of(returned: object, several: bool) -> tuple:
    """What a function returned, one item per value; several: whether it should be
    more.
    """
    if several and isinstance(returned, (tuple, list)):
        return tuple(returned)
    # Where one value is due, a list may be that value
    pair = isinstance(returned, tuple) and len(returned) > 1
    return returned if pair and any(map(torch.is_tensor, returned)) else (returned,)


def gradients_of(part: object, leaves: list[Tensor]) -> tuple[Tensor, ...] | None:
    """The gradients of a result's sum; of several numbers each weighs another
    amount.
    """
    if not (isinstance(part, Tensor) and part.requires_grad):
        return None
    weights = torch.arange(1, part.numel() + 1, dtype=part.dtype).view(part.shape)
    found = torch.autograd.grad((part * weights).sum(), leaves, allow_unused=True)
    return tuple(torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves))


def difference(exercise: Exercise, mine: Outcome, right: Outcome) -> str:
    """How one outcome differs from another, but for its dtype, in a few words; or
    "".
    """
    if mine.error or right.error:
        same = right.error is not None and isinstance(mine.error, type(right.error))
        return "" if same else f"it raises {type(mine.error).__name__}"
    if len(mine.parts) != len(right.parts):
        return f"it returns {count(mine.parts)}, and should return {count(right.parts)}"
    # Ask no more of single precision than it holds: the dtype is looked at afterwards
    tolerance = SINGLE if other_dtypes(exercise, mine, right) else 0.0
    tolerance = max(tolerance, exercise.tolerance)
    for part, wanted, name in zip(mine.parts, right.parts, exercise.results):
        found = part_difference(
            part, wanted, tolerance, name, name in exercise.by_value
        )
        if found:
            return found
    if right.gradients is None:
        return ""
    of = f" of the {exercise.results[0]}" if exercise.results[0] else ""
    if mine.gradients is None:
        return f"right value, no gradient{of}"
    # Rounding differs from one way of writing a formula to another
    tolerance = max(tolerance, 1000 * torch.finfo(right.gradients[0].dtype).eps)
    pairs = zip(mine.gradients, right.gradients)
    same = all(near(*pair, tolerance) for pair in pairs)
    return "" if same else f"right value, wrong gradient{of}"


def part_difference(
    part: object, wanted: object, tolerance: float, name: str, by_value: bool
) -> str:
    """How one returned value differs from the one wanted, in a few words; or ""."""
    of = f" for the {name}" if name else ""
    if part is None:
        return f"it returns None{of}"
    if kind(part) != kind(wanted) and not by_value:
        return f"the wrong type{of}, {kind(part)} instead of {kind(wanted)}"
    if isinstance(part, list) and repr(part) == repr(wanted):
        return ""  # even where it holds something other than numbers
    part, wanted = numbers_of(part), numbers_of(wanted)
    if part is None or wanted is None:
        return f"it returns something other than numbers{of}"
    if part.shape != wanted.shape:
        return (
            f"the wrong shape{of}, {tuple(part.shape)} instead of {tuple(wanted.shape)}"
        )
    if near(part, wanted, SHARE if by_value else tolerance):
        return ""
    finite = part.isfinite().all()
    return f"the wrong value{of}" if finite else f"it returns NaN or infinity{of}"


def other_dtypes(
    exercise: Exercise, mine: Outcome, right: Outcome
) -> list[tuple[str, torch.dtype, torch.dtype]]:
    """The values whose dtype is not the one wanted: name, dtype, and the one wanted."""
    return [
        (name, part.dtype, wanted.dtype)
        for part, wanted, name in zip(mine.parts, right.parts, exercise.results)
        if name not in exercise.by_value
        and isinstance(part, Tensor)
        and isinstance(wanted, Tensor)
        and part.dtype != wanted.dtype
    ]


def count(parts: tuple) -> str:
    """1 value, 2 values."""
    return f"{len(parts)} value" + "s" * (len(parts) != 1)


def kind(part: object) -> str:
    """A word for what something is; whole numbers and others are all numbers."""
    if isinstance(part, Tensor):
        return "a tensor"
    if isinstance(part, (int, float)):
        return "a number"
    home = type(part).__module__
    return f"a {'' if home == 'builtins' else home + '.'}{type(part).__name__}"


def numbers_of(part: object) -> Tensor | None:
    """A tensor, number or list as a tensor; None where it holds anything else."""
    try:
        return (
            part
            if isinstance(part, Tensor)
            else torch.tensor(part, dtype=torch.float64)
        )
    except (TypeError, ValueError, RuntimeError):
        return None


def near(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether all numbers agree up to rounding; NaN agrees with NaN."""
    return torch.allclose(
        one.double(), other.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def wrong_value(
    exercise: Exercise, mine: list[Outcome], right: list[Outcome]
) -> tuple[str, int] | None:
    """What is wrong where the book's function answers, and the smallest case that shows
    it.
    """
    differ = differences(exercise, mine, right)
    if not any(differ.values()):
        return None
    mistake = named(exercise, mine, right)
    failing = sorted(
        (i for i in differ if differ[i]), key=lambda i: size(exercise.cases[i])
    )
    if mistake is not None:
        return f"{mistake.name}: {mistake.why}", failing[0]
    what = differ[failing[0]]
    return what + where(
        exercise, [i for i in failing if differ[i] == what], differ
    ), failing[0]


def differences(
    exercise: Exercise, mine: list[Outcome], right: list[Outcome]
) -> dict[int, str]:
    """For each case in which right is no error, by its number, how mine differs from
    it.
    """
    return {
        i: difference(exercise, mine[i], right[i])
        for i in range(len(right))
        if right[i].error is None
    }


def named(
    exercise: Exercise, mine: list[Outcome], right: list[Outcome]
) -> Mistake | None:
    """The mistake that gives the same as mine, or None.

    In every case that is no error; or else, where something is wrong there already, in
    those that do not ask for care with rounding; or else in their first value.
    """
    answered = [i for i, seen in enumerate(right) if seen.error is None]
    ordinary = [i for i in answered if not exercise.cases[i].rounding]
    # Leave out what a draft was not given, after a look at all
    full = [
        i for i in answered if len(mine[i].given) == len(exercise.cases[i].arguments)
    ]
    for chosen, view in (
        (answered, whole),
        (full, whole),
        (ordinary, whole),
        (ordinary, first_part),
    ):
        ours, truth = ([view(seen[i]) for i in chosen] for seen in (mine, right))
        if agree(exercise, ours, truth):
            continue
        for mistake in exercise.mistakes:
            for function in mistake.functions:
                theirs = (
                    outcome(exercise, function, exercise.cases[i]) for i in chosen
                )
                if agree(exercise, ours, map(view, theirs)):
                    return mistake
    return None


def whole(seen: Outcome) -> Outcome:
    """An outcome as it is."""
    return seen


def first_part(seen: Outcome) -> Outcome:
    """An outcome as if only the first value had been returned."""
    return replace(seen, parts=seen.parts[:1])


def agree(exercise: Exercise, some: list[Outcome], others) -> bool:
    """Whether outcomes are the same, case by case."""
    return not any(difference(exercise, a, b) for a, b in zip(some, others))


def size(case: Case) -> int:
    """How much there is to read in a case: the numbers in its arguments."""
    tensors = [numbers_of(value) for value in case.arguments.values()]
    return sum(tensor.numel() for tensor in tensors if tensor is not None)


def where(exercise: Exercise, failing: list[int], differ: dict[int, str]) -> str:
    """In which kinds of cases something is wrong: words to end a sentence with."""
    kinds = list(dict.fromkeys(exercise.cases[i].kind for i in failing))
    if all(differ.values()):
        return ": in every case, and by no mistake that is known here"
    if "" in kinds:
        return ": in the plain case, too"
    if len(kinds) == 1:
        return f": wrong with {kinds[0]}, right in all other cases"
    listed = f"{', '.join(kinds[:-1])}, and with {kinds[-1]}"
    return f": right in the plain case, wrong with {listed}"


def wrong_dtype(
    exercise: Exercise, mine: list[Outcome], right: list[Outcome]
) -> tuple[str, int] | None:
    """The first value that is right and in another precision, and where that comes
    from.
    """
    for i, case in enumerate(exercise.cases):
        for name, found, wanted in other_dtypes(exercise, mine[i], right[i]):
            of = f" for the {name}" if name else ""
            like = next(n for n, v in case.arguments.items() if isinstance(v, Tensor))
            advice = f"keep the dtype of {like}"
            if found == torch.get_default_dtype():
                advice = (
                    f"new tensors default to float32, so use torch.zeros_like({like})"
                )
            return f"the wrong dtype{of}, {found} instead of {wanted}: {advice}", i
    return None


def not_refused(
    exercise: Exercise, mine: list[Outcome], right: list[Outcome]
) -> tuple[str, int] | None:
    """The first case that the book's function refuses and the other does not, or
    otherwise.
    """
    for i, case in enumerate(exercise.cases):
        if right[i].error and difference(exercise, mine[i], right[i]):
            due = type(right[i].error).__name__
            if mine[i].error:
                raised = type(mine[i].error).__name__
                return (
                    f"refused with {raised}: it should raise {due} for {case.kind}",
                    i,
                )
            return f"not refused: it should raise {due} for {case.kind}", i
    return None


def changed_input(exercise: Exercise, mine: list[Outcome]) -> tuple[str, int] | None:
    """The first argument that the function changes, where all else is right."""
    for i, seen in enumerate(mine):
        if seen.changed:
            return (
                f"its input is changed: right, but {seen.changed[0]} is overwritten",
                i,
            )
    return None


def other_order(exercise: Exercise, mine: list[Outcome]) -> tuple[str, int] | None:
    """Parameters in another order than the book's, where all else is right."""
    for i, seen in enumerate(mine):
        due = [name for name in exercise.cases[i].arguments if name in seen.given]
        if list(seen.given) != due:
            called = f"the book calls it with ({', '.join(due)})"
            return f"another order of the parameters: right, but {called}", i
    return None


# Showing


def example(case: Case, mine: Outcome, right: Outcome) -> str:
    """The input, what came out and what is right, a line each."""
    lines = [f"{name} = {show(value, 6)}" for name, value in case.arguments.items()]
    # Show no more than it takes to see the difference
    views = [(4, False), (4, True), (8, True), (17, True)]
    views = [
        (digits, wanted and right.gradients is not None) for digits, wanted in views
    ]
    pairs = [(result(mine, *view), result(right, *view)) for view in views]
    yours, wanted = next((pair for pair in pairs if pair[0] != pair[1]), pairs[0])
    return "\n".join(
        f"    {line}" for line in [*lines, f"yours: {yours}", f"right: {wanted}"]
    )


def result(seen: Outcome, digits: int, gradients: bool) -> str:
    """An outcome in one line: the error, or the values, and the gradients where
    asked.
    """
    if seen.error:
        return f"{type(seen.error).__name__}: {textwrap.shorten(str(seen.error), 120)}"
    shown = ", ".join(show(part, digits) for part in seen.parts)
    if gradients:
        found = [show(gradient, digits) for gradient in seen.gradients or ()]
        shown += f", gradient {', '.join(found) or 'none'}"
    return shown


def show(value: object, digits: int) -> str:
    """A value in one line, its numbers rounded to so many digits."""
    if isinstance(value, Tensor):
        return show(value.tolist(), digits)
    if isinstance(value, list):
        return f"[{', '.join(show(item, digits) for item in value)}]"
    if isinstance(value, float):
        return f"{value + 0.0:.{digits}g}"  # no -0
    if isinstance(value, nn.Module):
        return (
            f"a model with the logits {show(*value.parameters(), digits)} by the "
            "last token"
        )
    if isinstance(value, CharTokenizer):
        return (
            "CharTokenizer(): "
            f"{', '.join(f'{value.ids[t]} is {t}' for t in SPECIAL_TOKENS)}"
        )
    return " ".join(repr(value).split())


@contextmanager
def plugged_in(**functions: Callable) -> Iterator[None]:
    """Within the block, the package runs with these functions in the place of its own.

    By name: plugged_in(gae=gae, policy_loss=mine). They need not be right; one that is
    not written yet leaves the book's in its place, and a line says so. Afterwards, even
    after an error, the book's own are back. Stored stages and other processes know the
    book's own alone, so asking for one within the block raises RuntimeError: load
    models before it. Raises as `check` does.
    """
    own = {name: find(name, each).function for name, each in functions.items()}
    written = {name: f for name, f in functions.items() if not is_stub(f)}
    missing = [name for name in functions if name not in written]
    if written:
        print(f"With yours: {', '.join(written)}.")
    if missing:
        print(f"With the book's, as yours is {UNWRITTEN}: {', '.join(missing)}.")
    with ExitStack() as stack:
        for name, function in written.items():
            stack.enter_context(in_place_of(own[name], function))
        yield
