"""The code that a number depends on: what runs, its hash, and whether it is on disk.

A definition is a function, a class or a constant of the package. One of them depends on
all that it names, through every module, and on nothing else. What only tells does not
count: docstrings, comments, messages. What only keeps or shows (SILENT) is not
followed; of what hands on the data (HANDING) the files count, and not the code.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
DATA = "data"  # the folder of the package whose files count by what is in them
SILENT = ("keep", "show", "cli")  # folders of the package in which nothing is computed
HANDING = ("data.corpus", "data.datasets", "data.standin")  # hand on what is in files
TELLING = ("log", "warnings", "print", "progress")  # calls alone on a line only tell
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)

Place = tuple[str, str]  # module, name


@dataclass(frozen=True)
class Module:
    """A module's definitions by name, where its imports come from, its other lines."""

    definitions: dict[str, list[ast.stmt]]  # all lines at the margin that bind a name
    imports: dict[str, Place]  # module and name there; no name for the module itself
    others: tuple[ast.stmt, ...]


def file_of(module: str) -> Path | None:
    """The source file of a module of this package; None for any other module."""
    first, *rest = module.split(".")
    if first != PACKAGE.name:
        return None
    path = PACKAGE.joinpath(*rest)
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def within(module: str, names: tuple[str, ...]) -> bool:
    """Whether a module is one of these folders or modules of the package, or in one."""
    return any(f"{module}.".startswith(f"{PACKAGE.name}.{name}.") for name in names)


def source_of(module: str) -> str:
    """The source of a module of this package as it is on disk."""
    path = file_of(module)
    stat = path.stat()
    return text_at(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=512)
def text_at(path: Path, changed: int, size: int) -> str:
    """A file's text as it was when it had been changed at that time."""
    return path.read_text(encoding="utf-8")


def read_module(module: str) -> Module:
    """A module of this package as it is on disk."""
    return parsed(source_of(module))


@functools.cache
def parsed(source: str) -> Module:
    """The parts of a module's source, without what only tells."""
    definitions: dict[str, list[ast.stmt]] = {}
    imports, others = {}, []
    for node in Quiet().visit(ast.parse(source)).body:
        names = list(bound(node))
        for name in names:
            definitions.setdefault(name, []).append(node)
        if not isinstance(node, (*FUNCTION, ast.ClassDef)):
            imports |= imported(node)
        if not names and not isinstance(node, (ast.Import, ast.ImportFrom)):
            others.append(node)
    return Module(definitions, imports, tuple(others))


class Quiet(ast.NodeTransformer):
    """Leave out what changes no number: texts alone, messages, annotations."""

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.generic_visit(node)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_AnnAssign(self, node):
        node.annotation = ast.Constant(None)
        return self.generic_visit(node)

    def visit_Raise(self, node):
        # Keep the kind of error, and not what it says
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=error, cause=None)

    def visit_Assert(self, node):
        node.msg = None
        return self.generic_visit(node)

    def visit_JoinedStr(self, node):
        # Python 3.12.1 ends a format that is computed with an empty text
        node.values = [part for part in node.values if getattr(part, "value", 0) != ""]
        return self.generic_visit(node)

    def visit_Pass(self, node):
        return None

    def visit_If(self, node):
        # Nothing is computed for a type checker, and no program is imported
        names = {part.id for part in ast.walk(node.test) if isinstance(part, ast.Name)}
        alone = not node.orelse and names in ({"__name__"}, {"TYPE_CHECKING"})
        return None if alone else self.generic_visit(node)

    def visit_Expr(self, node):
        call = node.value
        if isinstance(call, ast.Constant):
            return None
        if isinstance(call, ast.Call):
            first = (
                call.func.value if isinstance(call.func, ast.Attribute) else call.func
            )
            if isinstance(first, ast.Name) and first.id in TELLING:
                return None
        return self.generic_visit(node)


def bound(node: ast.stmt) -> Iterator[str]:
    """The names that a line at the margin defines, those in its branches included."""
    if isinstance(node, (*FUNCTION, ast.ClassDef)):
        yield node.name
    elif isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            yield from (n.id for n in ast.walk(target) if isinstance(n, ast.Name))
    elif isinstance(node, (ast.If, ast.Try)):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from bound(child)
            elif isinstance(child, ast.ExceptHandler):
                for line in child.body:
                    yield from bound(line)


def imported(node: ast.stmt) -> dict[str, Place]:
    """What the imports in a line bring: name here -> (module, name there)."""
    found = {}
    for part in ast.walk(node):
        if isinstance(part, ast.Import):
            for alias in part.names:
                # `import a.b` brings the name a
                whole = alias.name if alias.asname else alias.name.split(".")[0]
                found[alias.asname or whole] = (whole, "")
        elif isinstance(part, ast.ImportFrom) and part.module:
            for alias in part.names:
                whole = f"{part.module}.{alias.name}"
                place = (whole, "") if file_of(whole) else (part.module, alias.name)
                found[alias.asname or alias.name] = place
    return found


