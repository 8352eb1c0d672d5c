"""A published model out of a package: known by its content, refused where it is not
that one.
"""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("transformers")
from real_models import folder  # noqa: E402

from posttrain.real import smollm  # noqa: E402
from posttrain.real.identity import file_identity  # noqa: E402
from posttrain.real.model import ModelError, fetch, library  # noqa: E402


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path))
    return tmp_path


def installed(monkeypatch, place):
    """As if the packages were installed, the weights in a folder of their own."""
    found = SimpleNamespace(origin=str(place / "__init__.py"))
    known = {smollm.PACKAGE: found, "gguf": found}
    monkeypatch.setattr(importlib.util, "find_spec", known.get)


def test_without_the_package_the_way_to_it_is_named(shelf, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert not smollm.is_there()
    with pytest.raises(ModelError, match="not installed: make real"):
        smollm.smollm2()


def test_another_file_of_that_name_is_refused(shelf, monkeypatch, tmp_path):
    (tmp_path / smollm.FILE).write_bytes(b"version https://git-lfs")
    installed(monkeypatch, tmp_path)
    assert smollm.is_there()
    with pytest.raises(ModelError, match="is not the file that is known"):
        smollm.smollm2()


def unpacked(shelf):
    """A finished folder, of a tiny model."""
    source, place = Path(folder()), shelf / smollm.NAME
    place.mkdir()
    lines = []
    for path in sorted(p for p in source.iterdir() if p.is_file()):
        (place / path.name).write_bytes(path.read_bytes())
        lines.append(f"{file_identity(path)}  {path.name}\n")
    (place / smollm.CHECKSUMS).write_text("".join(lines))
    return place


def test_a_finished_folder_needs_no_package(shelf, monkeypatch):
    place = unpacked(shelf)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert smollm.is_there()
    assert smollm.smollm2() == place


def test_a_folder_that_was_changed_is_refused_by_the_files_name(shelf):
    place = unpacked(shelf)
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="model.safetensors was changed or cut"):
        smollm.smollm2()


def test_a_list_of_checksums_that_was_cut_vouches_for_nothing(shelf):
    place = unpacked(shelf)
    (place / smollm.CHECKSUMS).write_text("")
    with pytest.raises(ModelError, match="was changed or cut since it was made"):
        smollm.smollm2()


def test_each_digit_is_a_token_and_all_else_is_as_before(tmp_path):
    before = fetch(library().AutoTokenizer, str(folder()))
    before.save_pretrained(tmp_path)
    smollm.split_digits(tmp_path / "tokenizer.json")
    after = fetch(library().AutoTokenizer, str(tmp_path))
    assert after.tokenize("in 1871") == [*before.tokenize("in "), *"1871"]
    for text in ("A friend, good sir.", "the duke's"):
        assert after.tokenize(text) == before.tokenize(text)
    steps = json.loads((tmp_path / "tokenizer.json").read_text())["pre_tokenizer"]
    assert steps["pretokenizers"][0]["type"] == "Digits"


@pytest.mark.slow
def test_the_published_model_answers_in_sentences_and_ends():
    if not smollm.is_there():
        pytest.skip("SmolLM2 is not installed: make real")
    import torch

    from posttrain.real.data import end_token, render_chat_prompt
    from posttrain.real.model import LanguageModel, load_model
    from posttrain.real.run import open_tokenizer
    from posttrain.real.training import write_answers

    place = smollm.smollm2()
    tokenizer, new = open_tokenizer(str(place))
    assert new == [] and tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.tokenize("1871") == [*"1871"]
    prompt = render_chat_prompt("What is the capital of France?", tokenizer)
    stop, generator = end_token(tokenizer), torch.Generator()
    model = LanguageModel(load_model(str(place)))
    (answer,) = write_answers(model, [prompt], 24, stop, generator, 0.0)
    assert "Paris" in tokenizer.decode(answer) and answer[-1] == stop
