"""What `jupyter-book build .` promises here beyond Jupyter Book itself.

* Any warning (a raising cell, a broken reference) ends in exit code 1, every time, not
  only the first time.
* Chapters run again when the package, its data or the corpus changed, not only when
  their cells did.
* One build at a time: a second one waits.
* The site loads nothing from another host: MathJax is copied into it, and the finished
  pages are checked.
* Each page carries a content-security policy that names the scripts it may run.
* The site's own address leads to the first page, from a page that has a title, a
  language and an icon.
* The page that talks finds its models: they are written into the site, from the stages
  that the book has trained.
* Each chapter can be downloaded as a notebook that runs on its own.
* A listing has a number and can be linked to, and an index names all of them; one that
  is named and not there is a warning.
* A word that links to the glossary says what it means when the pointer rests on it.
* A page with a `description` in its front matter says it to search engines and in
  previews of links.
"""

from __future__ import annotations

import ast
import base64
import hashlib
import html
import importlib.metadata
import itertools
import os
import re
import shutil
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import filelock
from book_kernels import prepare_kernels
from docutils import nodes
from sphinx import addnodes
from sphinx.application import ENV_PICKLE_FILENAME, Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.roles import XRefRole
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

logger = logging.getLogger(__name__)


def setup(app: Sphinx) -> dict:
    app.keep_going = True  # Count the warnings, report them all, then exit with 1.
    for prepare in (
        wait_for_other_builds,
        forget_unfinished_build,
        share_with_kernels,
        choose_execution_cache,
        use_local_mathjax,
        link_repository,
        write_pages_after_style_changes,
    ):
        app.connect("config-inited", prepare)
    app.connect("builder-inited", copy_mathjax)
    app.connect(
        "env-get-outdated", find_listings, priority=600
    )  # After the table of contents is known.
    app.connect("env-before-read-docs", read_in_order)
    app.add_directive("code-index", CodeIndex)
    app.add_role("listing", XRefRole(warn_dangling=True))
    app.connect("missing-reference", link_to_listing)
    app.connect("env-updated", read_glossary)
    app.connect("doctree-resolved", explain_terms)
    app.connect(
        "html-page-context", describe, priority=300
    )  # Before the extension for previews looks for it.
    app.connect(
        "html-page-context", offer_notebook, priority=400
    )  # Before the theme makes its buttons.
    app.connect(
        "html-page-context", leave_out_thebe, priority=900
    )  # After everybody has added scripts.
    app.connect(
        "build-finished", write_front_door, priority=400
    )  # Before sphinx-external-toc writes a bare one.
    app.connect("build-finished", check_source_unchanged, priority=700)
    app.connect("build-finished", write_models, priority=750)
    app.connect("build-finished", check_offline, priority=800)
    app.connect("build-finished", restrict_pages, priority=850)
    app.connect("html-page-context", name_entries, priority=950)
    app.connect("html-page-context", mark_listings, priority=950)
    app.connect("build-finished", remember_outcome, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}


# --- Failing every time ---------------------------------------------------------------


def unfinished_mark(app: Sphinx) -> Path:
    """A file that exists from the start of a build until it has succeeded."""
    return Path(app.doctreedir, "unfinished")


def forget_unfinished_build(app: Sphinx, config: Config) -> None:
    """Make Sphinx read every page again unless the last build succeeded.

    Sphinx would otherwise take the pages that a failed or killed build has read for
    good, and not repeat their warnings.
    """
    mark = unfinished_mark(app)
    if mark.exists():
        Path(app.doctreedir, ENV_PICKLE_FILENAME).unlink(missing_ok=True)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def remember_outcome(app: Sphinx, exception: Exception | None) -> None:
    """Take the mark away after a build without warnings; let the next build in."""
    if exception is None and not app._warncount:
        unfinished_mark(app).unlink(missing_ok=True)
    app.house_lock.release()


def wait_for_other_builds(app: Sphinx, config: Config) -> None:
    """Hold a lock on the output folder, which ends with this process."""
    app.house_lock = filelock.FileLock(Path(app.outdir).parent / ".house.lock")
    try:
        app.house_lock.acquire(timeout=0)
    except filelock.Timeout:
        logger.info(
            "Another build of this book is running. Waiting for it to finish ..."
        )
        app.house_lock.acquire()


# --- Running the chapters -------------------------------------------------------------


def share_with_kernels(app: Sphinx, config: Config) -> None:
    """Set what the chapters' kernels inherit."""
    prepare_kernels(Path(app.srcdir))


