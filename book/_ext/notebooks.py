"""Chapters as notebooks that any Jupyter shows as the book does: to run, and to change.

`python book/_ext/notebooks.py` writes one of each chapter into `work/`, which git
ignores, and never over one that is there; `make lab` opens that folder. The same
notebooks can be downloaded from the pages. Text is plain Markdown and HTML: no
extension is needed. Where the book has been built, outputs and numbers are those of its
pages.
"""

from __future__ import annotations

import hashlib
import html
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

import house
import yaml

ROOT = Path(__file__).resolve().parents[2]
FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
LABEL = re.compile(r"^\(([\w-]+)\)=\n", re.MULTILINE)
TITLE = re.compile(r"(?:^\(([\w-]+)\)=\n+)?^(#{1,3}) (.+)$", re.MULTILINE)
FENCE = re.compile(r"^(`{3,}|:{3,})\{([\w-]+)\} ?(.*)$")
OPTION = re.compile(r"^:([\w-]+): ?(.*)$")
EQUATION = re.compile(r"^\$\$ \(([\w-]+)\)$", re.MULTILINE)
ROLE = re.compile(r"\{([\w:]+)\}`([^`<]*?)(?: ?<([^>`]+)>)?`")
INTERACTIVE = 'class="interactive"'


@dataclass
class Names:
    """What the labels of the book are called, and the works that it cites."""

    titles: dict[str, str] = field(default_factory=dict)  # label to title
    pages: dict[str, str] = field(default_factory=dict)  # label to page
    numbers: dict[str, str] = field(default_factory=dict)  # label to "4.2"
    works: dict[str, str] = field(default_factory=dict)  # key to "Ouyang et al., 2022"


def contents() -> list[tuple[str, str]]:
    """Each page of the book in order, "book/ppo", and its chapter's number or ""."""
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    pages, number = [(toc["root"], "")], 0
    for part in toc.get("parts", []):
        for chapter in part["chapters"]:
            number += bool(part.get("numbered"))
            pages.append((chapter["file"], str(number) if part.get("numbered") else ""))
    return pages


def chapters() -> list[str]:
    """The pages that readers work in: those with a number, and "Make it yours"."""
    return [page for page, number in contents() if number or page == "book/yours"]


def find_names() -> Names:
    """Read all pages for what can be referred to."""
    names = Names(works=works())
    for page, number in contents():
        path = ROOT / f"{page}.md"
        text = FRONT_MATTER.sub("", path.read_text(encoding="utf-8"))
        title = next((found[2] for found in TITLE.findall(text)), page)
        for label, _, heading in TITLE.findall(text):
            if label:
                names.titles[label], names.pages[label] = heading, page
        figures = re.findall(r"^ +name: ([\w-]+)$", text, re.MULTILINE)
        for kind in (figures, EQUATION.findall(text)):
            for i, label in enumerate(kind, start=1):
                names.numbers[label] = f"{number}.{i}" if number else str(i)
                names.pages[label] = page
        for label in re.findall(r"^:label: ([\w-]+)$", text, re.MULTILINE):
            names.titles.setdefault(label, f"an exercise of {title}")
            names.pages[label] = page
    return names


def works() -> dict[str, str]:
    """The works of the bibliography, as they are cited: key to authors and year."""
    from pybtex.database import parse_file

    found = {}
    for key, entry in parse_file(str(ROOT / "book" / "references.bib")).entries.items():
        last = [" ".join(person.last_names) for person in entry.persons["author"]]
        last = [re.sub(r"[{}\\\"']", "", name) for name in last]
        authors = {1: last[0], 2: " and ".join(last)}.get(
            len(last), f"{last[0]} et al."
        )
        found[key] = f"{authors}, {entry.fields.get('year', 'n.d.')}"
    return found


# --- Text -----------------------------------------------------------------------------


