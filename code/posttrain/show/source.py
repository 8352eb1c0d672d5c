"""The package's source, as a page shows it."""

from __future__ import annotations

import ast
import difflib
import inspect
import textwrap
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


class Listing:
    """Source code that a page, JupyterLab and a terminal each show in their own way."""

    def __init__(self, code: str):
        self.code = code

    def _repr_markdown_(self) -> str:
        return f"```python\n{self.code}\n```"

    def __repr__(self) -> str:
        return self.code


def show_source(*names: str | object) -> Listing:
    """The source of functions and classes, named from the package on: "dpo.dpo_loss".

    A name is read from the file that defines it, and nothing is imported; an object
    gives the source that was imported. Of each docstring the first paragraph is shown:
    the page says the rest, and so does `help`. Raises ValueError for a name of nothing.
    """
    sources = (
        source_of(name) if isinstance(name, str) else inspect.getsource(name)
        for name in names
    )
    return Listing("\n\n\n".join(brief(textwrap.dedent(text)) for text in sources))


def brief(source: str) -> str:
    """Source with the first paragraph of each docstring; all else as it stands."""
    lines, kinds = source.rstrip().splitlines(), (ast.FunctionDef, ast.ClassDef)
    documented = [
        node.body[0]
        for node in ast.walk(ast.parse(source))
        if isinstance(node, kinds) and ast.get_docstring(node, clean=False)
    ]
    # Begin at the end, so that what comes before stays where it is
    for text in sorted(documented, key=lambda node: -node.lineno):
        first, last = text.lineno - 1, text.end_lineno
        blank = next((i for i in range(first, last) if not lines[i].strip()), None)
        if blank is not None:
            closing = f'{lines[blank - 1]}"""'
            indent = lines[last - 1][: -len('"""')]
            fits = (
                [closing] if len(closing) <= 88 else [lines[blank - 1], f'{indent}"""']
            )
            lines[blank - 1 : last] = fits
    return "\n".join(lines)


def source_of(name: str) -> str:
    """The lines of a function, a class or a method, its decorators included."""
    path, *inner = module_file(name)
    text = path.read_text(encoding="utf-8")
    node = definition(ast.parse(text), inner, name)
    first = min([node.lineno, *(each.lineno for each in node.decorator_list)])
    return "".join(text.splitlines(keepends=True)[first - 1 : node.end_lineno])


def module_file(name: str) -> tuple[Path, ...]:
    """The module's file, and the names left over: "quantize" of "lora.nf4.quantize"."""
    folder, parts = PACKAGE, name.split(".")
    while len(parts) > 1 and parts[0] and (folder / parts[0]).is_dir():
        folder /= parts.pop(0)
    path = folder / f"{parts[0]}.py"
    if len(parts) < 2 or not path.is_file():
        raise ValueError(
            f'there is nothing to show as "{name}": name a function or class by its '
            'module, from the package on, as in "dpo.dpo_loss"'
        )
    return path, *parts[1:]


def definition(node: ast.AST, inner: list[str], name: str) -> ast.AST:
    """The node that the names lead to, through classes to their methods."""
    for part in inner:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        known = {each.name: each for each in node.body if isinstance(each, kinds)}
        if part not in known:
            close = difflib.get_close_matches(part, known, n=1)
            instead = f'; did you mean "{close[0]}"?' if close else ""
            raise ValueError(f'"{name}": its module defines no {part}{instead}')
        node = known[part]
    return node
