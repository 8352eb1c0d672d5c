"""Stages on disk: found again, keyed by what they depend on, and never wrong, whatever is done to them."""

import json
import logging
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from posttrain import store

WEIGHTS = {"a": torch.arange(2000.0), "b": torch.ones(3, 4)}
HISTORY = {"loss": [1.5, 0.1], "note": "é"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path / "stages"))
    return tmp_path / "stages"


def test_weights_that_share_memory_or_are_views_are_stored_as_they_look(folder):
    shared = torch.arange(6.0).view(2, 3)
    weights = {"embedding": shared, "head": shared, "transposed": shared.mT, "parameter": torch.nn.Parameter(shared)}
    for _ in range(2):
        stage = store.obtain("tied", {}, lambda: (weights, {}), source="posttrain.tokenizer")
        assert all(torch.equal(stage.weights[name], weights[name].detach()) for name in weights)


class Counting:
    """A training function that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return WEIGHTS, HISTORY


def obtain(train, **inputs):
    return store.obtain("toy", inputs, train, source="posttrain.tokenizer")


def assert_right(stage):
    assert stage.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(stage.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert stage.history == HISTORY


def test_a_stage_is_trained_once_and_read_back_bit_for_bit(folder):
    train = Counting()
    for _ in range(3):
        assert_right(obtain(train, seed=0))
    assert train.calls == 1
    assert sorted(path.suffix for path in folder.iterdir() if path.suffix != ".lock") == [".json", ".safetensors"]


def test_other_inputs_other_code_and_another_pytorch_are_other_stages(monkeypatch):
    train = Counting()
    obtain(train, seed=0)
    obtain(train, seed=1)
    assert train.calls == 2
    monkeypatch.setattr(torch, "__version__", "0.0")
    obtain(train, seed=0)
    assert train.calls == 3
    monkeypatch.undo()
    monkeypatch.setenv("POSTTRAIN_STAGES", str(store.stages_folder()))


def package(tmp_path, monkeypatch, **sources):
    """A throwaway package `posttrain` for the source hash to look at."""
    root = tmp_path / "src" / "posttrain"
    root.mkdir(parents=True, exist_ok=True)
    (root / "__init__.py").write_text("")
    for name, text in sources.items():
        (root / f"{name}.py").write_text(text)
    monkeypatch.setattr(store, "PACKAGE", root)


def test_source_hash_follows_imports_and_ignores_comments_and_docstrings(tmp_path, monkeypatch):
    package(tmp_path, monkeypatch, one="from posttrain import two\ndef f():\n    'doc'\n    return 1\n", two="X = 1\n", three="Y = 1\n")
    before = store.source_hash("posttrain.one")
    assert store.imported_modules("posttrain.one") == {"posttrain", "posttrain.one", "posttrain.two"}
    package(tmp_path, monkeypatch, three="Y = 2\n")
    assert store.source_hash("posttrain.one") == before
    package(tmp_path, monkeypatch, one="from posttrain import two\ndef f():\n    'better doc'\n    # a comment\n    return 1\n")
    assert store.source_hash("posttrain.one") == before
    package(tmp_path, monkeypatch, two="X = 2\n")
    assert store.source_hash("posttrain.one") != before


def test_the_base_model_depends_on_model_optimiser_and_tokenizer():
    modules = store.imported_modules("posttrain.pretrain")
    assert {f"posttrain.{name}" for name in ("gpt", "optim", "tokenizer", "pretrain", "data.corpus")} <= modules
    assert "posttrain.notebook" not in modules


def test_50_corruptions_and_truncations_never_give_a_wrong_stage(folder, caplog):
    train, generator = Counting(), random.Random(0)
    obtain(train, seed=0)
    files = [path for path in folder.iterdir() if path.suffix != ".lock"]
    for round in range(50):
        path = generator.choice(files)
        data = bytearray(path.read_bytes())
        if round % 3 == 0:
            data = data[: generator.randrange(len(data))]
        elif round % 3 == 1:
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
        else:
            start = generator.randrange(len(data))
            data[start : start + 100] = generator.randbytes(min(100, len(data) - start))
        path.write_bytes(data)
        caplog.clear()
        calls = train.calls
        assert_right(obtain(train, seed=0))
        # Either the stage was trained again with a warning, or the change left its meaning alone
        assert train.calls == calls or "is damaged" in caplog.text
    assert train.calls > 40


@pytest.mark.parametrize("missing", [".json", ".safetensors"])
def test_half_a_stage_is_no_stage(folder, missing):
    train = Counting()
    obtain(train)
    next(folder.glob(f"*{missing}")).unlink()
    assert_right(obtain(train))
    assert train.calls == 2


def test_nothing_is_ever_unpickled(folder, monkeypatch):
    import pickle

    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    train = Counting()
    obtain(train)
    monkeypatch.setattr(pickle, "loads", refuse)
    monkeypatch.setattr(pickle, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert_right(obtain(train))
    assert train.calls == 1


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), OSError(30, "Read-only file system")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_costs_the_copy_and_not_the_model(folder, monkeypatch, caplog, error, call):
    def refuse(*arguments):
        raise error

    train = Counting()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        assert_right(obtain(train))
    assert error.strerror in caplog.text and "POSTTRAIN_STAGES" in caplog.text
    assert [path for path in folder.iterdir() if path.suffix != ".lock"] == []
    assert_right(obtain(train))
    assert train.calls == 2


def test_a_folder_that_cannot_be_made_costs_the_copy_and_not_the_model(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path / "file" / "stages"))
    assert_right(obtain(Counting()))
    assert "could not be kept" in caplog.text


def test_an_error_or_ctrl_c_while_training_leaves_nothing_and_frees_the_lock(folder):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain(interrupted)
    assert [path for path in folder.iterdir() if path.suffix != ".lock"] == []
    assert_right(obtain(Counting()))


CHILD = textwrap.dedent("""
    import sys, time, torch
    sys.path.insert(0, {code!r})
    from posttrain import store
    print("ready", flush=True)
    def train():
        for _ in range(20):
            time.sleep(0.001)
        return {{"a": torch.arange(2_000_000.0)}}, {{"n": 1}}
    for seed in range(1000):
        store.obtain("toy", dict(seed=seed), train, source="posttrain.tokenizer")
