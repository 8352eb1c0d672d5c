"""Code keys: what a number depends on changes them, and nothing else does; and whether
the loaded code is what the files say.
"""

import ast
import functools
import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch

from posttrain import optim, stages
from posttrain.keep import code

PARTS = {
    "__init__": '"""A package."""\n',
    "losses": '''
        """What is made small."""

        import logging
        import torch

        from toy.scale import FACTOR, Shape, halved
        from toy.scale import double as twice

        log = logging.getLogger("toy")
        EPSILON = 0.25
        A, B = 1, 2
        TABLE = {"a": 1}
        TABLE |= {"b": 2}
        torch.manual_seed(0)

        def decorate(function):
            return function

        @decorate
        def loss(x, weight=2.0, *, base: float = 1.0):
            """A loss."""
            # Say what is done
            log.info("starting")
            y: float = twice(x)
            if y < 0:
                raise ValueError(f"{y} is below zero")
            assert y > -1, "it is below"
            return weight * y + EPSILON * FACTOR + base + A

        def unrelated(x):
            return x - 5
    ''',
    "scale": '''
        from toy import numbers

        FACTOR = numbers.one() + 2

        def double(x):
            return x * 2

        def halved(x):
            return x / 2

        class Shape:
            """A shape."""

            width: int = 3

            def area(self):
                return self.width * 4

            def unused(self):
                return 7
    ''',
    "numbers": """
        def one():
            return 1

        def many():
            return 1000
    """,
    "loop": '''
        """A loop."""

        import toy.numbers
        from toy import losses, losses as other
        from toy.data.texts import load, rows
        from toy.keep.shelf import put
        from toy.show.plots import draw

        def train(x, progress=None):
            put(x)
            draw(x)
            total = losses.loss(x) + toy.numbers.one() + len(rows())
            return total + other.Shape().area()

        def whole():
            return getattr(losses, "loss")

        if __name__ == "__main__":
            train(2)
    ''',
    "keep/__init__": "",
    "keep/shelf": "def put(x):\n    return x\n",
    "show/__init__": "",
    "show/plots": "def draw(x):\n    return x\n",
    "data/__init__": "",
    "data/texts": """
        def load():
            return 1

        def rows():
            return open("rows.jsonl").read() + load_more("more.txt")

        def load_more(name):
            return name
    """,
}


class Toy:
    """A throwaway package, and the key of its loop's `train`."""

    def __init__(self, root):
        self.root = root
        for name, text in PARTS.items():
            path = root / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))
        for name in ("rows.jsonl", "more.txt", "others.jsonl"):
            (root / "data" / name).write_text(name)

    def edit(self, name, old, new):
        path = self.root / f"{name}.py"
        text = path.read_text()
        assert text.count(old) == 1, (name, old)
        path.write_text(text.replace(old, new))

    def key(self, name="train", **options):
        function = types.SimpleNamespace(__module__="toy.loop", __qualname__=name)
        return code.code_key(function, **options)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "toy")
    monkeypatch.setattr(code, "HANDING", ("data.texts",))
    code.parsed.cache_clear()
    yield Toy(tmp_path / "toy")
    code.parsed.cache_clear()


TALK = {
    "docstring": ("losses", '"""A loss."""', '"""A better\n    word."""'),
    "docstring gone": ("losses", '    """A loss."""\n', ""),
    "docstring of a class": ("scale", '"""A shape."""', '"""The shape."""'),
    "docstring of a module": ("losses", '"""What is made small."""', '"""Losses."""'),
    "docstring of a module gone": ("losses", '"""What is made small."""', ""),
    "comment": ("losses", "# Say what is done", "# Say it\n    # again"),
    "message of a raise": ("losses", "is below zero", "is negative"),
    "other message": ("losses", 'f"{y} is below zero"', '"Bad", 3'),
    "message of an assertion": ("losses", ', "it is below"', ""),
    "log line": ("losses", "starting", "beginning"),
    "log line gone": ("losses", '    log.info("starting")\n', ""),
    "log line more": ("losses", "    if y < 0", "    print(x)\n    if y < 0"),
    "annotation": ("losses", "y: float", "y: int"),
    "annotation of an argument": ("losses", "base: float", "base: int"),
    "annotation of a field": ("scale", "width: int", "width: float"),
    "annotation of a result": ("losses", "base: float = 1.0):", "base=1.0) -> int:"),
    "layout": ("losses", "EPSILON * FACTOR", "(EPSILON\n        * FACTOR)"),
    "notation": ("losses", "2.0", "2.00"),
    "other function": ("losses", "x - 5", "x - 6"),
    "function beside one that is used": ("scale", "x / 2", "x / 3"),
    "function of a module that is used": ("numbers", "1000", "2000"),
    "constant nobody uses": ("losses", 'TABLE = {"a": 1}', 'TABLE = {"a": 2}'),
    "program": ("loop", "train(2)", "train(3)"),
    "import nobody uses": ("losses", "import torch", "import torch, os"),
    "what keeps": ("keep/shelf", "return x", "return x + 1"),
    "what shows": ("show/plots", "return x", "return x + 1"),
    "what hands on data": ("data/texts", "return name", "return name + name"),
}


