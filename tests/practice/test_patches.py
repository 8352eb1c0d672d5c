"""Patches: found whatever the layout, refused where unclear, run in the package and
gone.
"""

import ast
import importlib
import inspect

import pytest
import torch

from posttrain import logprobs, ppo, real, reward_model
from posttrain.practice import patches
from posttrain.practice.cases import parse
from posttrain.practice.mistakes import EXERCISES
from posttrain.practice.patches import (
    Patch,
    in_place_of,
    patched,
    patched_source,
    plain,
    running_with,
)

WAYS = [
    (mistake, way)
    for exercise in EXERCISES.values()
    for mistake in exercise.mistakes
    for way in mistake.ways
]

TIDY = '''
def f(a, b):
    """Say "a + b"."""
    total = scale(a + b, by="two", of=(a, b))
    return (total, total.mean())


class Other:
    """A class with a + b in its docstring alone."""

    size = 1
'''
# The same, as another formatter might leave it
UNTIDY = '''
def f(
    a, b,
):
    """Say
    "a + b"."""
    # a + b
    total = (
        scale(
            (a
             + b),  # a + b
            by='two', of=(a, b,)
        ))
    return total, total.mean()

class Other:
    "A class with a + b in its docstring alone."
    size = 1
'''


@pytest.mark.parametrize("source", [TIDY, UNTIDY], ids=["tidy", "untidy"])
@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("a + b", "a - b", "total = scale(a - b, by='two', of=(a, b))"),
        ("scale(a + b, by='two', of=(a, b))", "0", "total = 0"),
        ('"two"', "'three'", "total = scale(a + b, by='three', of=(a, b))"),
        ("return total, total.mean()", "return total", "return total"),
        ("total, total.mean()", "total.mean(), total", "return (total.mean(), total)"),
        ("def f(a, b):", "def f(a, b, c):", "def f(a, b, c):"),
        ("size = 1", "size = 2", "size = 2"),
    ],
)
def test_a_text_is_found_whatever_the_layout(source, old, new, line):
    found = patched_source(source, Patch("", "m", ((old, new),)))
    assert line in [each.strip() for each in found.splitlines()]
    broken, right = (ast.unparse(ast.parse(text)) for text in (found, source))
    assert broken != right


def test_all_that_is_not_broken_stays_as_it_was():
    found = patched_source(UNTIDY, Patch("", "m", (("size = 1", "size = 2"),)))
    assert found.startswith(UNTIDY.partition("class Other")[0])


def test_the_head_of_a_block_is_found_and_one_that_is_chained_too():
    source = (
        "def f(a):\n    if (a == 'x'):\n        return 1\n    elif (a == 'y'):\n  "
        "      pass\n"
    )
    head = Patch(
        "", "m", (('if a == "x":', "if False:"), ('elif a == "y":', "elif a:"))
    )
    assert "if False:\n        return 1\n    elif a:" in patched_source(source, head)


def test_a_name_is_no_part_of_another():
    source = "def f(old_values, values):\n    return old_values\n"
    assert "values * 2" in patched_source(
        source.replace("return old_values", "return values + 1"),
        Patch("", "m", (("values + 1", "values * 2"),)),
    )
    with pytest.raises(ValueError, match="m has 'val' 0 times"):
        patched_source(source, Patch("", "m", (("val", "x"),)))


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("advantages * 7", "ppo.gae has 'advantages \\* 7' 0 times"),
        ("values", "ppo.gae has 'values' 1?[0-9] times"),
        ("gamma *", "'gamma \\*' is no code by itself: write a whole expression"),
        ("", "ppo.gae has '' [0-9]+ times"),
    ],
)
def test_what_does_not_stand_there_once_is_refused(old, message):
    with pytest.raises(ValueError, match=message):
        patched(ppo.gae, (old, "0"))


def test_all_changes_are_of_the_right_source():
    """The second is not made in what the first has put there."""
    ones = torch.ones(1, 2)
    swapped = patched(
        ppo.gae,
        ("advantages, advantages + values", "advantages + values, advantages"),
        ("next_value = values[:, t]", "next_value = values[:, t]"),
    )
    assert all(
        map(
            torch.equal,
            swapped(ones, ones, ones > 0),
            ppo.gae(ones, ones, ones > 0)[::-1],
        )
    )


def test_a_patched_function_runs_in_its_modules_namespace_and_leaves_it_alone():
    own = ppo.whiten
    made = patched(own, ("masked_mean(values, mask)", "masked_mean(values, mask) + 1"))
    assert ppo.whiten is own is not made and made.__module__ == own.__module__
    assert made.__globals__ is vars(ppo) and inspect.signature(
        made
    ) == inspect.signature(own)


@pytest.mark.parametrize("i", range(len(WAYS)))
def test_each_mistake_is_a_patch_that_changes_what_runs(i):
    mistake, way = WAYS[i]
    if isinstance(way, Patch):
        function = patched(mistake.right, *way.changes)
        assert (
            function.__code__.co_code + repr(function.__code__.co_consts).encode()
            != b""
        )
        assert patches.target_of(way) is mistake.right
        assert all(plain(old) != new for old, new in way.changes)


def test_hardly_any_mistake_is_written_out():
    assert sum(not isinstance(way, Patch) for _, way in WAYS) <= 3


def test_no_mistake_is_compiled_before_it_is_asked_for():
    module = importlib.import_module("posttrain.practice.mistakes.ppo")
    fresh = importlib.reload(module)
    assert not [
        m for each in fresh.EXERCISES for m in each.mistakes if "functions" in vars(m)
    ]


def test_a_text_is_read_as_mistakes():
    text = (
        "\nfirst: because: so\n  d -> 2 *\n    d\n  e -> 1\n  or\n  own\nsecond: "
        "why\n    not\n  a -> b\n"
    )
    one, two = parse(text, logprobs.kl_estimate, {"own": len})
    assert (one.name, one.why, two.why) == ("first", "because: so", "why not")
    target = "logprobs.kl_estimate"
    assert one.ways == (Patch("first", target, (("d", "2 * d"), ("e", "1"))), len)


def test_the_package_runs_with_a_patch_and_then_with_its_own_again():
    own, patch = ppo.gae, Patch("", "ppo.gae", (("gamma * lam", "gamma"),))
    with running_with(patch):
        assert ppo.gae is not own
        ones = torch.ones(1, 3, dtype=torch.float64)
        assert (
            ppo.gae(ones, ones, ones > 0, 1.0, 0.5)[0][0, 0]
            == own(ones, ones, ones > 0, 1.0, 1.0)[0][0, 0]
        )
    assert ppo.gae is own


def test_a_module_that_is_imported_within_the_block_has_its_own_afterwards(monkeypatch):
    own = reward_model.last_of
    with in_place_of(own, len):
        monkeypatch.setattr(real, "last_of", len, raising=False)
    assert real.last_of is own and reward_model.last_of is own
