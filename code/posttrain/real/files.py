"""A model's folder as it came: what is a pointer, cut off or damaged is named."""

from __future__ import annotations

import json
from pathlib import Path

from posttrain.data.json_rows import POINTER
from posttrain.real.model import ModelError

# What a model, its tokenizer and an adapter are described by
DESCRIPTIONS = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "adapter_config.json",
    "model.safetensors.index.json",
)
FETCH = "fetch it again"


def refuse_broken_files(folder: str | Path, weights: bool = True) -> None:
    """Raise ModelError for a file in a folder that cannot be what its name says, by
    name.

    weights: whether files of weights are looked at as well. What is no folder has none.
    """
    folder = Path(folder).expanduser()
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        described = path.name in DESCRIPTIONS
        stored = weights and path.suffix in (".safetensors", ".bin", ".model")
        if not path.is_file() or not (described or stored):
            continue
        with open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                raise ModelError(
                    f"{path} is a Git-LFS pointer, and not the file itself: fetch that "
                    "with git lfs pull"
                )
        problem = wrong_with(path, described)
        if problem:
            raise ModelError(f"{path} {problem}: {FETCH}")


def wrong_with(path: Path, described: bool) -> str | None:
    """Why a file is no JSON, or no file of tensors, or None."""
    if described:
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            return f"is no JSON ({error})"
    if path.suffix == ".safetensors":
        size, expected = path.stat().st_size, length_of(path)
        if expected is None:
            return "does not begin as a safetensors file does"
        if size != expected:
            return f"has {size:,} bytes, and its header speaks of {expected:,}"
    return None


def length_of(path: Path) -> int | None:
    """The bytes that a safetensors file has by its own header, None without one."""
    with open(path, "rb") as file:
        n = int.from_bytes(file.read(8), "little")
        if n > path.stat().st_size:
            return None
        try:
            header = json.loads(file.read(n))
            ends = [
                value["data_offsets"][1]
                for name, value in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, AttributeError, TypeError, KeyError, IndexError):
            return None
    return 8 + n + max(ends, default=0)
