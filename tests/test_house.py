"""The house: pins, Makefile, the strict build (book/_ext/house.py), nbmake's hook."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent

# The machines the pins are for: sys_platform, platform_machine, os_name, Python
# versions.
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
MACHINES = [
    ("linux", "x86_64", "posix", PYTHONS),
    ("linux", "aarch64", "posix", PYTHONS),
    ("win32", "AMD64", "nt", PYTHONS),
    ("darwin", "arm64", "posix", PYTHONS),
    ("darwin", "x86_64", "posix", PYTHONS[:-1]),
]


def run(
    *command: str | Path, cwd: Path, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command as a reader would, without what conftest.py has set for kernels."""
    hidden = {
        "PYTHONPATH",
        "BOOK_BUILD",
        "CI",
        "GITHUB_REPOSITORY",
        "POSTTRAIN_CORPUS",
        "MAKEFLAGS",
        "MAKELEVEL",
    }
    clean = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**clean, "PYTHONUTF8": "1", "NO_COLOR": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )


@pytest.fixture(scope="module")
def house():
    spec = importlib.util.spec_from_file_location(
        "house", ROOT / "book" / "_ext" / "house.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- Layout ---------------------------------------------------------------------------


def test_code_is_a_source_root_and_not_a_package():
    """A package called code would shadow the standard library's module."""
    assert not (ROOT / "code" / "__init__.py").exists()
    answer = run(
        sys.executable,
        "-c",
        "import code; print(code.InteractiveConsole, code.__file__)",
        cwd=ROOT,
    )
    assert answer.returncode == 0, answer.stdout
    assert str(ROOT / "code") not in answer.stdout


def test_every_page_of_the_table_of_contents_exists():
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages = [
        toc["root"],
        *(chapter["file"] for part in toc["parts"] for chapter in part["chapters"]),
    ]
    assert not [page for page in pages if not (ROOT / f"{page}.md").is_file()]


def test_every_kernel_page_can_be_opened_as_a_notebook():
    """jupytext and Jupyter Book trip over a chapter that lacks one of these."""
    for path in (ROOT / "book").rglob("*.md"):
        text = path.read_text(encoding="utf-8")
        if not text.startswith("---\n"):
            continue
        head = yaml.safe_load(text.split("---\n")[1])
        if "kernelspec" in head:
            assert head["kernelspec"]["display_name"], path
            assert head["jupytext"]["text_representation"]["extension"] == ".md", path
            assert head["jupytext"]["text_representation"]["format_name"] == "myst", (
                path
            )


def test_chapters_run_in_the_order_of_the_table_of_contents(house):
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    order = [chapter["file"] for part in toc["parts"] for chapter in part["chapters"]]
    book = types.SimpleNamespace(external_site_map=dict.fromkeys([toc["root"], *order]))
    asked = sorted([toc["root"], *order, "a-page-of-no-part"])
    house.read_in_order(None, book, asked)
    # The front page shows what all of them have trained
    assert asked == [*order, toc["root"], "a-page-of-no-part"]


# --- Pins -----------------------------------------------------------------------------


def lines(name: str) -> list[str]:
    """What is not a comment, a requirement and its hashes on one line."""
    text = (ROOT / name).read_text(encoding="utf-8").replace(" \\\n", " ")
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def requirements(name: str) -> list[Requirement]:
    return [
        Requirement(line.split(" --hash=")[0])
        for line in lines(name)
        if not line.startswith("-")
    ]


def environments() -> list[dict[str, str]]:
    return [
        {
            "sys_platform": system,
            "platform_machine": machine,
            "os_name": os_name,
            "platform_system": {
                "linux": "Linux",
                "win32": "Windows",
                "darwin": "Darwin",
            }[system],
            "python_version": python,
            "python_full_version": f"{python}.9",
            "platform_python_implementation": "CPython",
            "implementation_name": "cpython",
            "extra": "",
        }
        for system, machine, os_name, pythons in MACHINES
        for python in pythons
    ]


def pins(name: str, environment: dict[str, str]) -> dict[str, str]:
    """Package -> version in one environment, each pinned once."""
    found = {}
    for requirement in requirements(name):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert re.fullmatch(r"==[0-9][^*]*", str(requirement.specifier)), (
                f"{requirement} is not exact"
            )
            key = canonicalize_name(requirement.name)
            assert key not in found, f"{key} is pinned twice for {environment}"
            found[key] = str(requirement.specifier)
    return found


@pytest.mark.parametrize(
    "environment",
    environments(),
    ids=lambda e: "-".join(list(e.values())[:2] + [e["python_version"]]),
)
def test_pins_are_exact_and_the_constraints_agree(environment):
    wanted, allowed = (
        pins("requirements.txt", environment),
        pins("constraints.txt", environment),
    )
    assert {name: allowed.get(name) for name in wanted} == wanted
    # PyTorch's last release for Intel Macs
    intel_mac = (environment["sys_platform"], environment["platform_machine"]) == (
        "darwin",
        "x86_64",
    )
    assert wanted["torch"] == ("==2.2.2" if intel_mac else "==2.13.0")
    assert wanted["numpy"].startswith("==1.26" if intel_mac else "==2")


def test_constraints_name_no_place_to_download_from():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert not re.search(r"^-|://| @ ", text, re.MULTILINE)


def from_torch(name: str) -> bool:
    """PyTorch and what only its CUDA build brings, whose hashes differ."""
    return name in ("torch", "triton") or name.startswith(("nvidia-", "cuda-"))


@pytest.mark.parametrize(
    "environment",
    environments(),
    ids=lambda e: "-".join(list(e.values())[:2] + [e["python_version"]]),
)
def test_the_locks_hold_every_pin_but_pytorch(environment):
    book, others = (
        pins("requirements.lock", environment),
        pins("extras.lock", environment),
    )
    assert {name: book[name] for name in others if name in book} == {
        name: others[name] for name in book if name in others
    }
    allowed = pins("constraints.txt", environment)
    assert book | others == {
        name: pin for name, pin in allowed.items() if not from_torch(name)
    }
    wanted = {
        name: pin
        for name, pin in pins("requirements.txt", environment).items()
        if name != "torch"
    }
    assert {name: book.get(name) for name in wanted} == wanted
    extras = re.findall(
        r"^(?:parity|browser) = \[(.*?)\]$",
        (ROOT / "pyproject.toml").read_text("utf-8"),
        re.M | re.S,
    )
    needed = [
        Requirement(text) for extra in extras for text in re.findall(r'"(.*?)"', extra)
    ]
    assert {requirement.name for requirement in needed} == {
        "trl",
        "peft",
        "transformers",
        "playwright",
        "axe-playwright-python",
    }
    for requirement in needed:
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert (book | others)[requirement.name] == str(requirement.specifier)


def test_the_weights_lock_is_its_extra():
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    (wanted,) = re.findall(r"^real-weights = \[(.*?)\]$", text, re.M)
    locked = [line.split()[0] for line in lines("weights.lock")]
    assert sorted(re.findall(r'"(.*?)"', wanted)) == locked


@pytest.mark.parametrize("name", ["requirements.lock", "extras.lock", "weights.lock"])
def test_every_line_of_a_lock_has_hashes_and_nothing_else(name):
    locked = re.compile(
        r"[a-z0-9-]+==[a-z0-9.]+( ; [\w\s.*'()<>=!]+?)?(\s+--hash=sha256:[0-9a-f]{64})+"
    )
    assert lines(name)
    assert not [line for line in lines(name) if not locked.fullmatch(line)]
    assert "://" not in (ROOT / name).read_text(encoding="utf-8")


def test_the_package_itself_is_installed_last_and_editable():
    assert (
        (ROOT / "requirements.txt")
        .read_text(encoding="utf-8")
        .rstrip()
        .endswith("\n-e .")
    )


# --- Makefile -------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_make_alone_lists_every_target():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE).group(1).split()
    answer = run("make", cwd=ROOT)
    assert answer.returncode == 0, answer.stdout
    assert not [
        name
        for name in targets
        if name != "help" and f"make {name} " not in answer.stdout
    ]


@pytest.mark.parametrize(
    ("system", "machine", "version", "complaint"),
    [
        ("linux", "x86_64", (3, 11, 7), None),
        (
            "linux",
            "x86_64",
            (3, 9, 18),
            "needs Python 3.10 to 3.13; this one is 3.9.18",
        ),
        ("win32", "AMD64", (3, 14, 0), "needs Python 3.10 to 3.13; this one is 3.14.0"),
        ("darwin", "arm64", (3, 13, 0), None),
        (
            "darwin",
            "x86_64",
            (3, 13, 0),
            "needs Python 3.10 to 3.12 on an Intel Mac; this one is 3.13.0",
        ),
    ],
)
def test_make_says_which_python_it_needs(
    monkeypatch, system, machine, version, complaint
):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    check = re.search(
        r"^define CHECK_PYTHON\n(.*?)^endef", makefile, re.MULTILINE | re.DOTALL
    ).group(1)
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(sys, "version_info", version)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "python_version", lambda: ".".join(map(str, version)))
    if complaint is None:
        exec(check, {})
    else:
        with pytest.raises(SystemExit, match=re.escape(complaint)):
            exec(check, {})


