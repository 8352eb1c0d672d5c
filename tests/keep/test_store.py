"""Stages on disk: found again, keyed by what they depend on, and never wrong, whatever
is done to them.
"""

import itertools
import json
import logging
import multiprocessing
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import forks
import pytest
import torch
from filelock import FileLock

from posttrain.batches import epochs
from posttrain.gpt import GPTConfig
from posttrain.keep import code, store
from posttrain.pretrain import PretrainConfig, pretrain
from posttrain.tokenizer import CharTokenizer

WEIGHTS = {"a": torch.arange(2000.0), "b": torch.ones(3, 4)}
HISTORY = {"loss": [1.5, 0.1], "note": "é"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path / "stages"))
    return tmp_path / "stages"


def test_weights_that_share_memory_or_are_views_are_stored_as_they_look(folder):
    shared = torch.arange(6.0).view(2, 3)
    weights = {
        "embedding": shared,
        "head": shared,
        "transposed": shared.mT,
        "parameter": torch.nn.Parameter(shared),
    }
    for _ in range(2):
        stage = store.obtain("tied", {}, lambda: (weights, {}), code_of=CharTokenizer)
        assert all(
            torch.equal(stage.weights[name], weights[name].detach()) for name in weights
        )


class Counting:
    """A training function that counts its calls."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1
        return WEIGHTS, HISTORY


def obtain(train, **inputs):
    return store.obtain("toy", inputs, train, code_of=CharTokenizer)


def assert_right(stage):
    assert stage.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(stage.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert stage.history == HISTORY


def test_a_stage_is_trained_once_and_read_back_bit_for_bit(folder):
    train = Counting()
    for _ in range(3):
        assert_right(obtain(train, seed=0))
    assert train.calls == 1
    assert sorted(
        path.suffix for path in folder.iterdir() if path.suffix != ".lock"
    ) == [".json", ".safetensors"]


def test_other_inputs_other_code_and_another_pytorch_are_other_stages(monkeypatch):
    train = Counting()
    obtain(train, seed=0)
    obtain(train, seed=1)
    assert train.calls == 2
    monkeypatch.setattr(torch, "__version__", "0.0")
    obtain(train, seed=0)
    assert train.calls == 3


def test_what_a_stage_starts_from_reads_and_runs_makes_it_another(monkeypatch):
    train, found = Counting(), []
    parents = [store.Stage("toy", key, {}, {}) for key in ("1", "2")]
    for options in (
        dict(),
        dict(after=parents[:1]),
        dict(after=parents[1:]),
        dict(after=parents),
        dict(reads=["a"]),
        dict(reads=["b"]),
        dict(code_of=epochs),
        dict(name="other"),
    ):
        usual = dict(name="toy", config={}, train=train, code_of=CharTokenizer)
        for _ in range(2):
            stage = store.obtain(**{**usual, **options})
            assert stage.after == tuple(options.get("after", ()))
        found.append(stage.key)
    assert len(set(found)) == train.calls == 8
    assert found[0] == obtain(train).key


def test_what_is_trained_says_which_code_counts_unless_told_otherwise():
    with pytest.raises(ValueError, match="has no definition 'plainly' whose code"):
        store.obtain("toy", {}, plainly)


def plainly(*arguments):
    return WEIGHTS, HISTORY


# The code that is loaded is not what the files say


def test_what_is_not_what_the_files_say_is_trained_and_not_kept(
    folder, monkeypatch, caplog
):
    train = Counting()
    kept = obtain(train)
    before = sorted(folder.iterdir())
    monkeypatch.setattr(CharTokenizer, "encode", plainly)
    for calls in (2, 3):
        caplog.clear()
        stage = obtain(train)
        assert_right(stage)
        assert stage.key == store.UNKEPT != kept.key and train.calls == calls
        assert (
            "posttrain.tokenizer.CharTokenizer is not what the files say" in caplog.text
        )
        assert "restart the kernel" in caplog.text
    assert sorted(folder.iterdir()) == before
    # Nor is what starts from it, and once is enough to say so
    caplog.clear()
    after = store.obtain("next", {}, train, after=[stage], code_of=epochs)
    assert_right(after)
    assert after.key == store.UNKEPT and not caplog.records
    assert sorted(folder.iterdir()) == before


def test_many_changes_are_told_in_one_line(monkeypatch, caplog):
    names = [f"posttrain.x.f{i}" for i in range(9)]
    monkeypatch.setattr(code, "changed", lambda function: names)
    obtain(Counting())
    (record,) = caplog.records
    assert record.message.startswith(", ".join(names[:3]) + " and more are not what")


def test_code_that_changes_while_it_trains_is_not_kept(folder, monkeypatch, caplog):
    def train():
        monkeypatch.setattr(CharTokenizer, "encode", plainly)
        return WEIGHTS, HISTORY

    assert_right(obtain(train))
    assert "The code changed while toy-" in caplog.text
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


KERNEL = """
import logging, sys
from pathlib import Path
import torch
from posttrain import dpo
from posttrain.keep import store

