"""The code that a number depends on: which definitions run, their hash, and whether they do run.

A definition is a function, a class or a constant of the package. One of them depends on all
that it names, through every module, and on nothing else. What only tells (docstrings, comments,
messages) does not count; what only keeps or shows (SILENT) is not followed; of what hands on
the data (HANDING) the files count, and not the code.
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
HANDING = ("data.corpus", "data.datasets", "data.standin")  # modules that hand on what is in files
TELLING = ("log", "warnings", "print", "progress")  # calls of these alone on a line only tell

Place = tuple[str, str]  # module, name


@dataclass(frozen=True)
class Module:
    """A module's definitions by name, what its names are imported from, and its other lines."""

    definitions: dict[str, ast.stmt]
    imports: dict[str, Place]  # name here -> (module, name there; "" for the module itself)
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
    """Whether a module is one of the package's folders or modules of these names, or in one."""
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
    """The parts of a module's source."""
    definitions, imports, others = {}, {}, []
    for node in ast.parse(source).body:
        names = list(bound(node))
        imports |= imported(node)
        definitions |= dict.fromkeys(names, node)
        if not names and not isinstance(node, (ast.Import, ast.ImportFrom)):
            others.append(node)
    return Module(definitions, imports, tuple(others))


def bound(node: ast.stmt) -> Iterator[str]:
    """The names that a line at the margin defines, those in its branches included."""
    if isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.AsyncFunctionDef)):
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
            found |= {a.asname: (a.name, "") for a in part.names if a.asname}
        elif isinstance(part, ast.ImportFrom) and part.module:
            for alias in part.names:
                whole = f"{part.module}.{alias.name}"
                place = (whole, "") if file_of(whole) else (part.module, alias.name)
                found[alias.asname or alias.name] = place
    return found


def named(node: ast.AST, module: Module) -> Iterator[Place]:
    """What a definition names: (module, name), with "" for its own module, or for all of one."""
    imports, seen = module.imports | imported(node), set()
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
            home, name = imports.get(part.value.id, ("", ""))
            if home and not name:
                seen.add(part.value)
                yield home, part.attr
        elif isinstance(part, ast.Name) and part not in seen:
            if part.id in imports:
                yield imports[part.id]
            elif part.id in module.definitions:
                yield "", part.id


def reached(start: Place) -> list[Place]:
    """Every definition of the package that one of them depends on, itself included, sorted.

    Raises ValueError for a name that is not there.
    """
    found: set[Place] = set()
    waiting = [start]
    if file_of(start[0]) is None or start[1] not in read_module(start[0]).definitions:
        raise ValueError(f"{start[0]} has no definition {start[1]!r} whose code could be read")
    while waiting:
        home, name = place = waiting.pop()
        if place in found or file_of(home) is None or within(home, SILENT):
            continue
        module = read_module(home)
        if not name:
            # Take all of a module that is handed on whole
            waiting += [(home, each) for each in module.definitions]
            continue
        if name in module.imports and name not in module.definitions:
            waiting.append(module.imports[name])
            continue
        if name not in module.definitions:
            continue
        found.add(place)
        source = source_of(home)
        places = [(there or home, what) for there, what in names_in(source, name)]
        # Look for data files alone in what hands them on
        handing = within(home, HANDING)
        waiting += [each for each in places if not handing or within(each[0], HANDING)]
    return sorted(found)


@functools.cache
def names_in(source: str, name: str) -> tuple[Place, ...]:
    """What a definition, and the loose lines of its module, name; as `named`."""
    module = parsed(source)
    lines = (without_talk(module.definitions[name]), *module.others)
    return tuple(place for line in lines for place in named(line, module))


def without_talk(node: ast.AST) -> ast.AST:
    """A copy of a definition without what only tells: docstrings, messages, annotations."""
    return Quiet().visit(ast.parse(ast.unparse(node)).body[0])


class Quiet(ast.NodeTransformer):
    """Leave out what changes no number."""

    def visit_body(self, node):
        self.generic_visit(node)
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_ClassDef = visit_body

    def visit_FunctionDef(self, node):
        node.returns = None
        return self.visit_body(node)

    def visit_arg(self, node):
        node.annotation = None
        return node

    def visit_Raise(self, node):
        # Keep the kind of error, and not what it says
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=error and ast.Name(ast.unparse(error)), cause=None)

    def visit_Expr(self, node):
        call = node.value
        if isinstance(call, ast.Constant):
            return ast.Pass()
        if isinstance(call, ast.Call):
            first = call.func.value if isinstance(call.func, ast.Attribute) else call.func
            if isinstance(first, ast.Name) and first.id in TELLING:
                return ast.Pass()
        return self.generic_visit(node)


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
def text_of(source: str, name: str) -> str:
    """What a definition does, and its module's loose lines, as text; talk does not change it."""
    module = parsed(source)
    return repr([outline(without_talk(n)) for n in (module.definitions[name], *module.others)])


