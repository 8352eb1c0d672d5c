"""Trained stages on disk: each trained once, found by what it depends on, never
half-written.

A stage is two files in the stages folder: `NAME-KEY.safetensors` (the weights) and
`NAME-KEY.json` (its history, and the checksum of the weights). The JSON is written
last: where it is missing or does not match, there is no stage. Nothing is ever
unpickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import safetensors.torch
import torch
from filelock import FileLock
from torch import Tensor

from posttrain.keep import code

Train = Callable[[], "tuple[dict[str, Tensor], dict]"]
UNKEPT = ""  # the key of a stage that is not on disk, nor anything that starts from it

log = logging.getLogger("posttrain")
# The stage that is being trained, by its name, for what is told meanwhile
TRAINING: ContextVar[str] = ContextVar("training", default="")


@dataclass(frozen=True)
class Stage:
    """A trained stage: weights by parameter name, its training's history, its
    parents.
    """

    name: str
    key: str
    weights: dict[str, Tensor]
    history: dict
    after: tuple[Stage, ...] = ()


class DamagedStageError(Exception):
    """A stored stage's files do not agree with their checksums."""


def stages_folder() -> Path:
    """POSTTRAIN_STAGES, else `stages/` in the checkout, else in the current folder."""
    chosen = os.environ.get("POSTTRAIN_STAGES")
    if chosen:
        return Path(chosen)
    checkout = code.PACKAGE.parents[1]
    return (
        checkout if (checkout / "pyproject.toml").exists() else Path.cwd()
    ) / "stages"


def stage_key(
    name: str, config: object, parents: list[str], reads: object, code: str
) -> str:
    """What a stage is found by: settings, the keys of its parents, its data, code and
    PyTorch.

    config: a dataclass, or what JSON can hold, as reads.
    """
    settings = asdict(config) if is_dataclass(config) else config
    parts = json.dumps([name, settings, parents, reads], sort_keys=True)
    whole = "\0".join([parts, code, torch.__version__])
    return hashlib.sha256(whole.encode()).hexdigest()[:20]


def obtain(
    name: str,
    config: object,
    train: Train,
    *,
    after: Sequence[Stage] = (),
    reads: object = None,
    code_of: Callable | None = None,
) -> Stage:
    """Return the stored stage of these settings, or train and store it.

    train() returns weights and history (which JSON must be able to hold); the key takes
    in all code of this package that it runs. after: the stages that it starts from.
    reads: the data, as JSON can hold it. code_of: the function whose code counts, where
    train only passes it on. Two processes that lack one stage take turns: the second
    finds what the first has stored. A damaged stage is trained again, with a warning.
    Where the disk is full or read-only, and where the loaded code is not what the files
    say, the trained stage is returned all the same, with a warning that it was not
    kept.
    """
    runs = code_of or train
    if not is_kept(name, runs, after):
        return Stage(name, UNKEPT, *as_stored(*train()), tuple(after))
    key = stage_key(
        name, config, [stage.key for stage in after], reads, code.code_key(runs)
    )
    base = stages_folder() / f"{name}-{key}"
    # Read without a turn: many may want one stage at a time
    stored = stored_stage(base)
    if stored is None:
        with lock(base):
            stored = stored_stage(base, warn=True)
            if stored is None:
                stored = train_and_keep(base, train, runs)
    return Stage(name, key, *stored, tuple(after))


def is_kept(name: str, runs: Callable, after: Sequence[Stage]) -> bool:
    """Whether a stage may be read and stored: what runs is what its key would say."""
    if any(stage.key == UNKEPT for stage in after):
        return False
    changed = code.changed(runs)
    if changed:
        log.warning(
            "%s not what the files say: edited since it was imported, or replaced. "
            "The stage %s "
            "is trained with it and not kept. To keep it, restart the kernel.",
            ", ".join(changed[:3]) + (" and more are" if len(changed) > 3 else " is"),
            name,
        )
    return not changed


def stored_stage(
    base: Path, warn: bool = False
) -> tuple[dict[str, Tensor], dict] | None:
    """A stage's weights and history; None where there is none, or a damaged one."""
    if not base.with_suffix(".json").exists():
        return None
    try:
        return read(base)
    except (DamagedStageError, OSError) as error:
        if warn:
            log.warning(
                "The stored stage %s is damaged (%s): training it again.",
                base.name,
                error,
            )
        return None


def train_and_keep(
    base: Path, train: Train, runs: Callable
) -> tuple[dict[str, Tensor], dict]:
    """Train a stage and store it; return weights and history as a later run will read
    them.
    """
    # Sweep up what a killed run was writing
    for unfinished in base.parent.glob(f"{base.name}.*.tmp"):
        unfinished.unlink()
    naming = TRAINING.set(base.name.rpartition("-")[0])
    try:
        weights, history = as_stored(*train())
    finally:
        TRAINING.reset(naming)
    # Do not keep what was edited or replaced meanwhile
    if code.changed(runs):
        log.warning("The code changed while %s was trained: it is not kept.", base.name)
        return weights, history
    try:
        write(base, weights, history)
    except OSError as error:
        log.warning(
            "The trained stage %s could not be kept (%s): the next run trains it "
            "again. "
            "Free some space, or set POSTTRAIN_STAGES to a folder that can be written.",
            base.name,
            error.strerror or error,
        )
    return weights, history


def as_stored(
    weights: dict[str, Tensor], history: dict
) -> tuple[dict[str, Tensor], dict]:
    """Weights and history as they come back from disk: tensors apart, the history out
    of JSON.
    """
    copies = {
        name: tensor.detach().clone(memory_format=torch.contiguous_format)
        for name, tensor in weights.items()
    }
    return copies, json.loads(json.dumps(history))


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
        log.warning(
            "Another process is training the stage %s: waiting for it.", base.name
        )
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
    body = json.dumps(
        dict(history=history, weights_sha256=hashlib.sha256(data).hexdigest())
    )
    record = json.dumps(
        dict(sha256=hashlib.sha256(body.encode()).hexdigest(), body=body)
    )
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
    """Read a stage's weights and history. Raises DamagedStageError where a checksum
    fails.
    """
    try:
        record = json.loads(base.with_suffix(".json").read_bytes())
        body = record["body"]
        if hashlib.sha256(body.encode()).hexdigest() != record["sha256"]:
            raise DamagedStageError("its JSON file does not match its checksum")
        content = json.loads(body)
        data = base.with_suffix(".safetensors").read_bytes()
        if hashlib.sha256(data).hexdigest() != content["weights_sha256"]:
            raise DamagedStageError("its weights do not match their checksum")
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        FileNotFoundError,
    ) as error:
        raise DamagedStageError(f"{type(error).__name__}: {error}") from error
    return safetensors.torch.load(data), content["history"]