""")


@pytest.mark.slow
def test_20_kills_while_training_and_saving_leave_only_whole_stages(folder):
    generator, code = random.Random(0), str(store.PACKAGE.parent)
    expected = torch.arange(2_000_000.0)
    for _ in range(20):
        child = subprocess.Popen([sys.executable, "-c", CHILD.format(code=code)], stdout=subprocess.PIPE)
        child.stdout.readline()
        time.sleep(generator.uniform(0, 0.4))
        child.send_signal(getattr(signal, "SIGKILL", signal.SIGTERM))
        child.wait()
        for record in folder.glob("*.json"):
            weights, history = store.read(record.with_suffix(""))
            assert torch.equal(weights["a"], expected) and history == {"n": 1}
    # The next run goes on with what is finished, and sweeps up what is not
    finished = len(list(folder.glob("*.json")))
    assert finished > 0
    calls = []
    for seed in range(finished + 2):
        train = lambda: calls.append(1) or ({"a": expected}, {"n": 1})  # noqa: E731
        store.obtain("toy", dict(seed=seed), train, source="posttrain.tokenizer")
    assert len(calls) <= 2 + 1
    assert list(folder.glob("*.tmp")) == []


def race(barrier, results, folder):
    os.environ["POSTTRAIN_STAGES"] = folder

    def train():
        results.put("trained")
        time.sleep(0.5)
        return WEIGHTS, HISTORY

    barrier.wait()
    stage = obtain(train, seed=0)
    results.put("right" if torch.equal(stage.weights["a"], WEIGHTS["a"]) and stage.history == HISTORY else "wrong")


@pytest.mark.slow
def test_four_builds_at_once_train_a_stage_once(folder):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(4), context.Queue()
    children = [context.Process(target=race, args=(barrier, results, str(folder))) for _ in range(4)]
    for child in children:
        child.start()
    said = sorted(results.get(timeout=60) for _ in range(5))
    for child in children:
        child.join()
    assert said == ["right"] * 4 + ["trained"]


def test_the_stages_folder_is_the_checkouts_unless_told_otherwise(monkeypatch, tmp_path):
    monkeypatch.delenv("POSTTRAIN_STAGES")
    assert store.stages_folder() == Path(__file__).parents[1] / "stages"
    monkeypatch.setattr(store, "PACKAGE", tmp_path / "site-packages" / "posttrain")
    monkeypatch.chdir(tmp_path)
    assert store.stages_folder() == tmp_path / "stages"


def test_the_record_is_plain_json(folder):
    obtain(Counting())
    record = json.loads(next(folder.glob("*.json")).read_text())
    assert json.loads(record["body"])["history"] == HISTORY


def test_waiting_for_another_build_is_said(folder, caplog):
    caplog.set_level(logging.WARNING, "posttrain")
    folder.mkdir()
    base, held, release = folder / "toy-key", threading.Event(), threading.Event()

    def other():
        with store.FileLock(base.with_suffix(".lock")):
            held.set()
            release.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    held.wait(10)
    threading.Timer(0.3, release.set).start()
    with store.lock(base):
        assert release.is_set()
    assert "Another process is training the stage toy-key" in caplog.text
    thread.join()


def test_what_is_stored_is_read_without_a_turn_and_without_a_word_while_another_holds_the_lock(folder, caplog):
    obtain(Counting())
    (record,) = folder.glob("toy-*.json")
    held = FileLock(record.with_suffix(".lock"))
    with caplog.at_level(logging.WARNING), held:
        again = Counting()
        assert_right(obtain(again))
    assert again.calls == 0 and not caplog.records
