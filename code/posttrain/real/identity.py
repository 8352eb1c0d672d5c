"""What a file or a model's folder holds, as one number: the same wherever it lies."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from posttrain.real.model import ModelError, load_config
from posttrain.real.peft_settings import SETTINGS, adapter_settings, chain_of

# A model's files, by their ends: settings, weights, tokenizer and template. A read-me,
# a log and an optimiser's state are none
ENDS = (".json", ".safetensors", ".bin", ".model", ".txt", ".jinja", ".tiktoken", ".py")
WHEREABOUTS = ("base_model_name_or_path",)  # in an adapter's settings: no content


def file_identity(path: str | Path) -> str:
    """A file's content as a number (SHA-256, in hexadecimal), "" where there is none.

    All of it is read: some seconds for ten gigabytes.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        return ""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def model_identity(name: str) -> str:
    """A model's content as a number, "" where there is none.

    Of a folder every file of the model counts, under its name; of an adapter's folder
    also what it stands on, wherever that lies. A model on the hub is its name there
    with the version that was fetched.
    """
    try:
        parts = [identity_of_one(each) for each in chain_of(name)]
    except ModelError:
        return ""  # whoever opens the model says what is wrong
    return hashlib.sha256("\n\n".join(parts).encode()).hexdigest()


def identity_of_one(name: str) -> str:
    """What a folder or a version on the hub holds, without what it stands on.

    Raises ModelError where there is neither.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return f"{name}@{getattr(load_config(name), '_commit_hash', None)}"
    settings = adapter_settings(folder) or {}
    kept = {k: v for k, v in settings.items() if k not in WHEREABOUTS}
    return f"{json.dumps(kept, sort_keys=True)}\n{identity_of_files(folder)}"


def identity_of_files(folder: Path) -> str:
    """The names and contents of a folder's files, but for an adapter's settings."""
    paths = sorted(path for path in folder.iterdir() if path.suffix in ENDS)
    return "\n".join(
        f"{path.name} {file_identity(path)}"
        for path in paths
        if path.name != SETTINGS and path.is_file()
    )


def contents(
    model: str, data: str, reward_model: str, replay: str = ""
) -> dict[str, str]:
    """What a run reads, by the names of its settings, as numbers of the contents."""
    judge = model_identity(reward_model) if reward_model else ""
    return dict(
        model=model_identity(model),
        data=file_identity(data),
        reward_model=judge,
        replay=file_identity(replay) if replay else "",
    )
