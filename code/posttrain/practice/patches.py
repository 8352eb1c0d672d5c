"""Deliberate mistakes: patches of the right source, and the package run with one."""

from __future__ import annotations
import __future__

import ast
import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch as patch_attribute

from posttrain.keep import store, workers

Changes = tuple[tuple[str, str], ...]  # (old, new), one or more


@dataclass(frozen=True)
class Patch:
    """A mistake: what stands in the right source exactly once, and what instead.

    Both are expressions, statements, or the head of a block with its colon. The layout
    of the source does not count: line breaks, quotes, comments, docstrings.
    """

    what: str  # the mistake, in a few words
    target: str  # a module of the package, "ppo", or a definition in one, "ppo.gae"
    changes: Changes


# Finding and replacing


def plain(code: str) -> str:
    """Code as `ast.unparse` writes it, so that its layout does not count.

    Raises ValueError for what is no expression, no statement and no head of a block.
    """
    text = textwrap.dedent(code).strip()
    is_head, chained = text.endswith(":"), text.startswith("elif ")
    try:
        if is_head:
            # Give the head a block, and take it away again
            block = ast.parse(text[2 * chained :] + " pass")
            return "el" * chained + ast.unparse(block).rpartition("\n")[0]
        try:
            expression = ast.parse(text, mode="eval")
        except SyntaxError:
            return ast.unparse(ast.parse(text))
        written = ast.unparse(expression)
        # Take a list of values as it stands, in whatever brackets it is
        bare = isinstance(expression.body, ast.Tuple) and text[0] != "("
        return written[1:-1] if bare else written
    except SyntaxError:
        raise ValueError(
            f"{code!r} is no code by itself: write a whole expression, a statement, or "
            "the head of a block"
        ) from None


def undocumented(node: ast.stmt) -> str:
    """A definition as `ast.unparse` writes it, without its docstrings."""
    for part in ast.walk(node):
        body = getattr(part, "body", None)
        documented = isinstance(part, (ast.FunctionDef, ast.ClassDef))
        if documented and ast.get_docstring(part) is not None and len(body) > 1:
            del body[0]
    return ast.unparse(node)


def places(source: str, old: str) -> list[tuple[int, int]]:
    """Where code stands in a source, whole words of it: start and end, each time."""
    # Let a match neither start nor end within a name
    pattern = re.sub(r"^(?=\w)", r"\\b", re.escape(old))
    pattern = re.sub(r"(?<=\w)$", r"\\b", pattern)
    return [match.span() for match in re.finditer(pattern, source)]


def replaced(source: str, changes: Changes, where: str) -> str:
    """A definition's source, as `undocumented` writes it, with all changes made.

    Raises ValueError where a text does not stand in it exactly once.
    """
    spans = []
    for old, new in changes:
        found = places(source, plain(old))
        if len(found) != 1:
            raise ValueError(f"{where} has {old!r} {len(found)} times")
        spans.append((*found[0], new))
    # Begin at the end, so that what comes before stays where it is
    for start, end, new in sorted(spans, reverse=True):
        source = source[:start] + new + source[end:]
    return source


def broken_definition(source: str, patch: Patch) -> ast.stmt:
    """The definition of a module's source that a patch breaks.

    Raises ValueError where what it replaces does not stand in the source exactly once.
    """
    (old, _), *_ = patch.changes
    sought, nodes = plain(old), ast.parse(source).body
    found = [node for node in nodes for _ in places(undocumented(node), sought)]
    if len(found) != 1:
        raise ValueError(f"{patch.target} has {old!r} {len(found)} times")
    return found[0]


def patched_source(source: str, patch: Patch) -> str:
    """A module's source with a patch in it; all but the broken definition as it was.

    Raises ValueError where what is replaced does not stand there exactly once.
    """
    node = broken_definition(source, patch)
    lines = source.splitlines(keepends=True)
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))])
    broken = replaced(undocumented(node), patch.changes, patch.target)
    return "".join([*lines[: first - 1], broken + "\n", *lines[node.end_lineno :]])


# Functions


def patched(function: Callable, *changes: tuple[str, str]) -> Callable:
    """A function with changes made in its source, in the namespace of its module.

    Raises ValueError where what is replaced does not stand there exactly once.
    """
    own = inspect.unwrap(function)
    where = f"{own.__module__}.{own.__name__}"
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(own))).body
    source, made = replaced(undocumented(node), changes, where), {}
    # Leave annotations as the package's modules do, unread
    flags = __future__.annotations.compiler_flag
    code = compile(source, f"<patched {where}>", "exec", flags, dont_inherit=True)
    exec(code, own.__globals__, made)
    return made[own.__name__]


def target_of(patch: Patch) -> Callable:
    """The function of the package that a patch breaks, by its target "module.name"."""
    module, _, name = patch.target.rpartition(".")
    return getattr(importlib.import_module(f"posttrain.{module}"), name)


@contextmanager
def running_with(patch: Patch) -> Iterator[None]:
    """Within the block, the package runs with a patch in it; as `in_place_of`."""
    own = target_of(patch)
    with in_place_of(own, patched(own, *patch.changes)):
        yield


@contextmanager
def in_place_of(own: Callable, function: Callable) -> Iterator[None]:
    """Within the block, the package runs with a function in the place of its own.

    Afterwards, even after an error, the book's own is back. Stored stages and other
    processes know that one alone: asking for them within the block raises RuntimeError.
    """
    name = own.__name__

    def refuse(*arguments, **options):
        raise RuntimeError(
            f"{name} is plugged in, and stored stages and other processes have the "
            "book's own: load the models before this block, and train in it with "
            "ppo_steps and the like"
        )

    before = getattr(sys.modules[own.__module__], name)
    exchanged = [
        (name, before, function),
        ("obtain", store.obtain, refuse),
        ("start_workers", workers.start_workers, refuse),
    ]
    with patch_attribute.object(workers.Workers, "get", refuse), ExitStack() as stack:
        for called, old, new in exchanged:
            stack.callback(exchange, called, new, old)
            exchange(called, old, new)
        yield


def exchange(name: str, old: Callable, new: Callable) -> None:
    """Put a function in another's place, in each loaded module that has it by name.

    The exercises' own keep what they have, to grade by.
    """
    for home, module in list(sys.modules.items()):
        if home.startswith("posttrain.") and not home.startswith("posttrain.practice"):
            if vars(module).get(name) is old:
                setattr(module, name, new)
