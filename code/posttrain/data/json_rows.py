"""Files of JSON objects as people have them: one to a line, or all in one array."""

from __future__ import annotations

import json
import re
from pathlib import Path

from posttrain.data.datasets import DatasetError

TWICE = "\0twice"  # the one key of an object that had another key twice
POINTER = b"version https://git-lfs"  # in the place of a file that was not fetched
SAVE = "save it as JSON Lines, one object to a line"
# What a file begins with that is no text, what it is called, and what to do about it
FOREIGN = {
    POINTER: ("a Git-LFS pointer", "fetch the file: git lfs pull"),
    b"PAR1": ("a Parquet file", SAVE),
    b"ARROW1": ("an Arrow file", SAVE),
    b"\x1f\x8b": ("packed with gzip", "unpack it: gunzip"),
    b"PK\x03\x04": ("a ZIP archive", "unpack it: unzip"),
    b"\x28\xb5\x2f\xfd": ("packed with zstd", "unpack it: unzstd"),
}


class RowProblem(ValueError):
    """A row cannot be used: the message says why."""


def read_objects(path: str | Path) -> list[tuple[str, object]]:
    """Each row's place ("line 3"; in an array "row 3") and its value.

    The value is a RowProblem where a line is no JSON. Blank lines are left out. The
    encoding is UTF-8, UTF-16 or UTF-32, with a byte order mark or without. Raises
    DatasetError for a file that cannot be read, and for an array that breaks off.
    """
    text = read_text(path)
    lines = enumerate(re.split("\r\n|\n|\r", text), start=1)
    rows = [(f"line {n}", parse(line)) for n, line in lines if line.strip()]
    # Take the file as one value where its first line is not a row by itself
    if not rows or isinstance(rows[0][1], dict):
        return rows
    whole = parse(text)
    if isinstance(whole, list):
        return [(f"row {n}", value) for n, value in enumerate(whole, start=1)]
    if isinstance(whole, dict):
        return [("row 1", whole)]
    if re.match(r"\s*\[", text) and isinstance(rows[0][1], RowProblem):
        raise DatasetError(
            f"{path}: {whole}: an array is read whole or not at all, so repair it, "
            f"or {SAVE}"
        )
    return rows


def read_text(path: str | Path) -> str:
    """A file's text. Raises DatasetError for what is no text, naming what it is."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DatasetError(f"{path} cannot be read: {reason}") from None
    for start, (name, way_out) in FOREIGN.items():
        if data.startswith(start):
            raise DatasetError(f"{path} is {name}, not JSON: {way_out}")
    encoding = json.detect_encoding(data)
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        name = encoding.upper().removesuffix("-SIG")
        raise DatasetError(
            f"{path} is not {name} text ({error}): save it as UTF-8"
        ) from None


def parse(text: str) -> object:
    """The value of a JSON text, or the RowProblem that says why it has none."""
    try:
        return json.loads(text, object_pairs_hook=as_dictionary)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if "\n" in text else ""
        return RowProblem(f"not JSON ({error.msg}, at {line}column {error.colno})")
    except (ValueError, RecursionError) as error:
        # Say what is wrong where a number is too long or brackets are too deep
        return RowProblem(f"Python cannot read this JSON ({error})")


def as_dictionary(pairs: list[tuple[str, object]]) -> dict:
    """An object of its keys and values; of one with a key twice, that key as TWICE."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    keys = [key for key, _ in pairs]
    return {TWICE: next(key for key in keys if keys.count(key) > 1)}