def data_files(places: list[Place]) -> list[Path]:
    """The package's data files that some definitions name."""
    names = {text for home, name in places for text in said_in(source_of(home), name)[1]}
    files = (PACKAGE / DATA).rglob("*")
    return sorted(p for p in files if p.name in names and p.suffix not in ("", ".py"))


@functools.cache
def said_in(source: str, name: str) -> tuple[frozenset[str], frozenset[str]]:
    """The names and the texts that stand in a definition."""
    parts = list(ast.walk(parsed(source).definitions[name]))
    names = (part.id for part in parts if isinstance(part, ast.Name))
    values = (part.value for part in parts if isinstance(part, ast.Constant))
    return frozenset(names), frozenset(value for value in values if isinstance(value, str))


def place_of(function: Callable) -> Place:
    """Where a function is defined; for one within another, the outer one counts."""
    return function.__module__, function.__qualname__.split(".")[0]


def code_key(function: Callable, with_data: bool = False) -> str:
    """A hash of all the code of this package that a function runs.

    with_data: and of the package's data files that it names. Raises ValueError for a function
    that is not of this package.
    """
    digest, places = hashlib.sha256(), reached(place_of(function))
    for home, name in places:
        if not within(home, HANDING):
            source = source_of(home)
            digest.update(f"{home}.{name}\0{text_of(source, name)}\0".encode())
    for path in data_files(places) if with_data else ():
        digest.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}".encode())
    return digest.hexdigest()


# The code that is loaded, and the code on disk


def changed(function: Callable) -> list[str]:
    """Names of what a function runs that is not what the files say: edited, or replaced.

    That is code which was imported before its file was changed, a function that another was
    put in place of, and a constant that was set by hand.
    """
    places = [p for p in reached(place_of(function)) if not within(p[0], HANDING)]
    return [f"{home}.{name}" for home, name in places if differs(home, name)]


def differs(home: str, name: str) -> bool:
    """Whether a loaded definition is not the one in its file, or goes by another's name."""
    module = sys.modules.get(home)
    if module is None:
        return False
    here, loaded, source = read_module(home), vars(module).get(name), source_of(home)
    for alias in said_in(source, name)[0] & here.imports.keys():
        there, what = here.imports[alias]
        if what and file_of(there) and there in sys.modules:
            if vars(module).get(alias) is not vars(sys.modules[there]).get(what):
                return True
    if isinstance(loaded, (types.FunctionType, type)) or callable(loaded):
        return not same_code(unwrapped(loaded), compiled(source, str(file_of(home))), name)
    node = here.definitions[name]
    if not isinstance(getattr(node, "targets", [None])[0], ast.Name):
        return False
    try:
        return ast.literal_eval(node.value) != loaded
    except ValueError:
        return False  # not a plain value


def unwrapped(loaded: object) -> object:
    """A function without its decorators, such as `torch.no_grad`."""
    while hasattr(loaded, "__wrapped__"):
        loaded = loaded.__wrapped__
    return loaded


@functools.cache
def compiled(source: str, path: str) -> dict[str, types.CodeType]:
    """The code of every function and method in a module's source, by its qualified name."""
    found: dict[str, types.CodeType] = {}

    def collect(code: types.CodeType, prefix: str) -> None:
        for part in code.co_consts:
            if isinstance(part, types.CodeType):
                found[f"{prefix}{part.co_name}"] = part
                collect(part, f"{prefix}{part.co_name}.")

    collect(compile(source, path, "exec", dont_inherit=True), "")
    return found


def same_code(loaded: object, on_disk: dict[str, types.CodeType], name: str) -> bool:
    """Whether a loaded function, or each method of a loaded class, is what its file says."""
    if isinstance(loaded, type):
        methods = {f"{name}.{key}": method_of(value) for key, value in vars(loaded).items()}
        known = [key for key in on_disk if key.startswith(f"{name}.") and key.count(".") == 1]
        return loaded.__name__ == name and all(
            key in methods and same_code(methods[key], on_disk, key)
            for key in known if "<" not in key
        )  # fmt: skip
    code = getattr(loaded, "__code__", None)
    return code is None or (name in on_disk and facts(code) == facts(on_disk[name]))


def method_of(value: object) -> object:
    """What a class keeps under a name, as a plain function where it is one underneath."""
    value = getattr(value, "fget", None) or getattr(value, "__func__", value)
    return unwrapped(value)


def facts(code: types.CodeType) -> tuple:
    """What a function's code does, without its docstring and where it stands."""
    constants = list(code.co_consts)
    documented = sys.version_info < (3, 13) or code.co_flags & 0x4000000  # CO_HAS_DOCSTRING
    if constants and documented and not code.co_name.startswith("<"):
        constants.pop(0)
    inner = tuple(facts(c) if isinstance(c, types.CodeType) else repr(c) for c in constants)
    return code.co_code, inner, code.co_names, code.co_varnames, code.co_argcount
