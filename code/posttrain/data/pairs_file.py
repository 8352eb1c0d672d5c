"""`python -m posttrain pairs`: a policy's own pairs, and where each comes from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

from posttrain.data.datasets import DatasetError
from posttrain.data.synthetic_pairs import Pool, judgements, pair_rows, pick_extremes
from posttrain.keep.store import replace_file

PATIENCE = 5  # draws without a new pair, after which there are taken to be no more


def collect_pairs(
    draw: Callable[[int], Pool], judge: str, seed: int
) -> Iterator[tuple]:
    """Pairs without end, none twice: rows of a preferences file, and their provenance.

    draw(seed) answers all prompts once more. Answers that cannot be used are left out.
    Raises ValueError where several draws in a row bring no new pair.
    """
    seen, idle, round_ = set(), 0, 0
    while idle < PATIENCE:
        pool, fresh = draw(seed + round_), 0
        picks = pick_extremes(pool, judge, leave_out=True)
        for pick, row in zip(picks, pair_rows(pool, picks)):
            if tuple(row.values()) in seen:
                continue
            seen.add(tuple(row.values()))
            fresh, name = fresh + 1, dict(id=f"o{len(seen)}")
            source = dict(prompt=pick.row, draw=seed + round_, **judgements(pool, pick))
            yield name | row, name | source
        idle, round_ = (0 if fresh else idle + 1), round_ + 1
    raise ValueError(
        f"after {len(seen)} pairs, {PATIENCE} more answers to each prompt brought no "
        "new one: "
        "ask for fewer pairs, for more samples, or raise the temperature"
    )


def fingerprint(model: nn.Module) -> str:
    """A checksum of a model's weights."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    return digest.hexdigest()


def provenance_file(out: Path) -> Path:
    """The file beside a file of pairs that says where they come from."""
    return out.with_suffix(".provenance.json")


def check_place(out: Path, force: bool) -> None:
    """Raise DatasetError where the pairs cannot be written, or would replace a file."""
    if not out.parent.is_dir():
        raise DatasetError(
            f"{out.parent} is no folder: make it first, or choose another --out"
        )
    for path in (out, provenance_file(out)):
        if path.is_dir():
            raise DatasetError(f"{path} is a folder: name a file with --out")
        if path.exists() and not force:
            raise DatasetError(
                f"{path} exists: replace it with --force, or change --out"
            )


def as_lines(rows: list[dict]) -> bytes:
    """Rows as a JSON Lines file has them."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def write_rows(out: Path, rows: list[dict]) -> None:
    """Put rows at `out`, whole or not; no file where there are none.

    Raises DatasetError where the disk refuses.
    """
    try:
        if rows:
            replace_file(out, as_lines(rows))
        else:
            out.unlink(missing_ok=True)
    except OSError as error:
        raise DatasetError(
            f"{out} cannot be written: {error.strerror or error}"
        ) from None


def write_pairs(out: Path, rows: list[dict], sources: list[dict], about: dict) -> None:
    """Put the pairs at `out`, and their provenance beside them, each whole or not.

    The provenance holds the pairs' checksum, so that it cannot pass for another file's.
    Raises DatasetError where the disk refuses.
    """
    pairs = as_lines(rows)
    about = about | dict(pairs_sha256=hashlib.sha256(pairs).hexdigest(), pairs=sources)
    try:
        replace_file(
            provenance_file(out), (json.dumps(about, indent=1) + "\n").encode()
        )
        replace_file(out, pairs)
    except OSError as error:
        raise DatasetError(
            f"{out} cannot be written: {error.strerror or error}"
        ) from None
