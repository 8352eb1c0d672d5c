"""`make tangle`: one script per stage, out of the functions that the pages show.

`tangled/sft.py` and its like need PyTorch and nothing else: no package, no store, no
checks of what they are given. They are made of templates in `book/_tangled/`, in which
`# <<dpo.dpo_loss, logprobs.pack>>` stands for these functions, and
`# <<config = dpo.DPOConfig: steps, lr; beta>>` for these defaults, a line for each
group, and `# <<< say >>>` for `book/_tangled/parts/say.py`, which several scripts
share. Annotations and refusals go, of docstrings the first sentence stays, and what the
book's recipe does not use is put away by the template's own lines: `# put: old -> new`,
`# without: parameters`, `# drop: how a statement begins`, in all functions, or as
`# put in ppo.pick: ...` in one. Comments stay.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import tokenize
from dataclasses import fields
from importlib import import_module
from pathlib import Path

import house

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = ROOT / "book" / "_tangled"
PART = re.compile(r"^# <<< (.+) >>>\n", re.MULTILINE)
CHUNK = re.compile(r"^# <<(.+)>>\n", re.MULTILINE)
OPTIONS = re.compile(r"^# (put|without|drop)(?: in ([\w.]+))?: (.*)\n", re.MULTILINE)
WIDTH = 100


class Tangled(ast.NodeTransformer):
    """Source without annotations, refusals, and what the options fold away.

    put: expressions and statements as text, and what takes their place. without: names
    of parameters that nothing is given for. drop: how statements and comments begin
    that are left out.
    """

    def __init__(self, put: dict[str, str], without: set[str], drop: list[str]):
        self.put, self.without, self.drop = put, without, drop

    def visit(self, node: ast.AST) -> ast.AST | list | None:
        stored = isinstance(getattr(node, "ctx", None), ast.Store)
        if isinstance(node, (ast.expr, ast.stmt)) and not stored:
            text = ast.unparse(node)
            if text in self.put:
                (new,) = ast.parse(self.put[text]).body
                new = new if isinstance(node, ast.stmt) else new.value
                return ast.copy_location(new, node)
            if isinstance(node, ast.stmt) and text.startswith(tuple(self.drop)):
                return None
        return super().visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        node.returns = None
        arguments, defaults = node.args, node.args.defaults
        first = len(arguments.args) - len(defaults)
        kept = [
            (each, defaults[i - first] if i >= first else None)
            for i, each in enumerate(arguments.args)
            if each.arg not in self.without
        ]
        arguments.args = [each for each, _ in kept]
        arguments.defaults = [default for _, default in kept if default is not None]
        pairs = zip(arguments.kwonlyargs, arguments.kw_defaults)
        both = [pair for pair in pairs if pair[0].arg not in self.without]
        arguments.kwonlyargs = [each for each, _ in both]
        arguments.kw_defaults = [default for _, default in both]
        every = [*arguments.args, *arguments.kwonlyargs]
        for each in (*every, arguments.vararg, arguments.kwarg):
            if each is not None:
                each.annotation = None
        shorten_docstring(node)
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.ClassDef:
        shorten_docstring(node)
        if node.decorator_list:
            return node  # a dataclass needs its annotations
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        node = self.generic_visit(node)
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        documents = isinstance(node.value, ast.Constant)
        node = self.generic_visit(node)
        folded = isinstance(node.value, ast.Constant) and not documents
        return None if folded else node

    def visit_Call(self, node: ast.Call) -> ast.Call:
        node.args = [
            each
            for each in node.args
            if not (isinstance(each, ast.Name) and each.id in self.without)
        ]
        node.keywords = [
            each
            for each in node.keywords
            if each.arg not in self.without
            and not (isinstance(each.value, ast.Name) and each.value.id in self.without)
        ]
        return self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | list | None:
        node = self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse or None
        refuses = [isinstance(each, ast.Raise) for each in node.body] == [True]
        return None if refuses and not node.orelse else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        node = self.generic_visit(node)
        if isinstance(node.test, ast.Constant):
            return node.body if node.test.value else node.orelse
        return node

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        node = self.generic_visit(node)
        neutral = isinstance(node.op, ast.And)
        fixed = [x.value for x in node.values if isinstance(x, ast.Constant)]
        if (not neutral) in fixed:
            return ast.copy_location(ast.Constant(not neutral), node)
        node.values = [x for x in node.values if not isinstance(x, ast.Constant)]
        return node.values[0] if len(node.values) == 1 else node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        node = self.generic_visit(node)
        if isinstance(node.op, ast.Not) and isinstance(node.operand, ast.Constant):
            return ast.copy_location(ast.Constant(not node.operand.value), node)
        return node


def shorten_docstring(node: ast.FunctionDef | ast.ClassDef) -> None:
    """Leave the first sentence of a docstring, up to a colon where it is too long."""
    text = ast.get_docstring(node)
    if text is None:
        return
    if len(node.body) > 1:
        text = house.first_sentence(text)
        if node.body[0].col_offset + len(f'"""{text}"""') > WIDTH:
            text = f"{text.partition(':')[0].rstrip('.')}."
        node.body[0].value = ast.Constant(text)


class Comments:
    """A source's comments by line: alone on it, with its column, or at its end."""

    def __init__(self, source: str, drop: list[str]):
        self.alone: dict[int, tuple[int, str]] = {}
        self.trailing: dict[int, str] = {}
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                line, column = token.start
                if token.line[:column].strip():
                    self.trailing[line] = token.string
                elif not token.string.startswith(tuple(drop)):
                    self.alone[line] = column, token.string

    def above(self, node: ast.stmt, after: int) -> list[str]:
        """The comment over a statement, or over what was left out right before it.

        after: the line on which the statement before it ends.
        """
        found: dict[int, str] = {}
        for line in range(after + 1, node.lineno):
            column, text = self.alone.get(line, (None, ""))
            if text and column <= node.col_offset:
                found = {**(found if line - 1 in found else {}), line: text}
        return list(found.values())

    def beside(self, node: ast.stmt, text: str) -> str:
        """The shapes at a statement's end, or else a remark, where it fits."""
        found = [
            self.trailing[line]
            for line in range(node.lineno, node.end_lineno + 1)
            if line in self.trailing
        ]
        shapes = [each for each in found if each.startswith("# (")]
        remarks = [
            each for each in found if node.col_offset + len(f"{text}  {each}") <= WIDTH
        ]
        return f"  {(shapes or remarks)[-1]}" if shapes or remarks else ""