def key_of(*parts: bytes) -> str:
    """A short name for what the parts are."""
    return hashlib.sha256(
        b"".join(hashlib.sha256(part).digest() for part in parts)
    ).hexdigest()[:12]


def files_below(folder: Path) -> list[bytes]:
    """Names and contents of all files below a folder but caches and the like."""
    parts = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        made = any(
            part.startswith((".", "__pycache__")) or part.endswith(".egg-info")
            for part in name.parts
        )
        if path.is_file() and not made:
            parts += [name.as_posix().encode(), path.read_bytes()]
    return parts


def package_key(root: Path) -> str:
    """A hash of the package, of the recorded evidence and of the PyTorch release."""
    packages = importlib.metadata.distributions(name="torch")
    releases = sorted({package.version for package in packages})
    files = files_below(root / "code") + files_below(root / "evidence")
    return key_of(*files, *(release.encode() for release in releases))


def corpus_key(root: Path) -> str:
    """A hash of `POSTTRAIN_CORPUS` and of the corpus that the chapters would find."""
    setting = os.environ.get("POSTTRAIN_CORPUS", "")
    places = (
        [Path(setting)]
        if setting
        else [
            root / "data" / "tinyshakespeare.txt",
            root.parent / "shared" / "data" / "tinyshakespeare.txt",
        ]
    )
    text = next((place.read_bytes() for place in places if place.is_file()), b"")
    return key_of(setting.encode(), text)


def read_in_order(app: Sphinx, env: BuildEnvironment, docnames: list[str]) -> None:
    """Run the chapters in order: each needs those before; the front page last."""
    first, *order = env.external_site_map
    order.append(first)
    docnames.sort(key=lambda name: order.index(name) if name in order else len(order))


def execution_cache(app: Sphinx) -> Path:
    root = Path(app.srcdir)
    return (
        Path(app.outdir).parent
        / ".jupyter_cache"
        / f"{package_key(root)}-{corpus_key(root)}"
    )


def choose_execution_cache(app: Sphinx, config: Config) -> None:
    """Keep executed chapters per state of package and corpus, for the last few."""
    cache = execution_cache(app)
    cache.mkdir(parents=True, exist_ok=True)
    os.utime(cache)
    config.nb_execution_cache_path = str(
        cache
    )  # Sphinx reads all pages again when this changes.
    states = sorted(
        cache.parent.iterdir(), key=lambda state: state.stat().st_mtime, reverse=True
    )
    for state in states[4:]:
        shutil.rmtree(state, ignore_errors=True)


def check_source_unchanged(app: Sphinx, exception: Exception | None) -> None:
    """Do not file under one state what was executed in another."""
    before, after = Path(app.config.nb_execution_cache_path), execution_cache(app)
    if after.name.split("-")[0] != before.name.split("-")[0]:
        shutil.rmtree(before, ignore_errors=True)
        logger.warning(
            "The package below code/ changed while the book was being built. Build it "
            "again."
        )
    elif after != before and not after.exists():
        # The first chapter has just downloaded the corpus.
        try:
            before.rename(after)
        except OSError:
            pass  # The next build will execute once more.


# --- Nothing from another host --------------------------------------------------------

MATHJAX = "mathjax/tex-svg-full.js"


def use_local_mathjax(app: Sphinx, config: Config) -> None:
    config.mathjax_path = MATHJAX


def copy_mathjax(app: Sphinx) -> None:
    """Put MathJax, a file without fonts, from sphinx-mathjax-offline, into the site."""
    if app.builder.format != "html":
        return
    try:
        package = importlib.metadata.distribution("sphinx-mathjax-offline")
    except importlib.metadata.PackageNotFoundError as error:
        raise ExtensionError(
            "Equations need MathJax: pip install -r requirements.txt"
        ) from error
    target = Path(app.outdir, "_static", MATHJAX)
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(
        package.locate_file(f"sphinx-mathjax-offline/static/{MATHJAX}"), target
    )


def write_pages_after_style_changes(app: Sphinx, config: Config) -> None:
    """Write pages after a change of style, as Sphinx copies style sheets only then."""
    book = Path(app.srcdir, "book")
    config.html_context["house"] = key_of(
        *files_below(book / "_static"), *files_below(book / "_ext")
    )