logging.basicConfig(format="%(message)s", stream=sys.stdout)


def train():
    one = torch.ones(1)
    loss = dpo.dpo_loss(3 * one, one, one, one, beta=0.1)
    return {"loss": loss}, {"loss": loss.item()}


def go():
    stage = store.obtain("toy", {}, train, code_of=dpo.pair_loss)
    print("stage", stage.key, stage.history["loss"])


for action in sys.argv[1:]:
    if action == "go":
        go()
    elif action == "edit":
        path = Path(dpo.__file__)
        text = path.read_text()
        old = "h = beta * (chosen_ratio - rejected_ratio)"
        assert text.count(old) == 1
        path.write_text(text.replace(old, old.replace("beta", "2 * beta")))
    elif action == "replace":
        theirs = dpo.dpo_loss
        dpo.dpo_loss = lambda *arguments, **options: 0 * theirs(*arguments, **options)
    elif action == "put back":
        dpo.dpo_loss = theirs
"""


@pytest.fixture
def kernel(tmp_path, folder):
    """Runs actions in a new process with a copy of the package: its lines, and the
    stages.
    """
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(code.PACKAGE, tmp_path / "copy" / "posttrain", ignore=leave)
    path = dict(PYTHONPATH=str(tmp_path / "copy"), POSTTRAIN_STAGES=str(folder))

    def run(*actions):
        done = subprocess.run(
            [sys.executable, "-c", KERNEL, *actions],
            capture_output=True,
            text=True,
            env={**os.environ, **path, "OMP_NUM_THREADS": "1"},
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        said = [line for line in lines if not line.startswith("stage ")]
        found = [line.split(" ") for line in lines if line.startswith("stage ")]
        stored = sorted(path.stem.split("-")[1] for path in folder.glob("*.json"))
        return said, [(key, float(loss)) for _, key, loss in found], stored

    return run


@pytest.mark.slow
def test_a_kernel_that_has_the_old_code_keeps_nothing_under_the_new_codes_key(kernel):
    said, found, stored = kernel("go", "edit", "go")
    (key, loss), (unkept, same) = found
    # It is still the old code that runs
    assert same == loss and stored == [key] and unkept == ""
    assert len(said) == 1 and said[0].startswith(
        "posttrain.dpo.dpo_loss is not what the"
    )
    assert said[0].endswith("To keep it, restart the kernel.")
    # After a restart the new code is kept under its own key
    said, ((new, other),), stored = kernel("go")
    assert said == [] and other != loss and new != key and stored == sorted([key, new])


@pytest.mark.slow
def test_a_kernel_whose_function_was_replaced_keeps_nothing_until_it_is_put_back(
    kernel,
):
    said, found, stored = kernel("replace", "go", "put back", "go")
    (unkept, zero), (key, loss) = found
    assert zero != loss and unkept == "" and stored == [key]
    assert len(said) == 1 and said[0].startswith(
        "posttrain.dpo.dpo_loss is not what the"
    )
    assert said[0].endswith("To keep it, restart the kernel.")


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
        # Either the stage was trained again with a warning, or the change left its
        # meaning alone
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


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), OSError(30, "Read-only file system")],
)
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses_costs_the_copy_and_not_the_model(
    folder, monkeypatch, caplog, error, call
):
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


def test_a_folder_that_cannot_be_made_costs_the_copy_and_not_the_model(
    tmp_path, monkeypatch, caplog
):
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


def small_training(seed):
    """Pre-training in a fraction of a second; a save takes about as long, for the
    ballast.
    """
    shape = GPTConfig(vocab_size=10, context=8, n_layer=1, n_head=1, width=8)
    config = PretrainConfig(
        shape, steps=8, batch_size=2, sequence_length=8, evaluations=1, seed=seed
    )
    text = torch.arange(200) % 10
    model, history = pretrain(config, text, text)
    losses = {name: history[name] for name in ("train", "validation")}
    return model.state_dict() | {"ballast": torch.arange(1e6) + seed}, losses | dict(
        seed=seed
    )


def train_on_and_on(folder, seed, ready):
    os.environ["POSTTRAIN_STAGES"] = folder
    torch.set_num_threads(1)
    small_training(seed)  # PyTorch's first steps are slow
    ready.set()
    for each in itertools.count(seed):
        obtain(lambda seed=each: small_training(seed), seed=each)


@pytest.mark.slow
def test_50_kills_of_a_training_run_and_its_saves_leave_only_whole_stages(folder):
    context = forks.context()
    generator, seen, first = (
        random.Random(0),
        set(),
        range(0, 50_000, 1000),
    )  # a thousand seeds for each
    folder.mkdir()
    for seed in first:
        ready = context.Event()
        child = context.Process(target=train_on_and_on, args=(str(folder), seed, ready))
        child.start()
        assert ready.wait(60)
        time.sleep(generator.uniform(0, 0.3))
        child.kill()
        child.join()
        seen |= {path.suffix for path in folder.iterdir()}
    assert ".tmp" in seen  # some of them died while they saved
    # What is there is right
    finished = {}
    for record in folder.glob("*.json"):
        weights, history = store.read(record.with_suffix(""))
        expected, losses = small_training(history["seed"])
        assert history == losses and weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in expected)
        finished.setdefault(history["seed"] // 1000 * 1000, []).append(history["seed"])
    assert len(finished) >= 25
    # The next run finds what was finished, trains what was not, and sweeps up
    again = Counting()
    for start in first:
        done = sorted(finished.get(start, []))
        assert done == list(range(start, start + len(done)))
        for seed in (*done, start + len(done)):
            obtain(again, seed=seed)
    assert again.calls == 50
    assert list(folder.glob("*.tmp")) == []


def test_a_file_put_in_place_may_be_read_by_whoever_may_read_any_other(tmp_path):
    plain, put = tmp_path / "plain", tmp_path / "put"
    plain.write_bytes(b"")
    store.replace_file(put, b"data")
    assert put.read_bytes() == b"data" and put.stat().st_mode == plain.stat().st_mode


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own with 4 MB; given a word, it is mounted anew with that
    option.
    """
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)]
    try:
        done = subprocess.run(
            mount, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ).returncode
    except OSError:
        done = 1
    if done:
        pytest.skip("mounting a small disk takes Linux and root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full_costs_the_copy_and_says_what_to_do(
    small_disk, monkeypatch, caplog
):
    monkeypatch.setenv("POSTTRAIN_STAGES", str(small_disk / "stages"))
    large = {"a": torch.arange(2_000_000.0)}  # 8 MB
    for _ in range(2):
        caplog.clear()
        stage = store.obtain(
            "large", {}, lambda: (large, HISTORY), code_of=CharTokenizer
        )
        assert torch.equal(stage.weights["a"], large["a"]) and stage.history == HISTORY
        assert (
            "No space left on device" in caplog.text
            and "Free some space, or set POSTTRAIN_STAGES" in caplog.text
        )
        assert [path.suffix for path in (small_disk / "stages").iterdir()] == [".lock"]
    # What fits is kept all the same
    train = Counting()
    for _ in range(2):
        assert_right(obtain(train))
    assert train.calls == 1


