"""Trained stages on disk: each trained once, found by what it depends on, never half-written.

A stage is two files in the stages folder: `NAME-KEY.safetensors` (the weights) and
`NAME-KEY.json` (its history, and the checksum of the weights). The JSON is written last: where
it is missing or does not match, there is no stage. Nothing is ever unpickled.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor

PACKAGE = Path(__file__).parents[1]
log = logging.getLogger("posttrain")


@dataclass(frozen=True)
class Stage:
    """A trained stage: weights by parameter name, its training's history, its key."""

    name: str
    key: str
    weights: dict[str, Tensor]
    history: dict


class DamagedStageError(Exception):
    """A stored stage's files do not agree with their checksums."""


def stages_folder() -> Path:
    """POSTTRAIN_STAGES, else `stages/` in the checkout, else in the current folder."""
    chosen = os.environ.get("POSTTRAIN_STAGES")
    if chosen:
        return Path(chosen)
    checkout = PACKAGE.parents[1]
    return (checkout if (checkout / "pyproject.toml").exists() else Path.cwd()) / "stages"


def imported_modules(module: str) -> set[str]:
    """The modules of this package that a module of it imports, at any depth, and itself."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found or module_file(name) is None:
            continue
        found.add(name)
        waiting += outline(module_file(name).read_text(encoding="utf-8"))[1]
    return found


@functools.cache
def outline(source: str) -> tuple[str, tuple[str, ...]]:
    """What a module's source does, without comments and docstrings, and all that it imports."""
    tree, imports = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            imports += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        # Drop docstrings, so that a better sentence does not retrain a model
        if (
            isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
            and ast.get_docstring(node) is not None
        ):
            node.body = node.body[1:]
    return ast.dump(tree), tuple(imports)


def module_file(name: str) -> Path | None:
    """The source file of a module of this package; None for any other module."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    if name.split(".")[0] != PACKAGE.name:
        return None
    candidates = (path.with_suffix(".py"), path / "__init__.py")
    return next((candidate for candidate in candidates if candidate.exists()), None)


def source_hash(module: str) -> str:
    """A hash of the code that a module runs: its source and that of what it imports here.

    Comments and docstrings do not count.
    """
    digest = hashlib.sha256()
    for name in sorted(imported_modules(module)):
        code, _ = outline(module_file(name).read_text(encoding="utf-8"))
        digest.update(f"{name}\0{code}\0".encode())
    return digest.hexdigest()


def stage_key(inputs: dict, source: str) -> str:
    """What a stage is found by: its inputs, the code it runs, and PyTorch's version.

    The inputs are anything JSON can hold.
    """
    parts = [json.dumps(inputs, sort_keys=True), source_hash(source), torch.__version__]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]


def obtain(
    name: str, inputs: dict, train: Callable[[], tuple[dict[str, Tensor], dict]], *, source: str
) -> Stage:
    """Return the stored stage for these inputs, or train and store it.

    train() returns weights and history (which JSON must be able to hold). source names the
    module whose code it runs. Two processes that lack one stage take turns: the second finds
    what the first has stored. A damaged stage is trained again, with a warning. Where the disk
    is full or read-only, the trained stage is returned all the same, with a warning that it was
    not kept.
    """
    key = stage_key(inputs, source)
    base = stages_folder() / f"{name}-{key}"
    # Read without a turn: many may want one stage at a time
    stored = stored_stage(base)
    if stored is None:
        with lock(base):
            stored = stored_stage(base, warn=True)
            if stored is None:
                stored = train_and_keep(base, train)
    return Stage(name, key, *stored)


def stored_stage(base: Path, warn: bool = False) -> tuple[dict[str, Tensor], dict] | None:
    """A stage's weights and history; None where there is none, or a damaged one."""
    if not base.with_suffix(".json").exists():
        return None
    try:
        return read(base)
    except (DamagedStageError, OSError) as error:
        if warn:
            log.warning(
                "The stored stage %s is damaged (%s): training it again.", base.name, error
            )
        return None


def train_and_keep(base: Path, train: Callable) -> tuple[dict[str, Tensor], dict]:
    """Train a stage and store it; return weights and history as a later run will read them."""
    # Sweep up what a killed run was writing
    for unfinished in base.parent.glob(f"{base.name}.*.tmp"):
        unfinished.unlink()
    weights, history = train()
    # Let the tensors share no memory, and take the history out of JSON
    weights = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    history = json.loads(json.dumps(history))
    try:
        write(base, weights, history)
    except OSError as error:
        log.warning(
            "The trained stage %s could not be kept (%s): the next run trains it again. "
            "Free some space, or set POSTTRAIN_STAGES to a folder that can be written.",
            base.name,
            error.strerror or error,
        )
    return weights, history


@contextmanager
def lock(base: Path):
    """Hold the stage's lock; none on a read-only disk.

    The operating system frees it should the process die.
    """
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(base.with_suffix(".lock"))
        held.acquire(blocking=False)
    except TimeoutError:
        log.warning("Another process is training the stage %s: waiting for it.", base.name)
        held.acquire()
    except OSError:
        held = nullcontext()
    try:
        yield
    finally:
        if isinstance(held, FileLock):
            held.release()


def write(base: Path, weights: dict[str, Tensor], history: dict) -> None:
    """Store the weights, then the JSON that makes them a stage.

    On any error nothing half-written stays.
    """
    data = safetensors.torch.save(weights)
    body = json.dumps(dict(history=history, weights_sha256=hashlib.sha256(data).hexdigest()))
    record = json.dumps(dict(sha256=hashlib.sha256(body.encode()).hexdigest(), body=body))
    replace_file(base.with_suffix(".safetensors"), data)
    replace_file(base.with_suffix(".json"), record.encode())


def replace_file(path: Path, data: bytes) -> None:
    """Put data at path in one move: written beside it, forced to disk, renamed."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(base: Path) -> tuple[dict[str, Tensor], dict]:
    """Read a stage's weights and history. Raises DamagedStageError where a checksum fails."""
    try:
        record = json.loads(base.with_suffix(".json").read_bytes())
        body = record["body"]
        if hashlib.sha256(body.encode()).hexdigest() != record["sha256"]:
            raise DamagedStageError("its JSON file does not match its checksum")
        content = json.loads(body)
        data = base.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != content["weights_sha256"]:
            raise DamagedStageError("its weights do not match their checksum")
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError) as error:
        raise DamagedStageError(f"{type(error).__name__}: {error}") from error
    return safetensors.torch.load(data), content["history"]
