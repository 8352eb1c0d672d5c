"""A run is taken up with the rows and the models that it was begun with, wherever they
lie now.
"""

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("transformers")
import safetensors.torch  # noqa: E402
from real_models import CONVERSATIONS, PAIRS, data_file, folder  # noqa: E402

from posttrain.real.checkpoint import read_metrics  # noqa: E402
from posttrain.real.identity import file_identity, model_identity  # noqa: E402
from posttrain.real.model import ModelError  # noqa: E402
from posttrain.real.run import Setup, run  # noqa: E402
from posttrain.real.training import RealConfig  # noqa: E402

CONFIG = RealConfig(steps=3, batch_size=2, micro_batch_size=2, max_length=200)


def begun(place, stage="sft", model=None, stop_after=2, **options):
    """A run that was cut off behind its first checkpoint; its settings."""
    rows = CONVERSATIONS if stage == "sft" else PAIRS
    data = data_file(place / "rows.jsonl", rows)
    model = model or copied(folder(), place / "model")
    setup = Setup(
        model, data, str(place / "out"), rank=2, device="cpu", save_every=1, **options
    )
    config = RealConfig(**{**vars(CONFIG), "stage": stage, "max_new_tokens": 4})
    run(setup, config, stop_after=stop_after)
    return setup, config


def copied(source, target):
    return str(shutil.copytree(source, target))


def resumed(setup, config, **changes):
    return run(Setup(**{**vars(setup), **changes}), config, resume=True)


def change_a_weight(path, name="model.safetensors"):
    """Change one number of a file of weights, its size left as it is."""
    file = Path(path) / name
    state = safetensors.torch.load_file(file)
    state[min(state)].view(-1)[7] += 1
    safetensors.torch.save_file(state, file, metadata=dict(format="pt"))


def test_other_rows_in_the_same_file_are_refused(tmp_path):
    setup, config = begun(tmp_path)
    data_file(Path(setup.data), CONVERSATIONS[:5])
    with pytest.raises(ModelError) as error:
        resumed(setup, config)
    said = str(error.value)
    assert f"was begun with another data: {setup.data} does not hold" in said
    # One letter is enough
    text = data_file(Path(setup.data), CONVERSATIONS)
    Path(text).write_bytes(Path(text).read_bytes().replace(b"e", b"a", 1))
    with pytest.raises(ModelError, match="was begun with another data"):
        resumed(setup, config)


def test_another_model_in_the_same_folder_is_refused(tmp_path):
    setup, config = begun(tmp_path)
    change_a_weight(setup.model)
    with pytest.raises(
        ModelError, match="was begun with another model: .* does not hold"
    ):
        resumed(setup, config)


def test_what_was_moved_is_found_by_what_it_holds(tmp_path):
    setup, config = begun(tmp_path)
    unbroken = Setup(**{**vars(setup), "out": str(tmp_path / "unbroken")})
    theirs = run(unbroken, config)
    moved = {
        name: shutil.move(path, tmp_path / f"moved-{name}")
        for name, path in dict(
            model=setup.model, data=setup.data, out=setup.out
        ).items()
    }
    # What is no part of a model may change
    Path(moved["model"], "README.md").write_text("moved", encoding="utf-8")
    moved = {name: str(path) for name, path in moved.items()}
    assert resumed(setup, config, **moved) == theirs == read_metrics(moved["out"])
    ours, whole = (
        safetensors.torch.load_file(Path(out) / "adapter_model.safetensors")
        for out in (moved["out"], unbroken.out)
    )
    assert all((ours[name] == whole[name]).all() for name in whole)


def test_an_adapter_is_known_with_what_it_stands_on(tmp_path):
    base = copied(folder(), tmp_path / "base")
    (tmp_path / "first").mkdir()
    setup, config = begun(tmp_path / "first", model=base, stop_after=None)
    adapter, known = setup.out, model_identity(setup.out)
    # Elsewhere it is the same, once its settings name the base's new place
    elsewhere = shutil.move(base, tmp_path / "elsewhere")
    assert model_identity(adapter) == ""
    file = Path(adapter) / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = str(elsewhere)
    file.write_text(json.dumps(settings), encoding="utf-8")
    assert model_identity(copied(adapter, tmp_path / "copy")) == known
    change_a_weight(elsewhere)
    assert model_identity(adapter) not in ("", known)
    settings["lora_alpha"] = 99
    file.write_text(json.dumps(settings), encoding="utf-8")
    assert model_identity(adapter) != model_identity(str(tmp_path / "copy"))


def test_another_judge_in_the_same_folder_is_refused(tmp_path):
    (tmp_path / "judge").mkdir()
    judge, _ = begun(tmp_path / "judge", "reward", model=folder(), stop_after=None)
    (tmp_path / "ppo").mkdir()
    setup, config = begun(
        tmp_path / "ppo", "ppo", model=folder(), reward_model=judge.out
    )
    change_a_weight(judge.out, "adapter_model.safetensors")
    with pytest.raises(ModelError, match="was begun with another reward model: "):
        resumed(setup, config)


def test_what_is_not_there_has_no_identity(tmp_path):
    assert file_identity(tmp_path / "nothing") == ""
    assert model_identity(str(tmp_path / "nothing")) == ""