def write_out(body: list[ast.stmt], comments: Comments, after: int = 0) -> list[str]:
    """Statements as lines, each with the comments that stand before it and after it.

    after: the line after which the statements begin.
    """
    lines = []
    for node in body:
        lines += comments.above(node, after)
        lines += statement(node, comments)
        after = node.end_lineno
    return lines


def statement(node: ast.stmt, comments: Comments) -> list[str]:
    """One statement as lines, those within it indented."""
    blocks = [name for name in ("body", "orelse") if getattr(node, name, None)]
    if not blocks or isinstance(node, ast.Expr):
        text = written(node)
        return [text + comments.beside(node, text)]
    held = {name: getattr(node, name) for name in blocks}
    node.body, node.orelse = [ast.Pass()], []
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.With)):
        del node.orelse
    head = ast.unparse(node).splitlines()[:-1]
    lines = head + indented(write_out(held["body"], comments, node.lineno))
    if "orelse" in held:
        inner = write_out(held["orelse"], comments, held["body"][-1].end_lineno)
        chained = isinstance(node, ast.If) and inner[0].startswith("if ")
        if chained and len(held["orelse"]) == 1:
            lines += ["el" + inner[0], *inner[1:]]
        else:
            lines += ["else:", *indented(inner)]
    return lines