@pytest.fixture
def unmade(tmp_path):
    """What make reads to install the environment, somewhere else."""
    for name in (
        "Makefile",
        "requirements.txt",
        "constraints.txt",
        "pyproject.toml",
        "extras.lock",
    ):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("index", [None, "https://example.org/cpu"])
def test_make_installs_from_the_locks_and_then_pytorch(unmade, index):
    shutil.copy(ROOT / "requirements.lock", unmade)
    settings = [f"TORCH_INDEX={index}"] if index else []
    answer = run(
        "make",
        "-n",
        ".venv/.extras-ready",
        f"PYTHON={sys.executable}",
        *settings,
        cwd=unmade,
    )
    assert answer.returncode == 0, answer.stdout
    found = re.findall(
        r"-m pip install --disable-pip-version-check (.*?)(?: &&|; |$)",
        answer.stdout,
        re.M,
    )
    locked = "--require-hashes --no-deps --only-binary :all: -r"
    assert [command.replace('"', "") for command in found] == [
        f"{locked} requirements.lock",
        *([f"--index-url {index} --no-deps -c constraints.txt torch"] if index else []),
        "-c constraints.txt torch",
        "--no-deps --no-build-isolation -e .",
        f"{locked} extras.lock",
    ]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize(
    "name",
    ["requirements.txt", "constraints.txt", "requirements.lock", "pyproject.toml"],
)
def test_a_changed_list_of_packages_updates_the_environment(unmade, name):
    shutil.copy(ROOT / "requirements.lock", unmade)
    python = unmade / ".venv" / ("Scripts" if os.name == "nt" else "bin") / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (unmade / ".venv" / ".ready").touch()
    assert run("make", "-q", ".venv/.ready", cwd=unmade).returncode == 0
    later = (unmade / ".venv" / ".ready").stat().st_mtime + 10
    os.utime(unmade / name, (later, later))
    assert run("make", "-q", ".venv/.ready", cwd=unmade).returncode == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