@pytest.mark.parametrize("edit", TALK.values(), ids=TALK.keys())
def test_what_changes_no_number_changes_no_key(toy, edit):
    before = toy.key()
    toy.edit(*edit)
    assert toy.key() == before


DEEDS = {
    "constant": ("losses", "EPSILON = 0.25", "EPSILON = 0.5"),
    "constant of two": ("losses", "A, B = 1, 2", "A, B = 3, 2"),
    "constant of another module": ("scale", "+ 2", "+ 3"),
    "function behind a constant": ("numbers", "return 1\n", "return 2\n"),
    "default": ("losses", "weight=2.0", "weight=3.0"),
    "default by name": ("losses", "base: float = 1.0", "base: float = 2.0"),
    "operator": ("losses", "weight * y", "weight - y"),
    "condition": ("losses", "y < 0", "y < -1"),
    "kind of error": ("losses", "raise ValueError", "raise TypeError"),
    "assertion": ("losses", "y > -1", "y > -2"),
    "function under another name": ("scale", "x * 2", "x * 3"),
    "what the name stands for": ("losses", "import double as", "import halved as"),
    "method through two modules": ("scale", "self.width * 4", "self.width * 5"),
    "method nobody seems to call": ("scale", "return 7", "return 8"),
    "field": ("scale", "width: int = 3", "width: int = 4"),
    "decorator": ("losses", "@decorate\n", ""),
    "decorator's code": ("losses", "return function", "return lambda: function"),
    "loose line": ("losses", "torch.manual_seed(0)", "torch.manual_seed(1)"),
    "new loose line": ("losses", "A, B = 1, 2", "A, B = 1, 2\nfor i in []:\n    A"),
    "own code": ("loop", "losses.loss(x) +", "losses.loss(x) -"),
}


@pytest.mark.parametrize("edit", DEEDS.values(), ids=DEEDS.keys())
def test_what_changes_a_number_changes_the_key(toy, edit):
    before = toy.key()
    toy.edit(*edit)
    assert toy.key() != before


def test_an_empty_text_counts_except_at_the_end_of_a_format():
    plain, empty = "def f(x):\n    return g(x)\n", "def f(x):\n    return g('', x)\n"
    assert code.text_of(plain, "f") != code.text_of(empty, "f")
    source = "def f(x, form):\n    return f'{x:{form}}'\n"
    # Some versions of Python read an empty text after the computed format
    tree = ast.parse(source)
    computed = tree.body[0].body[0].value.values[0].format_spec.values
    computed[:] = [part for part in computed if not isinstance(part, ast.Constant)]
    computed.append(ast.Constant(""))
    (line,) = code.Quiet().visit(tree).body
    assert repr([code.outline(line)]) == code.text_of(source, "f")


@pytest.mark.parametrize("name", ["losses", "scale", "numbers"])
def test_a_module_handed_on_whole_counts_whole(toy, name):
    edits = dict(
        losses=("x - 5", "x - 6"),
        scale=("x * 2", "x * 3"),
        numbers=("return 1\n", "return 2\n"),
    )
    before = toy.key("whole")
    toy.edit(name, *edits[name])
    assert toy.key("whole") != before


