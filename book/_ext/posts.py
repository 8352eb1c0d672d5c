"""`make posts`: the built book's posts as plain Markdown, to be published elsewhere.

Each becomes `_build/posts/NAME.md`, with title and description in its front matter, the
numbers filled in, formulas in $...$, code in fences, and its figure as a PNG beside it.
Everything comes from the run that made the page: a post that has changed since the book
was built is refused, and so is anything that plain Markdown cannot say.
"""

from __future__ import annotations

import argparse
import ast
import base64
import json
import re
import sys
from pathlib import Path

import house
import yaml

ROOT = Path(__file__).resolve().parents[2]
GLUED = re.compile(r"\{glue:text\}`([^`:]+)`")
REFERENCE = re.compile(r"\{ref\}`([^`<]+?)\s*<([^>`]+)>`")
MYST = re.compile(
    r"\{[a-z][\w:-]*\}`|^\s*(?:`{3,}|:{3,})\{|^\([\w-]+\)=$", re.MULTILINE
)


class PostError(Exception):
    """A post that cannot be written."""


def executed(path: Path, states: Path):
    """The post as a notebook with the outputs that its page shows.

    states: the folder with the executed pages. Raises PostError where the book has not
    run the page as it is.
    """
    from jupyter_cache import get_cache
    from myst_nb.core.read import read_myst_markdown_notebook

    notebook = read_myst_markdown_notebook(
        path.read_text(encoding="utf-8"), add_source_map=True
    )
    try:
        return get_cache(states).merge_match_into_notebook(notebook)[1]
    except KeyError:
        raise PostError(
            f"{path.name} is not what the book was built with: run make book"
        ) from None


def glued(notebook) -> dict[str, str]:
    """The values that a page's run has recorded for its prose, by name."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    kept = [output for output in outputs if "scrapbook" in output.get("metadata", {})]
    return {
        output.metadata["scrapbook"]["name"]: str(
            ast.literal_eval(output.data["application/papermill.record/text/plain"])
        )
        for output in kept
    }


def fill(text: str, values: dict[str, str], links: dict[str, str]) -> str:
    """Prose with its numbers, and with links where the book has an address."""

    def link(found: re.Match) -> str:
        words, label = found.groups()
        return f"[{words}]({links[label]})" if label in links else words

    text = re.sub(r"^\([\w-]+\)=\n", "", text, flags=re.MULTILINE)
    return REFERENCE.sub(link, GLUED.sub(lambda found: values[found[1]], text))


def show(cell, figure: str) -> tuple[str, bytes | None]:
    """What a page shows of a code cell, as Markdown, and the image in it."""
    parts, image = [], None
    if "remove-cell" in cell.metadata.get("tags", []):
        return "", None
    for output in cell.outputs:
        data = output.get("data", {})
        if output.output_type == "stream":
            parts.append(f"```text\n{output.text.rstrip()}\n```")
        elif "image/png" in data:
            image = base64.b64decode(data["image/png"])
            about = cell.metadata["mystnb"]
            parts += [
                f"![{about['image']['alt']}]({figure})",
                f"*{about['figure']['caption'].strip()}*",
            ]
        elif "text/markdown" in data:
            parts.append(data["text/markdown"])
        elif "scrapbook" not in output.get("metadata", {}):
            raise PostError(f"no Markdown for an output of {sorted(data)}")
    return "\n\n".join(parts), image


def write_post(notebook, target: Path, links: dict[str, str]) -> None:
    """Write a post and its figure. Raises PostError for what Markdown cannot say."""
    values, parts = glued(notebook), []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            parts.append(fill(cell.source, values, links))
            continue
        text, image = show(cell, f"{target.stem}.png")
        parts.append(text)
        if image:
            target.with_suffix(".png").write_bytes(image)
    title, _, body = "\n\n".join(filter(None, parts)).strip().partition("\n")
    left = MYST.search(body)
    if left:
        raise PostError(f"{target.stem}: no plain Markdown for {left[0].strip()}")
    head = dict(
        title=title.removeprefix("# "), description=notebook.metadata["description"]
    )
    front = "".join(
        f"{name}: {json.dumps(words, ensure_ascii=False)}\n"
        for name, words in head.items()
    )
    target.write_text(f"---\n{front}---\n\n{body.strip()}\n", encoding="utf-8")


def addresses(site: Path, address: str) -> dict[str, str]:
    """The full address of each label of the built book, where the book has one."""
    from sphinx.util.inventory import InventoryFile

    if not address:
        return {}
    with open(site / "objects.inv", "rb") as file:
        labels = InventoryFile.load(
            file, address.rstrip("/"), lambda base, page: f"{base}/{page}"
        )["std:label"]
    return {name: entry[2] for name, entry in labels.items()}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--address", help="where the book is published, for links to its chapters"
    )
    address = parser.parse_args(arguments).address
    if address is None:
        config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
        address = config["html"].get("baseurl", "")
    build, target = ROOT / "_build", ROOT / "_build" / "posts"
    states = (
        build / ".jupyter_cache" / f"{house.package_key(ROOT)}-{house.corpus_key(ROOT)}"
    )
    target.mkdir(parents=True, exist_ok=True)
    try:
        links = addresses(build / "html", address)
        for path in sorted((ROOT / "book" / "posts").glob("*.md")):
            write_post(executed(path, states), target / path.name, links)
            print(f"_build/posts/{path.name} and {path.stem}.png")
    except PostError as error:
        sys.exit(f"posts: {error}")
    if not links:
        print(
            "Links to chapters are words only: make posts POST_FLAGS='--address "
            "https://...' says where the book is."
        )


if __name__ == "__main__":
    main()