def indented(lines: list[str]) -> list[str]:
    return [f"    {line}" for line in lines]


def written(node: ast.stmt) -> str:
    """A simple statement as text, without brackets that nobody would write."""
    value = getattr(node, "value", None)
    if isinstance(node, ast.Expr) and isinstance(value, ast.Constant):
        return f'"""{value.value}"""'
    text = ast.unparse(node)
    for call in ast.walk(node):
        alone = isinstance(call, ast.Call) and len(call.args) == 1 and not call.keywords
        if alone and isinstance(call.args[0], ast.GeneratorExp):
            inner = ast.unparse(call.args[0])
            text = text.replace(f"({inner})", inner)
    value = value.value if isinstance(value, ast.Yield) else value
    if isinstance(value, ast.Tuple) and value.elts:
        bracketed = ast.unparse(value)
        if text.endswith(bracketed):
            text = text.removesuffix(bracketed) + bracketed[1:-1]
    return text


def chunk(name: str, options: tuple) -> str:
    """A function or class of the package, tangled; options: put, without, drop."""
    from posttrain.show.source import source_of

    source = source_of(name)
    tree = Tangled(*options).visit(ast.parse(source))
    ast.fix_missing_locations(tree)
    return "\n".join(write_out(tree.body, Comments(source, options[2]))) + "\n"


def settings(name: str, kind: str) -> str:
    """The defaults of a settings class that are named after a colon.

    A line, or for groups, between which there is a semicolon, a line each.
    """
    kind, _, wanted = kind.partition(": ")
    module, _, inner = kind.rpartition(".")
    found = getattr(import_module(f"posttrain.{module}"), inner)
    defaults = {each.name: each.default for each in fields(found)}
    groups = [
        ", ".join(f"{each}={defaults[each]!r}" for each in group.split(", "))
        for group in wanted.split("; ")
    ]
    if len(groups) == 1:
        return f"{name} = SimpleNamespace({groups[0]})\n"
    lines = [f"{name} = dict({groups[0]})"]
    lines += [f"{name} |= dict({group})" for group in groups[1:]]
    return "\n".join([*lines, f"{name} = SimpleNamespace(**{name})"]) + "\n"


def options_for(name: str, options: list[tuple[str, str, str]]) -> tuple:
    """A template's options for one function: put, without, drop."""
    put, without, drop = {}, set(), []
    for option, place, value in options:
        if place not in ("", name):
            continue
        if option == "put":
            text, _, new = value.rpartition(" -> ")
            put[text] = new
        elif option == "drop":
            drop.append(value)
        else:
            without |= set(value.split(", "))
    return put, without, drop


def tangle(template: str) -> str:
    """A script, out of its template."""
    template = PART.sub(
        lambda found: (TEMPLATES / "parts" / f"{found[1]}.py").read_text("utf-8"),
        template,
    )
    options = OPTIONS.findall(template)

    def filled(found: re.Match) -> str:
        name, sign, kind = found[1].partition(" = ")
        if sign:
            return settings(name, kind)
        return "\n\n".join(
            chunk(each, options_for(each, options)) for each in found[1].split(", ")
        )

    script = CHUNK.sub(filled, OPTIONS.sub("", template))
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "format", "-q", f"--line-length={WIDTH}", "-"],
        input=script,
        capture_output=True,
        text=True,
        check=True,
    )
    # A line between functions is enough to tell them apart, and none within a class
    script = re.sub(r"\n{3,}", "\n\n", done.stdout)
    return re.sub(r"\n\n(?= )", "\n", script)


def main(folder: Path = ROOT / "tangled") -> None:
    folder.mkdir(exist_ok=True)
    for path in sorted(TEMPLATES.glob("*.py")):
        script = tangle(path.read_text(encoding="utf-8"))
        (folder / path.name).write_text(script, encoding="utf-8")
        print(f"tangled/{path.name}: {len(script.splitlines())} lines")


if __name__ == "__main__":
    main()
