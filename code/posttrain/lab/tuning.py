"""The settings that were tried before the record was made: `docs/tuning.jsonl`."""

from __future__ import annotations

import json
from collections import Counter

from posttrain.keep.code import PACKAGE

TRIED = PACKAGE.parents[1] / "docs" / "tuning.jsonl"


def tried() -> list[dict]:
    """A row for each setting: `method`, `settings`, `seeds` and what each seed gave."""
    lines = TRIED.read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def tries() -> Counter[str]:
    """How many settings each method had."""
    return Counter(row["method"] for row in tried())