def leave_out_thebe(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Drop Jupyter Book's live-code scripts: no button uses them; they name a CDN."""
    context["script_files"] = [
        script
        for script in context["script_files"]
        if "thebe" not in str(script.filename)
        and "THEBE_JS_URL" not in script.attributes.get("body", "")
    ]


class OutsideResources(HTMLParser):
    """Collect what a page loads from other hosts by itself; links are not that."""

    LOADING_LINKS = {
        "stylesheet",
        "icon",
        "apple-touch-icon",
        "mask-icon",
        "manifest",
        "preload",
        "prefetch",
        "modulepreload",
        "preconnect",
        "dns-prefetch",
    }
    CSS = re.compile(
        r"""(?:@import\s+|url\(\s*)["']?((?:https?:)?//[^"')\s]+)""", re.IGNORECASE
    )
    SCRIPT = re.compile(r"""["'`](https?://(?!www\.w3\.org/)[^"'`\s]+)""")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.inside = tag
        # Take the attributes that load something
        loaded = [values[name] for name in ("src", "poster") if name in values]
        loaded += [
            part.split()[0]
            for part in values.get("srcset", "").split(",")
            if part.strip()
        ]
        if tag == "object":
            loaded.append(values.get("data", ""))
        if tag in ("image", "use"):
            loaded += [values.get("href", ""), values.get("xlink:href", "")]
        if tag == "link" and self.LOADING_LINKS & set(
            values.get("rel", "").lower().split()
        ):
            loaded.append(values.get("href", ""))
        # Keep those on another host
        self.found += [
            url for url in loaded if re.match(r"\s*(https?:)?//", url, re.IGNORECASE)
        ]
        self.found += self.CSS.findall(values.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "style":
            self.found += self.CSS.findall(data)
        if self.inside == "script":
            self.found += self.SCRIPT.findall(data)


def outside_resources(path: Path) -> list[str]:
    """The addresses on other hosts that an .html or .css file loads."""
    text = path.read_text(encoding="utf-8", errors="replace")
    if path.suffix == ".css":
        return sorted(set(OutsideResources.CSS.findall(text)))
    page = OutsideResources()
    page.feed(text)
    return sorted({url.strip() for url in page.found})


def check_offline(app: Sphinx, exception: Exception | None) -> None:
    """Fail the build over a page or style sheet that would ask another host."""
    if exception is not None or app.builder.format != "html":
        return
    for path in sorted(
        [*Path(app.outdir).rglob("*.html"), *Path(app.outdir).rglob("*.css")]
    ):
        for url in outside_resources(path):
            page = path.relative_to(app.outdir).as_posix()
            logger.warning("%s loads %s, but the book must work offline", page, url)


# --- The models that run in a page ----------------------------------------------------


def write_models(app: Sphinx, exception: Exception | None) -> None:
    """Write the trained models as script files, for the page that talks."""
    if (
        exception is not None
        or app.builder.format != "html"
        or "book/talk" not in app.env.found_docs
    ):
        return
    from posttrain.cli import browser
    from posttrain.data import corpus

    browser.write_models(corpus.load(), Path(app.outdir, "_static", "models"))


# --- The index of the code ------------------------------------------------------------

CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CELL_OPTIONS = re.compile(r"\A(?:---\n.*?\n---\n|(?::[^\n]*\n)+)", re.DOTALL)
# What a cell shows as highlighted Python, perhaps after what it has printed, and in it
# a function or class that begins at the margin. Methods are indented
LISTING = re.compile(
    r'<div class="cell_output[^>]*>\s*'
    r'(?:<div class="output (?:stream|stderr)[^>]*><div class="highlight">'
    r"<pre>(?:(?!</pre>).)*</pre></div>\s*</div>\s*)*"
    r'<div class="highlight-python[^>]*><div class="highlight"><pre>.*?</pre>',
    re.DOTALL,
)
DEFINITION = re.compile(
    r'((?:^|<pre>(?:<span></span>)?)<span class="k">(?:def|class)</span>'
    r'(?:<span class="w"> </span>|\s)<span class="n[fc]")>(\w+)<',
    re.MULTILINE,
)


def cells(text: str) -> list[ast.Module]:
    """The code cells of a page, in order, parsed."""
    return [ast.parse(CELL_OPTIONS.sub("", source)) for source in CELL.findall(text)]


def shown(text: str) -> list[str]:
    """module.name of all that a page's `show_source` calls name, in order."""
    every = [node for cell in cells(text) for node in ast.walk(cell)]
    home, found = {}, []
    for node in every:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                home[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in every:
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "show_source":
            for argument in node.args:
                if isinstance(argument, ast.Constant):
                    found.append(argument.value)
                    continue
                first, *rest = ast.unparse(argument).split(".")
                name = ".".join([home.get(first, first), *rest])
                found.append(name.removeprefix("posttrain."))
    return found


def anchor(name: str) -> str:
    """Where on its page the listing of module.name is found."""
    return "code-" + name.replace(".", "-")


def find_listings(
    app: Sphinx, env: BuildEnvironment, added: set, changed: set, removed: set
) -> list[str]:
    """Note the page that shows each part of the package; on a change read all again."""
    found: dict[str, str] = {}
    for page in filter(env.found_docs.__contains__, env.external_site_map):
        for name in shown(Path(env.doc2path(page)).read_text(encoding="utf-8")):
            found.setdefault(name, page)
    before, env.house_listings = getattr(env, "house_listings", None), found
    return [] if found == before else sorted(env.found_docs)


def link_to_listing(
    app: Sphinx, env: BuildEnvironment, node: nodes.Element, text: nodes.Node
) -> nodes.reference | None:
    """Resolve {listing}`module.name`, in the code's index to the chapter's title."""
    name = node.get("reftarget")
    if node.get("reftype") != "listing" or name not in env.house_listings:
        return None
    page = env.house_listings[name]
    if node.get("titled"):
        text = nodes.inline("", env.titles[page].astext())
    return make_refnode(app.builder, node["refdoc"], page, anchor(name), text)


def mark_listings(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Number the listings, anchor each definition, and miss those named, not shown."""
    if "body" not in context or pagename not in app.env.house_listings.values():
        return
    waiting, marked = (
        shown(Path(app.env.doc2path(pagename)).read_text(encoding="utf-8")),
        [],
    )
    chapter = app.env.toc_secnumbers.get(pagename, {}).get("", ())
    count = itertools.count(1)

    def mark(found: re.Match) -> str:
        name = next(
            (name for name in waiting if name.rpartition(".")[2] == found[2]), None
        )
        if name is None:
            return found[0]
        waiting.remove(name)
        marked.append(name)
        return f'{found[1]} id="{anchor(name)}">{found[2]}<'

    def number(found: re.Match) -> str:
        marked.clear()
        listing = DEFINITION.sub(mark, found[0])
        if not marked:
            return listing
        # Say above it which listing it is, and from which files
        files = dict.fromkeys(
            name.rpartition(".")[0].replace(".", "/") + ".py" for name in marked
        )
        title = ".".join(map(str, (*chapter, next(count))))
        caption = (
            f'<p class="listing-caption">Listing {title}: '
            f"<code>{', '.join(files)}</code></p>\n"
        )
        return listing.replace(
            '<div class="highlight-python', caption + '<div class="highlight-python', 1
        )

    context["body"] = LISTING.sub(number, context["body"])
    for name in waiting:
        logger.warning(
            "There is no listing of %s, which show_source names",
            name,
            location=pagename,
        )


def first_sentence(text: str) -> str:
    """A text's first sentence on one line."""
    return re.split(
        r"(?<=[.?!])\s+(?=[^\sa-z\d])", " ".join(text.split("\n\n")[0].split())
    )[0]


def inline(text: str) -> list[nodes.Node]:
    """A docstring's text with its `code` and its $formulas$."""
    found = []
    for part in re.split(r"(`[^`]+`|\$[^$]+\$)", text):
        kind = {"`": nodes.literal, "$": nodes.math}.get(part[:1])
        found.append(kind("", part[1:-1]) if kind else nodes.Text(part))
    return found


def table(head: list[str], rows: list[list[list[nodes.Node]]]) -> nodes.table:
    """A table, its cells given as lists of inline nodes."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in head), cols=len(head))
    for part, lines in (
        (nodes.thead(), [[[nodes.Text(name)] for name in head]]),
        (nodes.tbody(), rows),
    ):
        part += [
            nodes.row(
                "", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in line)
            )
            for line in lines
        ]
        group += part
    return nodes.table("", group, classes=["colwidths-auto"])


class CodeIndex(SphinxDirective):
    """A section for each module that the book shows: what is shown, and where."""

    def run(self) -> list[nodes.Node]:
        names = sorted(self.env.house_listings)
        return [
            self.section(module)
            for module in sorted({name.rpartition(".")[0] for name in names})
        ]

    def section(self, module: str) -> nodes.section:
        source = Path(
            self.env.srcdir, "code", "posttrain", *module.split(".")
        ).with_suffix(".py")
        self.env.note_dependency(str(source))
        tree = ast.parse(source.read_text(encoding="utf-8"))
        rows = []
        for node in tree.body:
            name = f"{module}.{getattr(node, 'name', '')}"
            if name in self.env.house_listings:
                link = addnodes.pending_xref(
                    "",
                    nodes.inline("", name),
                    refdomain="",
                    reftype="listing",
                    refdoc=self.env.docname,
                    reftarget=name,
                    refwarn=True,
                    titled=True,
                )
                says = first_sentence(ast.get_docstring(node) or "")
                rows.append([[nodes.literal("", node.name)], inline(says), [link]])
        return nodes.section(
            "",
            nodes.title("", "", nodes.literal("", module)),
            nodes.paragraph(
                "", "", *inline(first_sentence(ast.get_docstring(tree) or ""))
            ),
            table(["function or class", "what it is", "shown in"], rows),
            ids=[f"module-{module.replace('.', '-')}"],
        )


# --- The glossary's words -------------------------------------------------------------


def plain(node: nodes.Element) -> str:
    """A node's text without the names of what it refers to; formulas as letters."""
    parts = []
    for text in node.findall(nodes.Text):
        if isinstance(text.parent, nodes.math):
            parts.append(re.sub(r"[{}]", "", re.sub(r"\\([A-Za-z]+)", letter, text)))
        elif getattr(text.parent.parent, "attributes", {}).get("reftype") != "ref":
            parts.append(text)
    return "".join(parts)


def letter(command: re.Match) -> str:
    """The Greek letter that a TeX command stands for, or how the command is read."""
    name = command[1]
    try:
        return unicodedata.lookup(
            f"GREEK SMALL LETTER {name.replace('lambda', 'lamda')}"
        )
    except KeyError:
        return {"sum": "Σ", "text": ""}.get(name, name)


def read_glossary(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Note each entry's first sentence; on a change have all pages written again."""
    entries = [
        entry for entry in env.get_domain("std").get_objects() if entry[2] == "term"
    ]
    found = {}
    for page in sorted({entry[3] for entry in entries}):
        for item in env.get_doctree(page).findall(nodes.definition_list_item):
            meaning = first_sentence(plain(item.next_node(nodes.definition)[0]).strip())
            found |= {
                name: meaning
                for term in item.findall(nodes.term)
                for name in term["ids"]
            }
    before, env.house_glossary = getattr(env, "house_glossary", None), found
    return [] if found == before else sorted(env.found_docs)


def explain_terms(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """Let each link to an entry of the glossary show what the entry says first."""
    for link in doctree.findall(nodes.reference):
        if "std-term" in getattr(link.next_node(nodes.inline), "attributes", {}).get(
            "classes", []
        ):
            entry = link.get("refid") or link["refuri"].rpartition("#")[2]
            link["reftitle"] = app.env.house_glossary[entry]


# --- Screen readers -------------------------------------------------------------------


def name_entries(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Call the entries of a list of works list items, not by an outdated role."""
    if "body" in context:
        context["body"] = context["body"].replace(
            ' role="doc-biblioentry"', ' role="listitem"'
        )


# --- Previews -------------------------------------------------------------------------


def describe(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Say what a page is about in the words of its front matter, where it has them."""
    meta = context.get("meta") or {}
    if "description" in meta:
        meta["og:description"] = meta["description"]
        context["metatags"] += (
            f'<meta name="description" content="{html.escape(meta["description"])}" '
            "/>\n"
        )


# --- A content-security policy --------------------------------------------------------

POLICY_TAG = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n?')
INLINE_SCRIPT = re.compile(
    r"<script(?![^>]*\ssrc=)[^>]*>(.*?)</script>", re.DOTALL | re.IGNORECASE
)
HANDLER = re.compile(r'''<[a-z][^<>]*?\son[a-z]+="([^"]*)"''', re.IGNORECASE)


def policy(page: str) -> str:
    """What a browser may do with a page: run the site's scripts and those in the page.

    Those are named by their hash, so that nothing that gets into the page otherwise can
    run, a chat with a model included. Styles may stand anywhere: MathJax and the theme
    write them.
    """
    own = {script for script in INLINE_SCRIPT.findall(page) if script.strip()}
    own |= {html.unescape(handler) for handler in HANDLER.findall(page)}
    digests = (hashlib.sha256(script.encode()).digest() for script in own)
    hashes = sorted(
        f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests
    )
    rules = {
        "default-src": ["'none'"],
        "script-src": [
            "'self'",
            "'unsafe-hashes'",
            *hashes,
        ],  # the word allows hashes of handlers such as onclick
        "style-src": ["'self'", "'unsafe-inline'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "form-action": ["'self'"],
        "base-uri": ["'none'"],
    }
    return "; ".join(" ".join([name, *sources]) for name, sources in rules.items())


def restrict_pages(app: Sphinx, exception: Exception | None) -> None:
    """Write each page's policy at the beginning of its head."""
    if exception is not None or app.builder.format != "html":
        return
    for path in sorted(Path(app.outdir).rglob("*.html")):
        page = path.read_text(encoding="utf-8")
        tag = f'<meta http-equiv="Content-Security-Policy" content="{policy(page)}">\n'
        # Keep the encoding first: browsers look for it in a page's first 1,024 bytes
        head = re.compile(r"<head[^>]*>\s*(<meta charset[^>]*>\s*)?")
        restricted = head.sub(
            lambda found, tag=tag: found[0] + tag, POLICY_TAG.sub("", page), count=1
        )
        if restricted != page:
            path.write_text(restricted, encoding="utf-8")


# --- The way in -----------------------------------------------------------------------

FRONT_DOOR = """\
<!DOCTYPE html>
<html lang="{lang}">
<head>
<meta charset="utf-8">
<meta http-equiv="Refresh" content="0; url={first}">
<title>{title}</title>
<link rel="icon" href="{icon}">
</head>
<body><p><a href="{first}">{title}</a></p></body>
</html>
"""


def write_front_door(app: Sphinx, exception: Exception | None) -> None:
    """Write the index.html that leads to the first page.

    Without an icon, browsers ask for /favicon.ico, which is not there.
    """
    if (
        exception is not None
        or app.builder.format != "html"
        or app.config.root_doc == "index"
    ):
        return
    page = FRONT_DOOR.format(
        lang=app.config.language,
        first=app.builder.get_target_uri(app.config.root_doc),
        title=html.escape(app.config.html_title),
        icon=f"_static/{Path(app.config.html_favicon).name}",
    )
    Path(app.outdir, "index.html").write_text(page, encoding="utf-8")


# --- Chapters to take away ------------------------------------------------------------

INSTALL = """\
# Install the book's package where it is missing.
import importlib, importlib.util, pathlib, subprocess, sys

if importlib.util.find_spec("posttrain") is None:
    here = pathlib.Path.cwd()
    places = (here, *here.parents)
    clones = [str(p) for p in places if (p / "code" / "posttrain").is_dir()]
    sources = clones + {archives}
    if not sources:
        raise ModuleNotFoundError(
            "No package posttrain: open this notebook inside a clone of the book's "
            "repository, or install the package with pip from there.")
    install = [sys.executable, "-m", "pip", "install", "--quiet", sources[0]]
    subprocess.run(install, check=True)
    importlib.invalidate_caches()"""


def link_repository(app: Sphinx, config: Config) -> None:
    """Show the repository's buttons when _config.yml or GitHub gives its address."""
    options = config.html_theme_options
    name = os.environ.get("GITHUB_REPOSITORY")
    if name and not options.get("repository_url"):
        server = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        options["repository_url"] = f"{server}/{name}"
    if options.get("repository_url"):
        options.update(use_repository_button=True, use_issues_button=True)


def offer_notebook(
    app: Sphinx, pagename: str, templatename: str, context: dict, doctree
) -> None:
    """Write the chapter as .ipynb, its first cell to install the package."""
    if "kernelspec" not in app.env.metadata.get(pagename, {}):
        return
    import jupytext
    import notebooks
    from nbformat.v4 import new_code_cell

    if not hasattr(app, "house_names"):
        app.house_names = notebooks.find_names()
    path = Path(app.env.doc2path(pagename))
    states = Path(app.config.nb_execution_cache_path)
    notebook = notebooks.plain_notebook(path, states, app.house_names)
    repository = app.config.html_theme_options.get("repository_url")
    archives = [f"{repository}/archive/HEAD.zip"] if repository else []
    notebook.cells.insert(0, new_code_cell(INSTALL.format(archives=archives)))
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # Not random: the same chapter gives the same file.
    target = Path(app.outdir, "_sources", f"{pagename}.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    jupytext.write(notebook, target, fmt="ipynb")
    context["ipynb_source"] = f"{pagename}.ipynb"