def named(node: ast.AST, module: Module) -> Iterator[Place]:
    """What a line names: (module, name), "" for its own module, or for all of one."""
    imports, seen = module.imports | imported(node), set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and part not in seen:
            root, names = chain_of(part)
            home, name = imports.get(getattr(root, "id", None), ("", ""))
            if home and not name:
                # Follow `a.b.c` as far as there are modules
                while len(names) > 1 and file_of(f"{home}.{names[0]}"):
                    home = f"{home}.{names.pop(0)}"
                seen |= set(ast.walk(part))
                yield home, names[0]
        elif isinstance(part, ast.Name) and part not in seen:
            if part.id in imports:
                yield imports[part.id]
            elif part.id in module.definitions:
                yield "", part.id


def chain_of(part: ast.Attribute) -> tuple[ast.expr, list[str]]:
    """For `a.b.c`: what a is, and the names b and c."""
    names = [part.attr]
    while isinstance(part.value, ast.Attribute):
        part = part.value
        names.insert(0, part.attr)
    return part.value, names


def reached(start: Place) -> list[Place]:
    """Every definition of the package that one of them depends on, itself included.

    Sorted. Raises ValueError for a name that is not there.
    """
    if file_of(start[0]) is None or start[1] not in read_module(start[0]).definitions:
        raise ValueError(
            f"{start[0]} has no definition {start[1]!r} whose code could be read"
        )
    found, seen, waiting = [], set(), [start]
    while waiting:
        home, name = place = waiting.pop()
        if place in seen or file_of(home) is None or within(home, SILENT):
            continue
        seen.add(place)
        module = read_module(home)
        if not name:
            # Take all of a module that is handed on whole
            waiting += [(home, each) for each in module.definitions]
        elif file_of(f"{home}.{name}"):
            waiting.append((f"{home}.{name}", ""))
        if name in module.imports:
            waiting.append(module.imports[name])
        if name not in module.definitions:
            continue
        found.append(place)
        places = [
            (there or home, what) for there, what in names_in(source_of(home), name)
        ]
        # Look for data files alone in what hands them on
        handing = within(home, HANDING)
        waiting += [each for each in places if not handing or within(each[0], HANDING)]
    return sorted(found)


@functools.cache
def names_in(source: str, name: str) -> tuple[Place, ...]:
    """What a definition, and the loose lines of its module, name; as `named`."""
    module = parsed(source)
    lines = (*module.definitions[name], *module.others)
    return tuple(place for line in lines for place in named(line, module))


def outline(node: object) -> object:
    """A syntax tree as nested lists, the same under every version of Python."""
    if isinstance(node, ast.AST):
        fields = [(name, outline(value)) for name, value in ast.iter_fields(node)]
        skipped = ("type_comment", "type_params", "kind", "ctx")
        kept = [f for f in fields if f[0] not in skipped and f[1] not in (None, [])]
        return [type(node).__name__, *sorted(kept)]
    if isinstance(node, list):
        return [outline(item) for item in node]
    return node if node is None else repr(node)


@functools.cache
def text_of(source: str, name: str) -> str | None:
    """What a definition, and its module's loose lines, do; None if it is not there."""
    module = parsed(source)
    if name not in module.definitions:
        return None
    return repr([outline(line) for line in (*module.definitions[name], *module.others)])


def data_files(places: list[Place]) -> list[Path]:
    """The package's data files that some definitions name."""
    names = {
        text for home, name in places for text in said_in(source_of(home), name)[1]
    }
    files = (PACKAGE / DATA).rglob("*")
    return sorted(p for p in files if p.name in names and p.suffix not in ("", ".py"))


@functools.cache
def said_in(source: str, name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names and the texts that stand in a definition."""
    lines = parsed(source).definitions[name]
    parts = [part for line in lines for part in ast.walk(line)]
    names = (part.id for part in parts if isinstance(part, ast.Name))
    values = (part.value for part in parts if isinstance(part, ast.Constant))
    return frozenset(names), frozenset(
        value for value in values if isinstance(value, str)
    )


def place_of(function: Callable) -> Place:
    """Where a function is defined; for one within another, the outer one counts."""
    return function.__module__, function.__qualname__.split(".")[0]


def counted(function: Callable) -> list[Place]:
    """The definitions whose code counts in a function's key."""
    return [p for p in reached(place_of(function)) if not within(p[0], HANDING)]


def code_key(function: Callable, with_data: bool = False) -> str:
    """A hash of all the code of this package that a function runs.

    with_data: and of the package's data files that it names. Raises ValueError for a
    function that is not of this package.
    """
    digest = hashlib.sha256()
    for home, name in counted(function):
        digest.update(f"{home}.{name}\0{text_of(source_of(home), name)}\0".encode())
    for path in data_files(reached(place_of(function))) if with_data else ():
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.name}\0{content}".encode())
    return digest.hexdigest()