def test_a_package_with_another_hash_is_not_installed(unmade):
    """With a wheel made here and no network; a right hash stops later, at PyTorch."""
    wheel = unmade / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "tiny-1.dist-info/METADATA",
            "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n",
        )
        archive.writestr(
            "tiny-1.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr("tiny-1.dist-info/RECORD", "")
    ready = unmade / ".venv" / ".ready"

    def install(digest: str) -> str:
        (unmade / "requirements.lock").write_text(
            f"tiny==1 --hash=sha256:{digest}\n", encoding="utf-8"
        )
        here = {
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(unmade),
            "PIP_QUIET": "0",
        }
        answer = run(
            "make", ".venv/.ready", f"PYTHON={sys.executable}", cwd=unmade, **here
        )
        assert answer.returncode != 0, answer.stdout
        return answer.stdout

    out = install("0" * 64)
    assert "DO NOT MATCH THE HASHES" in out and "installed tiny-1" not in out, out
    assert not ready.exists()
    ready.write_text("before", encoding="utf-8")
    os.utime(ready, (0, 0))
    out = install(hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert "installed tiny-1" in out, out
    assert ready.read_text(encoding="utf-8") == "before"


# --- A page must load nothing from another host ---------------------------------------


@pytest.mark.parametrize(
    "html",
    [
        '<script src="https://cdn.example.org/a.js"></script>',
        '<script src="//cdn.example.org/a.js"></script>',
        '<link rel="stylesheet" href="https://cdn.example.org/a.css">',
        '<link rel="preconnect" href="https://fonts.example.org">',
        '<img alt="" src="https://example.org/a.png">',
        '<img alt="" srcset="a.png 1x, https://example.org/b.png 2x">',
        '<iframe src="https://example.org/"></iframe>',
        '<div style="background: url(https://example.org/a.png)"></div>',
        "<style>@import 'https://example.org/a.css';</style>",
        "<style>@font-face { src: url(//example.org/a.woff) }</style>",
        "<script>import('https://example.org/a.js')</script>",
        '<svg><image href="https://example.org/a.png"/></svg>',
    ],
)
def test_outside_resources_are_found(house, tmp_path, html):
    page = tmp_path / "page.html"
    page.write_text(f"<html><body>{html}</body></html>", encoding="utf-8")
    (url,) = house.outside_resources(page)
    assert "example.org" in url


def test_links_and_local_resources_are_fine(house, tmp_path):
    page = tmp_path / "page.html"
    page.write_text(
        '<link rel="canonical" href="https://example.org/"><a '
        'href="https://example.org/">read</a>'
        '<img alt="" src="data:audio/x;base64,//uQx"><script '
        'src="../_static/a.js"></script>'
        '<svg xmlns="http://www.w3.org/2000/svg"></svg>'
        '<style>@import "a.css"; a { background: url(b.svg) }</style>'
        "<pre>import x from 'https://example.org/a.js'</pre>",
        encoding="utf-8",
    )
    assert house.outside_resources(page) == []


# --- Building a throwaway book --------------------------------------------------------

HEAD = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---

# {title}

"""


def chapter(*cells: str, title: str = "Chapter", text: str = "") -> str:
    return (
        HEAD.format(title=title)
        + text
        + "".join(f"\n```{{code-cell}} ipython3\n{cell}\n```\n" for cell in cells)
    )


@pytest.fixture
def book(tmp_path):
    """A book of one page with this configuration, in a folder named with a space."""
    root = tmp_path / "a book"
    (root / "code" / "throwaway").mkdir(parents=True)
    (root / "code" / "throwaway" / "__init__.py").write_text(
        'WORD = "first"\n', encoding="utf-8"
    )
    for name in (
        "_config.yml",
        "book/_ext/house.py",
        "book/_ext/book_kernels.py",
        "book/_ext/notebooks.py",
        "book/_ext/posts.py",
        "book/_static/book.css",
        "book/_static/book.js",
        "book/_static/views.css",
        "book/_static/views.js",
        "book/_static/favicon.svg",
        "book/references.bib",
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "_toc.yml").write_text(
        "format: jb-book\nroot: book/page\n", encoding="utf-8"
    )
    (root / "book" / "page.md").write_text(
        chapter(
            "import os, throwaway\nprint(throwaway.WORD, os.environ['BOOK_BUILD'])",
            text="Let $x = 1$.\n",
        ),
        encoding="utf-8",
    )
    return root


def build(root: Path) -> subprocess.CompletedProcess:
    return run(
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        root,
        cwd=root,
    )


def html(root: Path) -> str:
    return (root / "_build" / "html" / "book" / "page.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_good_book_builds_and_follows_the_package(book):
    answer = build(book)
    assert answer.returncode == 0, answer.stdout
    assert "first 1" in html(book)
    # Equations render without another host
    assert "mathjax/tex-svg-full.js" in html(book)
    assert (
        book / "_build" / "html" / "_static" / "mathjax" / "tex-svg-full.js"
    ).stat().st_size > 1_000_000
    # Nothing changed: nothing runs
    assert "Executed notebook" not in build(book).stdout
    # Only the package changed: the chapter runs again
    (book / "code" / "throwaway" / "__init__.py").write_text(
        'WORD = "second"\n', encoding="utf-8"
    )
    answer = build(book)
    assert answer.returncode == 0, answer.stdout
    assert "second 1" in html(book)
    # It may run what it came with
    assert html(book).count('<meta http-equiv="Content-Security-Policy"') == 1
    # The chapter can be taken away, and its first cell installs the package
    notebook = json.loads(
        (book / "_build/html/_sources/book/page.ipynb").read_text(encoding="utf-8")
    )
    assert "pip" in "".join(notebook["cells"][0]["source"])
    assert "_sources/book/page.ipynb" in html(book)
    # The site's own address leads to it; without an icon a browser would ask for
    # /favicon.ico
    door = (book / "_build" / "html" / "index.html").read_text(encoding="utf-8")
    assert (
        '<html lang="en">' in door
        and 'content="0; url=book/page.html"' in door
        and '<a href="book/page.html">' in door
    )
    assert (
        book / "_build" / "html" / re.search('rel="icon" href="([^"]+)"', door)[1]
    ).is_file()
    assert door.count('<meta http-equiv="Content-Security-Policy"') == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "message"),
    [
        (chapter("raise RuntimeError('planted')"), "planted"),
        (chapter(text="See {ref}`nowhere-at-all`.\n"), "nowhere-at-all"),
    ],
    ids=["raising-cell", "broken-reference"],
)
def test_a_broken_book_fails_every_time(book, page, message):
    (book / "book" / "page.md").write_text(page, encoding="utf-8")
    for _ in range(2):
        answer = build(book)
        assert answer.returncode != 0
        assert message in answer.stdout


@pytest.mark.slow
def test_a_page_that_needs_another_host_fails_the_build(book):
    script = (
        '```{raw} html\n<script src="https://cdn.example.org/a.js"></script>\n```\n'
    )
    (book / "book" / "page.md").write_text(chapter(text=script), encoding="utf-8")
    answer = build(book)
    assert answer.returncode != 0
    assert "book/page.html loads https://cdn.example.org/a.js" in answer.stdout


@pytest.mark.slow
def test_a_killed_build_does_not_hide_its_warnings(book):
    """Die after reading and before writing: the next build must read pages again."""
    (book / "book" / "_ext" / "killer.py").write_text(
        "import os, pathlib\n"
        "def die(app, *_):\n"
        "    if pathlib.Path(app.srcdir, 'die').exists():\n"
        "        os._exit(9)\n"
        "def setup(app):\n"
        "    app.connect('html-page-context', die)\n",
        encoding="utf-8",
    )
    config = yaml.safe_load((book / "_config.yml").read_text(encoding="utf-8"))
    config["sphinx"]["local_extensions"]["killer"] = "book/_ext"
    (book / "_config.yml").write_text(yaml.safe_dump(config), encoding="utf-8")
    (book / "book" / "page.md").write_text(
        "# Page\n\n```{no-such-directive}\n```\n", encoding="utf-8"
    )
    (book / "die").touch()
    assert build(book).returncode == 9
    (book / "die").unlink()
    answer = build(book)
    assert answer.returncode == 1
    assert "no-such-directive" in answer.stdout


# A book of two chapters that shows all of a package of two modules
INDEXED = {
    "_toc.yml": "format: jb-book\nroot: book/page\nchapters:\n"
    + "".join(
        f"- file: book/{name}\n" for name in ("one", "two", "index-of-code", "words")
    ),
    "code/posttrain/__init__.py": "",
    "code/posttrain/show/__init__.py": "from posttrain.show.source import "
    "show_source\n",
    "code/posttrain/show/source.py": (ROOT / "code/posttrain/show/source.py").read_text(
        encoding="utf-8"
    ),
    "code/posttrain/ppo.py": '"""What <b>PPO</b> needs. And more."""\n'
    "class Model:\n"
    '    """Policy & value."""\n'
    "    def check(self):\n"
    '        """A method, not in the index."""\n'
    "def check(ppo_config):\n"
    '    r"""Refuse `config` where $\\lambda$\n    is `None`. Always."""\n'
    "def hidden():\n"
    "    pass\n",
    "code/posttrain/data/__init__.py": "",
    "code/posttrain/data/rows.py": '"""Rows."""\ndef check(row_config):\n'
    '    """Refuse a row."""\n',
    "book/page.md": "# Page\n\n{listing}`data.rows.check` and "
    "{listing}`it <ppo.check>`, with a {term}`quotient <Ratio>` and a "
    "{term}`Policy`.\n",
    "book/one.md": chapter(
        "import sys\nfrom posttrain.show import show_source\n"
        "from posttrain.ppo import Model\nprint(Model.__name__)\n"
        "print('a warning', file=sys.stderr)\nshow_source(Model)",
        title="Part one",
        text="A {term}`Ratio`.\n",
    ),
    "book/two.md": chapter(
        "from posttrain.show import show_source\nfrom posttrain.ppo import check",
        ":tags: [remove-input]\nshow_source('data.rows.check')",
        "show_source(check)",
        title="Part two",
        text="```python\ndef check(self):\n```\n",
    ),
    "book/index-of-code.md": "# Index\n\n```{code-index}\n```\n",
    "book/words.md": "(words)=\n# Words\n\n```{glossary}\n"
    'Policy\n  The "model" that says `<|end|>` & '
    "$-\\sum\\pi\\log\\lambda_\\text{ref}$. {ref}`words`.\n\n"
    "Ratio\n  Now over then {ref}`words`, a {term}`Policy` at work.\n```\n",
}


@pytest.fixture
def indexed(book):
    for name, text in INDEXED.items():
        (book / name).parent.mkdir(parents=True, exist_ok=True)
        (book / name).write_text(text, encoding="utf-8")
    return book


def built(root: Path, name: str) -> str:
    return (root / "_build" / "html" / "book" / f"{name}.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.slow
def test_the_index_says_what_is_shown_and_leads_to_its_listing(indexed):
    answer = build(indexed)
    assert answer.returncode == 0, answer.stdout
    index = built(indexed, "index-of-code")
    assert re.findall(r'<section id="module-([\w-]+)">', index) == ["data-rows", "ppo"]
    assert "<p>What &lt;b&gt;PPO&lt;/b&gt; needs.</p>" in index
    rows = re.findall(
        r"<tr "
        r'class="row-(?:even|odd)"><td>(.*?)</td>\s*<td>(.*?)</td>\s*<td>(.*?)</td>',
        index,
        re.S,
    )
    words = [[re.sub("<[^>]*>", "", cell) for cell in row] for row in rows]
    assert words == [
        ["check", "Refuse a row.", "Part two"],
        ["Model", "Policy &amp; value.", "Part one"],
        ["check", r"Refuse config where \(\lambda\) is None.", "Part two"],
    ]
    # Each link ends at its own definition, methods and code that is only quoted left
    # out
    pages = {name: built(indexed, name) for name in ("one", "two")}
    links = [
        re.search(r'href="(\w+)\.html#([\w-]+)"', row[-1]).groups() for row in rows
    ]
    assert [
        (page, name)
        for page in pages
        for name in re.findall(r'id="(code-[\w-]+)"', pages[page])
    ] == [
        ("one", "code-ppo-Model"),
        ("two", "code-data-rows-check"),
        ("two", "code-ppo-check"),
    ]
    assert links == [
        ("two", "code-data-rows-check"),
        ("one", "code-ppo-Model"),
        ("two", "code-ppo-check"),
    ]
    for config in ("row", "ppo"):
        name = dict(row="code-data-rows-check", ppo="code-ppo-check")[config]
        assert re.search(
            rf'id="{name}">check</span><span class="p">\(</span><span '
            rf'class="n">{config}_config<',
            pages["two"],
        )
    assert re.findall(
        r'href="two\.html#([\w-]+)"><code[^>]*><span class="pre">(.*?)</span>',
        html(indexed),
    ) == [
        ("code-data-rows-check", "data.rows.check"),
        ("code-ppo-check", "it"),
    ]
    # Above each listing stands its number in the chapter and its file
    captions = [
        re.findall(
            r'<p class="listing-caption">Listing ([\d.]+): '
            r'<code>([\w/.]+)</code></p>\s*<div class="highlight-python',
            page,
        )
        for page in pages.values()
    ]
    (one,), (first, second) = captions
    assert (one[1], first[1], second[1]) == ("ppo.py", "data/rows.py", "ppo.py")
    assert [
        re.sub(r"^\d+\.(?=\d)", "", number) for number, _ in (one, first, second)
    ] == ["1", "1", "2"]
    # A listing that moves takes its links with it
    for name, old, new in (
        ("two", "show_source(check)", "pass"),
        (
            "one",
            "Model\nprint(Model.__name__)\nprint('a warning', "
            "file=sys.stderr)\nshow_source(",
            "Model, check\nshow_source(check, ",
        ),
    ):
        (indexed / "book" / f"{name}.md").write_text(
            INDEXED[f"book/{name}.md"].replace(old, new), encoding="utf-8"
        )
    answer = build(indexed)
    assert answer.returncode == 0, answer.stdout
    assert 'href="one.html#code-ppo-check"' in built(
        indexed, "index-of-code"
    ) and 'href="one.html#code-ppo-check"' in html(indexed)
    assert 'id="code-ppo-check"' in built(
        indexed, "one"
    ) and 'id="code-ppo-check"' not in built(indexed, "two")


@pytest.mark.slow
def test_a_listing_that_is_named_and_not_there_fails_the_build(indexed):
    two = INDEXED["book/two.md"].replace("show_source(check)", "show_source(check);")
    (indexed / "book" / "two.md").write_text(two, encoding="utf-8")
    (indexed / "book" / "page.md").write_text(
        "# Page\n\n{listing}`ppo.hidden`\n", encoding="utf-8"
    )
    answer = build(indexed)
    assert answer.returncode != 0
    assert "There is no listing of ppo.check, which show_source names" in answer.stdout
    assert "'listing' reference target not found: ppo.hidden" in answer.stdout


@pytest.mark.slow
def test_a_word_that_links_to_the_glossary_says_what_the_entry_says_first(indexed):
    answer = build(indexed)
    assert answer.returncode == 0, answer.stdout
    link = (
        r'<a class="reference internal" href="([^"]*#term-\w+)" '
        r'title="([^"]*)"><span class="xref std std-term">(.*?)</span></a>'
    )
    policy = "The “model” that says &lt;|end|&gt; &amp; -Σπlogλ_ref."
    assert re.findall(link, html(indexed)) == [
        ("words.html#term-Ratio", "Now over then , a Policy at work.", "quotient"),
        ("words.html#term-Policy", policy, "Policy"),
    ]
    assert re.findall(link, built(indexed, "words")) == [
        ("#term-Policy", policy, "Policy")
    ]
    # A changed entry reaches the pages that have not changed
    words = INDEXED["book/words.md"].replace("Now over then", 'Now "over" &lt; then')
    (indexed / "book" / "words.md").write_text(words, encoding="utf-8")
    assert build(indexed).returncode == 0
    assert re.findall(link, built(indexed, "one")) == [
        ("words.html#term-Ratio", "Now “over” &lt; then , a Policy at work.", "Ratio")
    ]


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One row. Two rows.", "One row."),
        ("In nats,\n  by token. `total` is\n\nOther.", "In nats, by token."),
        (
            "As in (So et al. 2021), e.g. here: 0.5. $x$ is",
            "As in (So et al. 2021), e.g. here: 0.5.",
        ),
        ("Without an end\n\nOther.", "Without an end"),
        ("", ""),
    ],
)
def test_the_first_sentence(house, text, first):
    assert house.first_sentence(text) == first


def test_the_execution_cache_follows_package_and_corpus(house, tmp_path, monkeypatch):
    monkeypatch.delenv("POSTTRAIN_CORPUS", raising=False)
    root = tmp_path / "book"
    (root / "code" / "data").mkdir(parents=True)
    (root / "data").mkdir()
    # Data counts as much as source; what Python leaves behind does not count
    keys = [house.package_key(root)]
    for name in ("module.py", "data/conversations.jsonl"):
        (root / "code" / name).write_text("1", encoding="utf-8")
        keys.append(house.package_key(root))
    assert len(set(keys)) == 3
    (root / "code" / "__pycache__").mkdir()
    (root / "code" / "__pycache__" / "module.pyc").write_bytes(b"1")
    assert house.package_key(root) == keys[-1]
    # So does the record that the pages read
    (root / "evidence").mkdir()
    (root / "evidence" / "ppo.json").write_text("{}", encoding="utf-8")
    assert house.package_key(root) not in keys
    # A corpus that is chosen, found or changed gives another key
    keys = [house.corpus_key(root)]
    for text in ("one", "two"):
        (root / "data" / "tinyshakespeare.txt").write_text(text, encoding="utf-8")
        keys.append(house.corpus_key(root))
    monkeypatch.setenv("POSTTRAIN_CORPUS", "standin")
    keys.append(house.corpus_key(root))
    assert len(set(keys)) == 4


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform == "win32",
    reason="an open cache cannot be renamed there: the book runs once more",
)
def test_a_corpus_that_the_build_downloads_does_not_make_it_run_again(book):
    (book / "data").mkdir()
    download = (
        "import "
        "pathlib\npathlib.Path('../data/tinyshakespeare.txt').write_text('To be')"
    )
    (book / "book" / "page.md").write_text(chapter(download), encoding="utf-8")
    assert "Executed notebook" in build(book).stdout
    answer = build(book)
    assert answer.returncode == 0
    assert "Executed notebook" not in answer.stdout


@pytest.mark.slow
def test_a_package_edited_during_the_build_fails_it(book):
    (book / "book" / "page.md").write_text(
        chapter(
            "import pathlib\npathlib.Path('../code/throwaway/new.py').write_text('')"
        ),
        encoding="utf-8",
    )
    answer = build(book)
    assert answer.returncode != 0
    assert "changed while the book was being built" in answer.stdout


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_builds_at_once_take_turns(book, n):
    (book / "book" / "page.md").write_text(
        chapter("import time\ntime.sleep(3)"), encoding="utf-8"
    )
    command = [
        sys.executable,
        "-c",
        "from jupyter_book.cli.main import main; main()",
        "build",
        str(book),
    ]
    environment = {**os.environ, "PYTHONUTF8": "1"}
    pipes = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "encoding": "utf-8",
    }
    builds = [
        subprocess.Popen(command, cwd=book, env=environment, **pipes) for _ in range(n)
    ]
    outputs = [process.communicate(timeout=240)[0] for process in builds]
    assert [process.returncode for process in builds] == [0] * n, outputs
    assert sum("Waiting for it to finish" in output for output in outputs) == n - 1
    assert sum("Executed notebook" in output for output in outputs) == 1


def test_a_downloaded_notebook_finds_the_package_or_says_what_to_do(house, tmp_path):
    """The first cell: silent with the package, clear where it cannot be installed."""
    cell = house.INSTALL.format(archives=[])
    here = run(sys.executable, "-c", cell, cwd=tmp_path, PYTHONPATH=str(ROOT / "code"))
    assert (here.returncode, here.stdout) == (0, "")
    elsewhere = run(sys.executable, "-S", "-c", cell, cwd=tmp_path)
    assert "open this notebook inside a clone" in elsewhere.stdout


def test_a_pages_policy_allows_its_own_scripts_and_handlers_and_no_other(house):
    page = (
        '<head><meta charset="utf-8"></head><script '
        'src="a.js"></script><script>one()</script><p onclick="two(&quot;&quot;)">x</p>'
    )

    def hashed(script):
        digest = hashlib.sha256(script.encode()).digest()
        return f"'sha256-{base64.b64encode(digest).decode()}'"

    rules = dict(rule.split(" ", 1) for rule in house.policy(page).split("; "))
    assert rules["default-src"] == "'none'" and rules["base-uri"] == "'none'"
    assert set(rules["script-src"].split()) == {
        "'self'",
        "'unsafe-hashes'",
        hashed("one()"),
        hashed('two("")'),
    }
    assert not [
        rule
        for rule in rules.values()
        if "http" in rule or "*" in rule or "unsafe-eval" in rule
    ]


def test_each_page_is_given_its_policy_once_behind_its_encoding(house, tmp_path):
    app = types.SimpleNamespace(
        outdir=tmp_path, builder=types.SimpleNamespace(format="html")
    )
    (tmp_path / "deep").mkdir()
    for name, text in (
        ("page.html", '<html>\n<head>\n <meta charset="utf-8" />\n<title>'),
        ("deep/other.html", "<head><title>"),
    ):
        (tmp_path / name).write_text(
            text + "x</title></head><script>1</script>", encoding="utf-8"
        )
    (tmp_path / "page.html").chmod(0o644)
    pages = []
    for _ in range(2):
        house.restrict_pages(app, None)
        pages.append(
            [
                (tmp_path / name).read_text(encoding="utf-8")
                for name in ("page.html", "deep/other.html")
            ]
        )
    assert pages[0] == pages[1]
    for text in pages[0]:
        tag = (
            '<meta http-equiv="Content-Security-Policy" '
            f'content="{house.policy(text)}">'
        )
        assert text.count("Content-Security-Policy") == 1 and tag in text
        assert text.index("Policy") < text.index("<title>") < text.index("<script>")
    assert pages[0][0].index("charset") < pages[0][0].index("Policy")


def test_the_works_of_a_list_are_list_items(house):
    context = dict(
        body='<div role="list"><div class="citation" '
        'role="doc-biblioentry">A</div></div>'
    )
    house.name_entries(None, "book/bibliography", "page.html", context, None)
    assert (
        context["body"]
        == '<div role="list"><div class="citation" role="listitem">A</div></div>'
    )
    house.name_entries(None, "genindex", "genindex.html", {}, None)


# --- pytest --nbmake on Markdown chapters ---------------------------------------------


@pytest.fixture
def chapters(tmp_path):
    """A folder with this conftest.py, a chapter that passes and one that fails."""
    (tmp_path / "book" / "_ext").mkdir(parents=True)
    for name in ("conftest.py", "_config.yml", "book/_ext/book_kernels.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    passing = (
        "import os\nassert os.path.basename(os.getcwd()) == 'book'\n"
        "assert os.environ['BOOK_BUILD'] == '1'"
    )
    (tmp_path / "book" / "passing.md").write_text(chapter(passing), encoding="utf-8")
    (tmp_path / "book" / "failing.md").write_text(
        chapter("raise RuntimeError('planted')"), encoding="utf-8"
    )
    (tmp_path / "book" / "prose.md").write_text("# No kernel here\n", encoding="utf-8")
    return tmp_path


@pytest.mark.slow
def test_nbmake_runs_markdown_chapters(chapters):
    answer = run(
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "--nbmake",
        "book",
        cwd=chapters,
    )
    assert answer.returncode == 1
    assert "RuntimeError: planted" in re.sub(r"\x1b\[[0-9;]*m", "", answer.stdout)
    assert "1 failed, 1 passed" in answer.stdout


def test_nbmake_may_not_overwrite_markdown(chapters):
    before = (chapters / "book" / "passing.md").read_bytes()
    answer = run(
        sys.executable,
        "-m",
        "pytest",
        "--nbmake",
        "--overwrite",
        "book/passing.md",
        cwd=chapters,
    )
    assert answer.returncode == 4
    assert "replace the chapters' Markdown" in answer.stdout
    assert (chapters / "book" / "passing.md").read_bytes() == before