def test_every_line_that_binds_a_name_counts(toy):
    toy.edit("losses", "+ base + A", "+ base + A + TABLE['a']")
    before = toy.key()
    toy.edit("losses", 'TABLE = {"a": 1}', 'TABLE = {"a": 5}')
    changed = toy.key()
    toy.edit("losses", 'TABLE |= {"b": 2}', 'TABLE |= {"a": 2}')
    assert len({before, changed, toy.key()}) == 3


@pytest.mark.parametrize(
    "line",
    [
        "import toy.extra.deep\nX = toy.extra.deep.f()",
        "import toy.extra.deep as e\nX = e.f()",
        "from toy.extra import deep\nX = deep.f()",
        "from toy import extra\nX = extra.deep.f()",
        "from toy.extra.deep import f\nX = f()",
        "from toy.extra.deep import f as g\nX = [g]",
        "from toy.extra import deep as d\nX = print(d)",
        "from toy.again import f\nX = f",
        "def X():\n    from toy.extra.deep import f\n    return f",
        "try:\n    from toy.extra.deep import f\nexcept ImportError:\n    f = None\nX "
        "= f",
        "class X:\n    def g(self):\n        import toy.extra.deep as d\n        d.f()",
    ],
)
def test_a_function_is_found_however_it_is_imported(toy, line):
    (toy.root / "extra").mkdir()
    (toy.root / "extra" / "__init__.py").write_text("")
    (toy.root / "again.py").write_text("from toy.extra.deep import f\n")
    (toy.root / "extra" / "deep.py").write_text("def f():\n    return 1\n")
    (toy.root / "loop.py").write_text(f"{line}\ndef train():\n    return X\n")
    before = toy.key()
    toy.edit("extra/deep", "return 1", "return 2")
    assert toy.key() != before


def test_data_files_count_by_their_content_where_they_are_named(toy):
    keys = [toy.key(with_data=True)]
    for name in ("rows.jsonl", "more.txt"):
        (toy.root / "data" / name).write_text("other")
        keys.append(toy.key(with_data=True))
    assert len(set(keys)) == 3
    (toy.root / "data" / "others.jsonl").write_text("other")
    assert toy.key(with_data=True) == keys[-1]


def test_data_files_do_not_count_unless_asked_for(toy):
    before = toy.key()
    (toy.root / "data" / "rows.jsonl").write_text("other")
    assert toy.key() == before != toy.key(with_data=True)


def test_what_is_not_of_the_package_is_refused():
    def train():
        return {}

    for function in (train, json.dumps, functools.reduce):
        with pytest.raises(
            ValueError, match="no definition .* whose code could be read"
        ):
            code.code_key(function)


# On the package itself


def every_module():
    """The package's modules by name."""
    for path in sorted(code.PACKAGE.rglob("*.py")):
        parts = path.relative_to(code.PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts).removesuffix(".__init__"), path


def test_no_module_imports_what_a_key_would_not_follow():
    for name, path in every_module():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                starred = any(alias.name == "*" for alias in node.names)
                assert node.level == 0 and not starred, name


def all_functions():
    """What is stored or measured: the stages' functions and the experiments' trials."""
    from posttrain import stages
    from posttrain.lab.experiments import EXPERIMENTS

    found = {name: f for name, f in vars(stages).items() if name.endswith("_stage")}
    found.pop("rows_of", None)
    return found | {name: each.trial for name, each in EXPERIMENTS.items()}


def test_nothing_that_computes_names_a_constant_of_what_hands_on_data():
    """It would change numbers, and no key."""
    for function in all_functions().values():
        for home, name in code.counted(function):
            for there, what in code.names_in(code.source_of(home), name):
                if code.within(there, code.HANDING):
                    (line,) = code.read_module(there).definitions[what]
                    assert not isinstance(line, (ast.Assign, ast.AnnAssign)), what


def test_a_stage_depends_on_its_models_optimiser_and_tokenizer_and_on_no_later_stage():
    functions = all_functions()
    places = {name: code.reached(code.place_of(f)) for name, f in functions.items()}
    for wanted in [
        ("posttrain.gpt", "Attention"),
        ("posttrain.optim", "POLAR_EXPRESS"),
        ("posttrain.tokenizer", "ALPHABET"),
        ("posttrain.pretrain", "random_batch"),
    ]:
        assert wanted in places["base_stage"]
    modules = {home for home, _ in places["base_stage"]}
    for later in ("sft", "reward_model", "ppo", "dpo", "keep.store", "show.notebook"):
        assert f"posttrain.{later}" not in modules
    assert ("posttrain.ppo", "ppo_steps") not in places["dpo_stage"]
    assert ("posttrain.reward_model", "train_reward_model") not in places["dpo_stage"]