def words(text: str, page: str, names: Names, values: dict[str, str]) -> str:
    """Prose without roles: numbers, terms, references and citations in words."""

    def said(found: re.Match) -> str:
        role, given, target = found.groups()
        label = target or given
        if role == "glue:text":
            name, _, form = given.partition(":")
            return formatted(values.get(name, f"[{name}]"), form)
        if role.startswith("cite"):
            cited = [names.works.get(key.strip(), key) for key in given.split(",")]
            return f"({'; '.join(cited)})"
        if role == "ref":
            shown = given if target else names.titles.get(label, label)
            return linked(shown, label, page, names)
        if role == "numref":
            return f"Figure {names.numbers.get(label, '')}"
        if role == "eq":
            return f"({names.numbers.get(label, '')})"
        return given  # a term, a listing

    return ROLE.sub(said, text)


def formatted(value: str, form: str) -> str:
    """A recorded value, formatted as the page says."""
    try:
        return format(float(value), form) if form else value
    except ValueError:
        return value


def linked(shown: str, label: str, page: str, names: Names) -> str:
    """Words that lead to another chapter's notebook, where there is one."""
    home = names.pages.get(label)
    if home in (None, page) or home not in chapters():
        return shown
    return f"[{shown}]({Path(home).name}.ipynb)"


def plain_text(
    text: str, page: str, names: Names, values: dict[str, str] | None = None
) -> str:
    """MyST Markdown as Markdown that every Jupyter shows."""
    text = LABEL.sub("", text)
    text = EQUATION.sub(
        lambda found: rf"\tag{{{names.numbers[found[1]]}}}" + "\n$$", text
    )
    text = "\n".join(blocks(text.split("\n")))
    return words(text, page, names, values or {}).strip()


def blocks(lines: list[str]) -> list[str]:
    """Lines whose directives have become quotations, headings and folded parts."""
    out, waiting = [], list(lines)
    while waiting:
        line = waiting.pop(0)
        fence = FENCE.match(line)
        if not fence:
            out.append(line)
            continue
        mark, kind, title = fence.groups()
        body = []
        while waiting and waiting[0].strip() != mark:
            body.append(waiting.pop(0))
        if waiting:
            waiting.pop(0)
        options = {}
        while body and OPTION.match(body[0]):
            name, value = OPTION.match(body.pop(0)).groups()
            options[name] = value
        out += directive(kind, title, options, body)
    return out


def directive(
    kind: str, title: str, options: dict[str, str], body: list[str]
) -> list[str]:
    """The lines that stand for a directive."""
    if kind == "dropdown":
        return folded(title, body)
    if kind == "solution":
        return folded("Solution", body)
    inner = blocks(body)
    if kind == "exercise":
        return ["", f"**Exercise: {title}.**", "", *inner, ""]
    if kind in ("admonition", "note", "tip"):
        return [*quoted(title or kind.capitalize(), inner), ""]
    return inner


def folded(title: str, body: list[str]) -> list[str]:
    """A part that opens at a click."""
    return ["", f"<details><summary>{html.escape(title)}</summary>", ""] + [
        *blocks(body),
        "",
        "</details>",
        "",
    ]


def quoted(title: str, lines: list[str]) -> list[str]:
    """A quotation under a title; what is folded in it stands after it."""
    start = next((i for i, x in enumerate(lines) if x.startswith("<details>")), None)
    inside, after = (lines, []) if start is None else (lines[:start], lines[start:])
    while inside and not inside[-1].strip():
        inside = inside[:-1]
    return ["", *(f"> {x}".rstrip() for x in [f"**{title}**", "", *inside]), "", *after]


# --- Cells ----------------------------------------------------------------------------


def caption_of(cell, page: str, names: Names, values: dict[str, str]) -> str:
    """The caption under a figure, with its number; "" where there is none."""
    figure = cell.metadata.get("mystnb", {}).get("figure")
    if not figure:
        return ""
    number = names.numbers.get(figure.get("name", ""), "")
    text = plain_text(" ".join(figure["caption"].split()), page, names, values)
    return f"*Figure {number}. {text}*"