def test_a_disk_that_cannot_be_written_is_read_and_costs_only_the_copy(
    small_disk, monkeypatch, caplog
):
    monkeypatch.setenv("POSTTRAIN_STAGES", str(small_disk / "stages"))
    train = Counting()
    obtain(train, seed=0)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for _ in range(2):
        assert_right(obtain(train, seed=0))
    assert train.calls == 1 and not caplog.records
    assert_right(obtain(train, seed=1))
    assert (
        train.calls == 2
        and "Read-only file system" in caplog.text
        and "POSTTRAIN_STAGES" in caplog.text
    )


def race(barrier, results, folder):
    os.environ["POSTTRAIN_STAGES"] = folder

    def train():
        results.put("trained")
        time.sleep(0.5)
        return WEIGHTS, HISTORY

    barrier.wait()
    stage = obtain(train, seed=0)
    results.put(
        "right"
        if torch.equal(stage.weights["a"], WEIGHTS["a"]) and stage.history == HISTORY
        else "wrong"
    )


@pytest.mark.slow
@pytest.mark.parametrize("n", [2, 4])
def test_processes_that_want_a_stage_at_once_train_it_once(folder, n):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(n), context.Queue()
    children = [
        context.Process(target=race, args=(barrier, results, str(folder)))
        for _ in range(n)
    ]
    for child in children:
        child.start()
    said = sorted(results.get(timeout=60) for _ in range(n + 1))
    for child in children:
        child.join()
    assert said == ["right"] * n + ["trained"]


def test_the_stages_folder_is_the_checkouts_unless_told_otherwise(
    monkeypatch, tmp_path
):
    monkeypatch.delenv("POSTTRAIN_STAGES")
    assert store.stages_folder() == Path(__file__).parents[2] / "stages"
    monkeypatch.setattr(code, "PACKAGE", tmp_path / "site-packages" / "posttrain")
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


def test_what_is_stored_is_read_silently_while_another_holds_the_lock(folder, caplog):
    obtain(Counting())
    (record,) = folder.glob("toy-*.json")
    held = FileLock(record.with_suffix(".lock"))
    with caplog.at_level(logging.WARNING), held:
        again = Counting()
        assert_right(obtain(again))
    assert again.calls == 0 and not caplog.records
