"""The text that the base model learns from: tinyshakespeare, or else a stand-in.

`load()` looks, in this order, for

1. the path it is given, else the environment variable POSTTRAIN_CORPUS (`standin`
   selects the stand-in),
2. `data/tinyshakespeare.txt` in the checkout,
3. `../shared/data/tinyshakespeare.txt`, a data folder beside the checkout, for
   classrooms without internet,
4. a download from Karpathy's repository into 2, unless POSTTRAIN_OFFLINE=1,
5. the built-in stand-in, with a warning.

A text that the reader names is used or refused, never skipped; 2, 3 and 4 count only
with the right checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import queue
import re
import secrets
import threading
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from textwrap import shorten

from posttrain.data import standin
from posttrain.tokenizer import ALPHABET

CANONICAL_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
URL = (
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/"
    "data/tinyshakespeare/input.txt"
)

SILENCE_SECONDS = 5.0  # longest wait for the server's next bytes
DOWNLOAD_SECONDS = 20.0  # longest wait for the whole download
LARGEST_DOWNLOAD = 2_000_000  # bytes; tinyshakespeare has 1,115,394
SHORTEST_TEXT = 10_000  # characters

log = logging.getLogger("posttrain")


class CorpusError(ValueError):
    """The text that the reader named cannot be used; the message says what to do."""


@dataclass(frozen=True)
class Corpus:
    """A text to learn from, where it came from, and the SHA-256 of its UTF-8 bytes."""

    text: str = field(repr=False)
    source: str
    sha256: str

    @property
    def train(self) -> str:
        """The first 90 % of the characters (Karpathy's split)."""
        return self.text[: int(0.9 * len(self.text))]

    @property
    def validation(self) -> str:
        """The last 10 % of the characters."""
        return self.text[int(0.9 * len(self.text)) :]


def load(path: str | os.PathLike | None = None, *, download: bool = True) -> Corpus:
    """The corpus, from the first place in the order above that has it.

    Raises CorpusError if the text named by `path` or POSTTRAIN_CORPUS cannot be used.
    """
    named = path if path is not None else os.environ.get("POSTTRAIN_CORPUS") or None
    if named is not None:
        if os.fspath(named) == "standin":
            return stand_in()
        return from_file(Path(os.path.expanduser(named)))
    home = checkout() or Path.cwd()
    for place in ("data/tinyshakespeare.txt", "../shared/data/tinyshakespeare.txt"):
        corpus = from_known_file(home / place, place)
        if corpus:
            return corpus
    try:
        return from_internet(home / "data/tinyshakespeare.txt", download)
    except (OSError, HTTPException, ValueError) as error:
        log.warning(
            "tinyshakespeare not found (%s): using the built-in stand-in. "
            "To train on the real text, "
            "set POSTTRAIN_CORPUS=path/to/tinyshakespeare.txt",
            shorten(str(error) or type(error).__name__, 100),
        )
        return stand_in()


def corpus_of(text: str, source: str) -> Corpus:
    return Corpus(text, source, hashlib.sha256(text.encode()).hexdigest())


def stand_in() -> Corpus:
    """The drama that the package generates itself."""
    return corpus_of(standin.generate_play(), "built-in stand-in")


def checkout() -> Path | None:
    """The folder of the checkout this module runs from, or None if there is none."""
    ours = re.compile(r"""^name\s*=\s*["']posttrain["']""", re.MULTILINE)
    for folder in Path(__file__).resolve().parents:
        project = folder / "pyproject.toml"
        if project.is_file() and ours.search(project.read_text("utf-8", "replace")):
            return folder
    return None


# A text that the reader names: used, or refused with the reason.


def from_file(path: Path) -> Corpus:
    """The text in the file; CorpusError if the model cannot learn it."""
    text = decoded(contents(path), path)
    if not text.strip():
        raise CorpusError(
            f"{path} is empty. Give a text of at least {SHORTEST_TEXT:,} characters."
        )
    if len(text) < SHORTEST_TEXT:
        raise CorpusError(
            f"{path} has {len(text):,} characters, too few to learn from. "
            f"Give a text of at least {SHORTEST_TEXT:,} characters."
        )
    if set(text) - set(ALPHABET):
        raise CorpusError(
            f"{path} contains characters outside the fixed alphabet of "
            f"{len(ALPHABET)}: "
            f"{strangers(text)}. Replace them, for example typographic quotes by ' "
            "and numbers by words; "
            "CRLF line ends are converted for you."
        )
    return corpus_of(text, path.name)


def contents(path: Path) -> bytes:
    """The bytes of the file; CorpusError if there is none or it cannot be read."""
    if path.is_dir():
        raise CorpusError(f"{path} is a folder. Give the text file itself.")
    if not path.exists():
        raise CorpusError(
            f"{path} does not exist. "
            "Correct the path, or give none and let it be found."
        )
    if not path.is_file():
        raise CorpusError(f"{path} is not a regular file. Give a text file.")
    try:
        return path.read_bytes()
    except OSError as error:
        raise CorpusError(
            f"{path} cannot be read ({error.strerror}). Give a readable file."
        ) from error


def decoded(data: bytes, path: Path) -> str:
    """The bytes as text, with \\n for CRLF; CorpusError if they are not UTF-8."""
    if b"\0" in data:
        raise CorpusError(
            f"{path} contains NUL bytes: it is binary, or UTF-16 text. "
            "Save it as UTF-8 text."
        )
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte 0x{data[error.start]:02X} at offset {error.start:,}"
        raise CorpusError(
            f"{path} is not UTF-8: {where} does not belong. Save it as UTF-8 text."
        ) from error
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def strangers(text: str) -> str:
    """The first three strange characters, their lines, and how many more there are."""
    found = sorted((text.index(c), c) for c in set(text) - set(ALPHABET))
    line = {character: text.count("\n", 0, place) + 1 for place, character in found[:3]}
    named = ", ".join(f"{c!r} (U+{ord(c):04X}) in line {n:,}" for c, n in line.items())
    return named + (f" and {len(found) - 3} more" if len(found) > 3 else "")


# tinyshakespeare: taken only with the right checksum.


def is_canonical(data: bytes) -> bool:
    return hashlib.sha256(data).hexdigest() == CANONICAL_SHA256


def from_known_file(path: Path, place: str) -> Corpus | None:
    """tinyshakespeare from the file; None if missing or, with a warning, damaged."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s cannot be read (%s): passed over", place, error.strerror)
        return None
    if is_canonical(data):
        return corpus_of(data.decode(), f"tinyshakespeare ({place})")
    log.warning(
        "%s is damaged (its SHA-256 is not tinyshakespeare's): passed over. "
        "Replace the file",
        place,
    )
    return None


def from_internet(target: Path, download: bool) -> Corpus:
    """tinyshakespeare from its address, then kept; raises what load() catches."""
    if not download or os.environ.get("POSTTRAIN_OFFLINE", "0") not in ("", "0"):
        raise OSError("download switched off")
    data = fetch(URL)
    # Verify before anything is written
    if not is_canonical(data):
        raise OSError("the download was cut short or altered")
    try:
        save(data, target)
    except OSError as error:
        log.info("the download could not be kept in %s (%s)", target, error)
    return corpus_of(data.decode(), "tinyshakespeare (downloaded)")


def fetch(url: str) -> bytes:
    """What the address holds, up to the size limit; TimeoutError if it takes too long.

    urllib's own time limit starts afresh with every byte, so a server that drips bytes
    could hold it for ever; waiting for a thread has an end.
    """
    outcome: queue.Queue = queue.Queue()

    def work():
        try:
            with urllib.request.urlopen(url, timeout=SILENCE_SECONDS) as response:
                outcome.put(response.read(LARGEST_DOWNLOAD))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        result = outcome.get(timeout=DOWNLOAD_SECONDS)
    except queue.Empty:
        raise TimeoutError(
            f"no complete download within {DOWNLOAD_SECONDS:g} s"
        ) from None
    if isinstance(result, Exception):
        raise result
    return result


def save(data: bytes, target: Path) -> None:
    """Write the file whole or not at all, unless it is there; OSError if refused."""
    if target.exists():
        return
    target.parent.mkdir(exist_ok=True)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        # Write beside the target, so that the rename stays on one disk
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