# The code that is loaded, and the code on disk


def sources() -> dict[Path, str]:
    """The text of every module of the package, by its file."""
    return {path: path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}


STARTED = sources()  # read before any other module of the package is loaded


def changed(function: Callable) -> list[str]:
    """What a function runs that is not what the files say: edited, or replaced.

    That is code whose file was changed since this process started, a function or class
    that another was put in place of, and a constant that was set by hand.
    """
    places = [(home, name) for home, name in counted(function) if home in sys.modules]
    return [f"{h}.{n}" for h, n in places if is_edited(h, n) or is_replaced(h, n)]


def at_start(home: str) -> str:
    """A module's source as it was when this process started."""
    return STARTED.get(file_of(home), source_of(home))


def is_edited(home: str, name: str) -> bool:
    """Whether a definition in the file is another than when this process started."""
    now, before = source_of(home), at_start(home)
    return now != before and text_of(now, name) != text_of(before, name)


def is_replaced(home: str, name: str) -> bool:
    """Whether a name in a loaded module, or an import it uses, is something else."""
    module, source = vars(sys.modules[home]), at_start(home)
    here = parsed(source)
    for alias in said_in(source, name)[0] & here.imports.keys() & module.keys():
        there, what = here.imports[alias]
        if file_of(there) and there in sys.modules:
            original = sys.modules[there]
            original = getattr(original, what, None) if what else original
            if module[alias] is not original:
                return True
    lines, loaded = here.definitions[name], module.get(name)
    if isinstance(lines[0], (*FUNCTION, ast.ClassDef)):
        # A module that was loaded later than this one has what its file said then
        known = (compiled(text) for text in {source, source_of(home)})
        return not any(is_same(loaded, lines[-1], each) for each in known)
    constant = literal(lines[0], name) if len(lines) == 1 else None
    if constant is None:
        return False
    return type(constant) is not type(loaded) or constant != loaded


def literal(line: ast.stmt, name: str) -> object:
    """The plain value that a line gives to a name; None where it is not a plain one."""
    if not isinstance(line, (ast.Assign, ast.AnnAssign)):
        return None
    target = line.targets[0] if isinstance(line, ast.Assign) else line.target
    value = line.value
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        names = [ast.unparse(each) for each in target.elts]
        target, value = ast.Name(name), value.elts[names.index(name)]
    try:
        return ast.literal_eval(value) if isinstance(target, ast.Name) else None
    except (ValueError, TypeError):
        return None


@functools.cache
def compiled(source: str) -> dict[str, list[types.CodeType]]:
    """The code of every function, class and method in a source, by qualified name."""
    found: dict[str, list[types.CodeType]] = {}

    def collect(code: types.CodeType, prefix: str) -> None:
        for part in code.co_consts:
            if isinstance(part, types.CodeType):
                found.setdefault(f"{prefix}{part.co_name}", []).append(part)
                collect(part, f"{prefix}{part.co_name}.")

    collect(compile(source, "", "exec", dont_inherit=True), "")
    return found


def is_same(
    loaded: object, line: ast.stmt, known: dict[str, list[types.CodeType]], of: str = ""
) -> bool:
    """Whether a loaded function, or each method of a loaded class, is what a line says.

    of: the class that it is in, and a dot.
    """
    if isinstance(line, ast.ClassDef):
        inner = [p for p in line.body if isinstance(p, (*FUNCTION, ast.ClassDef))]
        return getattr(loaded, "__qualname__", None) == f"{of}{line.name}" and all(
            is_same(vars(loaded).get(each.name), each, known, f"{of}{line.name}.")
            for each in inner
        )
    # PyTorch wraps an optimiser's step when the first one is made
    while decorated(loaded) is not None and is_torchs(loaded):
        loaded = decorated(loaded)
    for _ in line.decorator_list:
        inner = decorated(loaded)
        loaded = loaded if inner is None else inner
    if decorated(loaded) is not None:
        return False
    return getattr(loaded, "__code__", None) in known.get(f"{of}{line.name}", [])


def is_torchs(value: object) -> bool:
    """Whether a function is a wrapper that PyTorch has put round another."""
    home = getattr(value, "__globals__", {}).get("__name__", "")
    return home.partition(".")[0] == "torch"


def decorated(value: object) -> object:
    """What a decorator or a method's descriptor is wrapped around, or None."""
    for inner in ("fget", "__func__", "__wrapped__"):
        if not isinstance(value, type) and hasattr(value, inner):
            return getattr(value, inner)
    return None