def fold(cell) -> None:
    """Fold in Jupyter what the page hides; a click opens it."""
    tags = set(cell.metadata.get("tags", []))
    hidden = {}
    if tags & {"remove-cell", "remove-input", "hide-input"}:
        hidden["source_hidden"] = True
    if tags & {"remove-cell", "hide-output"}:
        hidden["outputs_hidden"] = True
    about = cell.metadata.get("mystnb", {})
    cell.metadata = dict(tags=sorted(tags)) if tags else {}
    if hidden:
        cell.metadata["jupyter"] = hidden
    # Say what is folded, where nothing else would
    if tags >= {"remove-input", "hide-output"}:
        said = about.get("code_prompt_show", "Show the code")
        cell.source = (
            f"# {said}: open the output with a click on its bar\n{cell.source}"
        )


def views() -> str:
    """The style and the script that bring a page's views to life, as HTML."""
    static = ROOT / "book" / "_static"
    style, script = (
        (static / name).read_text(encoding="utf-8")
        for name in ("views.css", "views.js")
    )
    return f"<style>{style}</style><script>{script}</script>"


def enliven(cell) -> None:
    """Give a view that was made for a page the script that it has there."""
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if INTERACTIVE in data.get("text/html", ""):
            data["text/html"] += views()


def plain_notebook(path: Path, states: Path | None, names: Names):
    """A chapter as a notebook: executed, where the book has run it as it is."""
    import jupytext
    import posts
    from nbformat.v4 import new_markdown_cell

    page = path.relative_to(ROOT).with_suffix("").as_posix()
    values: dict[str, str] = {}
    notebook = jupytext.read(path, fmt="md:myst")
    try:
        executed = posts.executed(path, states) if states else None
    except posts.PostError:
        executed = None
    if executed is not None:
        values = posts.glued(executed)
        ran = [cell for cell in executed.cells if cell.cell_type == "code"]
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        for cell, done in zip(code, ran, strict=True):
            cell.outputs, cell.execution_count = done.outputs, done.execution_count
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = plain_text(cell.source, page, names, values)
            cells += [cell] if cell.source else []
            continue
        caption = caption_of(cell, page, names, values)
        fold(cell)
        enliven(cell)
        cells.append(cell)
        if caption:
            cells.append(new_markdown_cell(caption))
    for number, cell in enumerate(cells):
        cell.id = f"cell-{number}"  # Not random: the same chapter gives the same file.
        cell.metadata.pop("mystnb", None)
    notebook.cells = cells
    notebook.metadata.pop("jupytext", None)
    return notebook


def executed_states() -> Path | None:
    """The folder with the pages that the book has run, in the state that is now."""
    caches = ROOT / "_build" / ".jupyter_cache"
    states = caches / f"{house.package_key(ROOT)}-{house.corpus_key(ROOT)}"
    return states if states.exists() else None


def source_key(path: Path) -> str:
    """A short name for what a chapter says."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def write_copies(folder: Path) -> list[str]:
    """Write a working copy of each chapter that has none; what there is to be told."""
    import jupytext
    import nbformat

    folder.mkdir(exist_ok=True)
    names, states, told = find_names(), executed_states(), []
    for page in chapters():
        path, target = ROOT / f"{page}.md", folder / f"{Path(page).name}.ipynb"
        if target.exists():
            known = nbformat.read(target, 4).metadata.get("chapter")
            if known != source_key(path):
                told.append(
                    f"{target.name} in {folder.name}/ is a copy of an older chapter: "
                    "move it away to get the new one."
                )
            continue
        notebook = plain_notebook(path, states, names)
        notebook.metadata["chapter"] = source_key(path)
        jupytext.write(notebook, target, fmt="ipynb")
        vouch_for(target)
    if states is None:
        told.append(
            "The copies have no outputs yet: make book fills those that are new."
        )
    return told


def vouch_for(path: Path) -> None:
    """Sign a notebook of our own, so that Jupyter shows its views at once."""
    import nbformat
    from nbformat.sign import NotebookNotary

    try:
        NotebookNotary().sign(nbformat.read(path, 4))
    except OSError:
        pass  # Where the home cannot be written, a view appears when its cell is run.


def main() -> None:
    print(*write_copies(ROOT / "work"), sep="\n", end="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