CHECK_ALL = """
import sys
sys.path.insert(0, {tests!r})
from keep.test_code import all_functions, code, every_module
import importlib
for name, function in all_functions().items():
    print(name, code.changed(function))
for name, _ in every_module():
    if name in sys.modules:
        for each in code.read_module(name).definitions:
            if code.is_edited(name, each) or code.is_replaced(name, each):
                print(name, each)
"""


def run(text, *options, root=code.PACKAGE.parent, **environment):
    """What a new Python prints that has the package of this folder."""
    done = subprocess.run(
        [sys.executable, "-c", text, *options],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PYTHONPATH": str(root),
            "OMP_NUM_THREADS": "1",
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_has_changed_in_a_fresh_process():
    tests = str(Path(__file__).parents[1])
    said = run(CHECK_ALL.format(tests=tests)).splitlines()
    assert said and all(line.endswith(" []") for line in said), said
    assert len(said) == len(all_functions())


# What is loaded, and what the files say


def pretend():
    """In the place of another."""


class Pretended:
    pass


@functools.wraps(code.code_key)
def wrapped(*arguments):
    return 0


REPLACED = [
    ("posttrain.dpo", "dpo_loss", pretend, "posttrain.dpo.dpo_loss"),
    ("posttrain.dpo", "dpo_loss", None, "posttrain.dpo.dpo_loss"),
    ("posttrain.dpo", "dpo_loss", Pretended(), "posttrain.dpo.dpo_loss"),
    ("posttrain.dpo", "dpo_loss", functools.partial(pretend), "posttrain.dpo.dpo_loss"),
    ("posttrain.dpo", "pack_pairs", pretend, "posttrain.dpo."),
    ("posttrain.gpt", "GPT", Pretended, "posttrain.gpt.GPT"),
    ("posttrain.gpt.GPT", "forward", pretend, "posttrain.gpt.GPT"),
    ("posttrain.optim.Muon", "step", pretend, "posttrain.optim.Muon"),
    ("posttrain.chat", "IGNORE", -5, "posttrain.chat.IGNORE"),
    ("posttrain.tokenizer", "END", "<|x|>", "posttrain.tokenizer.END"),
    ("posttrain.tokenizer", "ALPHABET", "abc", "posttrain.tokenizer.ALPHABET"),
    (
        "posttrain.tokenizer.CharTokenizer",
        "vocab_size",
        property(pretend),
        "CharTokenizer",
    ),
]


def short(value):
    """What a test is called by: the same in every process, so that they can share
    tests.
    """
    return value if isinstance(value, str) else type(value).__name__


@pytest.mark.parametrize("place, name, value, expected", REPLACED, ids=short)
def test_what_is_replaced_is_named(monkeypatch, place, name, value, expected):
    from posttrain import stages

    assert code.changed(stages.dpo_stage) == []
    monkeypatch.setattr(f"{place}.{name}", value)
    said = code.changed(stages.dpo_stage)
    assert any(expected in each for each in said), said
    monkeypatch.undo()
    assert code.changed(stages.dpo_stage) == []


def test_a_replaced_import_in_another_module_is_named_and_elsewhere_is_none(
    monkeypatch,
):
    from posttrain import ppo, stages

    imported = [
        name for name in ("kl_estimate", "token_logprobs") if hasattr(ppo, name)
    ]
    for name in imported:
        with monkeypatch.context() as patch:
            patch.setattr(ppo, name, pretend)
            said = code.changed(stages.ppo_stage)
            assert said and all(each.startswith("posttrain.ppo.") for each in said)
            assert code.changed(stages.dpo_stage) == []
    assert imported


def test_one_that_is_wrapped_is_named_though_it_says_that_it_is_the_other(monkeypatch):
    from posttrain import dpo, sampling, stages

    for module, name in ((dpo, "dpo_loss"), (sampling, "generate")):
        original = getattr(module, name)

        @functools.wraps(original)
        def watched(*arguments, original=original, **options):
            return original(*arguments, **options)

        assert code.changed(stages.ppo_stage) == code.changed(stages.dpo_stage) == []
        monkeypatch.setattr(module, name, watched)
        said = code.changed(stages.ppo_stage) + code.changed(stages.dpo_stage)
        assert f"{module.__name__}.{name}" in said
        monkeypatch.undo()


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """A copy of the package for other processes to import and this one to edit."""
    root = tmp_path_factory.mktemp("copy")
    leave = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(code.PACKAGE, root / "code" / "posttrain", ignore=leave)
    return root / "code"


EDITED = """
import json, pathlib, sys
import posttrain.gpt
from posttrain import ppo, stages
from posttrain.keep import code
for edit in json.loads(sys.argv[1]):
    path = pathlib.Path(code.PACKAGE, edit[0])
    text = path.read_text()
    assert edit[1] in text, edit
    path.write_text(text.replace(edit[1], edit[2], 1))
    print(json.dumps(code.changed(stages.dpo_stage)))
    path.write_text(text)
print(json.dumps(code.changed(stages.dpo_stage)))
"""
EDITS = {
    "function": (
        "stages.py",
        "    policy = copy",
        "    policy = 2 * copy",
        ["stages.dpo_stage"],
    ),
    "new function": ("dpo.py", "def dpo_loss(", "def mine(): 1\ndef dpo_loss(", []),
    "constant": ("chat.py", "-100", "-99", ["chat.IGNORE"]),
    "decorator": (
        "preference_pairs.py",
        "def pack_pairs(",
        "@print\ndef pack_pairs(",
        ["preference_pairs.pack_pairs"],
    ),
    "default": (
        "tokenizer.py",
        "alphabet: str = ALPHABET",
        "alphabet: str = 'abc'",
        ["tokenizer.CharTokenizer"],
    ),
    "message": ("tokenizer.py", "at position", "in place", []),
    "docstring": ("dpo.py", '"""', '"""Better: ', []),
    "layout": ("dpo.py", "\n\n", "\n\n\n", []),
    "unrelated": ("ppo.py", "import torch", "import torch; X = 1", []),
}


def test_what_was_edited_after_its_import_is_named(copied):
    edits = json.dumps([edit[:3] for edit in EDITS.values()])
    said = [json.loads(line) for line in run(EDITED, edits, root=copied).splitlines()]
    expected = [[f"posttrain.{name}" for name in edit[3]] for edit in EDITS.values()]
    assert dict(zip(EDITS, said)) == dict(zip(EDITS, expected))
    assert said[-1] == []


# Python's versions

ELSEWHERE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("code_keys", sys.argv[1])
code = importlib.util.module_from_spec(spec)
sys.modules["code_keys"] = code
spec.loader.exec_module(code)
for home in sys.argv[2].split():
    source = code.source_of(home)
    for name in code.read_module(home).definitions:
        print(home, name, code.names_in(source, name), code.text_of(source, name))
"""


def test_what_is_hashed_is_the_same_under_every_version_of_python():
    """Under those that are on this machine, 3.10 or newer."""
    modules = " ".join(name for name, _ in every_module())
    said = {}
    for python in [sys.executable, *(f"python3.{minor}" for minor in range(10, 15))]:
        asked = [python, "-I", "-c", ELSEWHERE, inspect.getsourcefile(code), modules]
        try:
            done = subprocess.run(asked, capture_output=True, text=True)
        except FileNotFoundError:
            continue
        if "command not found" not in done.stderr:  # by a shim
            assert done.returncode == 0, done.stderr
            said[python] = done.stdout.splitlines()
    expected = said[sys.executable]
    assert len(expected) > 500
    for python, lines in said.items():
        apart = [pair for pair in zip(lines, expected) if len(set(pair)) > 1]
        assert len(lines) == len(expected) and not apart, (python, apart[:1])


def test_the_module_needs_the_standard_library_alone():
    imported = [n for n in ast.walk(ast.parse(inspect.getsource(code)))]
    names = {a.name for n in imported if isinstance(n, ast.Import) for a in n.names}
    names |= {n.module for n in imported if isinstance(n, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_what_pytorch_wraps_round_an_optimisers_step_replaces_nothing():
    optim.Muon([torch.nn.Parameter(torch.zeros(2, 2))])
    assert hasattr(optim.Muon.step, "__wrapped__")
    assert code.changed(stages.base_stage) == []
