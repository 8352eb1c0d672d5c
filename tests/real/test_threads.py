"""How many threads a run on the processor gets, and what is said where others are at
work.
"""

import json
import os

import pytest

pytest.importorskip("transformers")
import torch  # noqa: E402
from real_models import CONVERSATIONS, data_file, folder  # noqa: E402

from posttrain.cli.commands import main  # noqa: E402
from posttrain.real import run as real_run  # noqa: E402
from posttrain.real import threads as real_threads  # noqa: E402
from posttrain.real.threads import (  # noqa: E402
    NARROW,
    chosen_threads,
    crowded,
    load_before,
    threads_set,
)


@pytest.fixture(autouse=True)
def two_threads():
    with threads_set(2):
        yield


def test_a_narrow_model_gets_one_thread_and_any_other_what_there_is():
    assert chosen_threads(0, NARROW - 1) == 1 and chosen_threads(0, NARROW) == 2
    assert [chosen_threads(n, width) for n in (1, 3) for width in (64, 576)] == [
        1,
        1,
        3,
        3,
    ]


@pytest.mark.parametrize("fails", [False, True])
def test_threads_are_set_for_a_while(fails):
    with pytest.raises(RuntimeError) if fails else threads_set(2):
        with threads_set(1):
            assert torch.get_num_threads() == 1
            if fails:
                raise RuntimeError
    assert torch.get_num_threads() == 2


def test_the_choice_does_not_know_what_else_the_machine_does(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: 1 / 0, raising=False)
    assert [chosen_threads(0, width) for width in (64, 576)] == [1, 2]


def test_a_machine_that_counts_no_load_has_none(monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (1.5, 0.0, 0.0), raising=False)
    assert load_before() == 1.5
    monkeypatch.delattr(os, "getloadavg")
    assert load_before() == 0.0

    def unknown():
        raise OSError

    monkeypatch.setattr(os, "getloadavg", unknown, raising=False)
    assert load_before() == 0.0


@pytest.mark.parametrize(
    "load, threads, cores, words",
    [
        (0.0, 2, 2, ""),
        (0.4, 2, 2, ""),
        (1.9, 1, 2, ""),  # one thread waits for nobody
        (1.0, 3, 8, ""),  # there is room beside
        (1.9, 2, 2, "about 1.9 of 2 cores were busy"),
        (4.7, 2, 2, "about 2.0 of 2 cores were busy"),
        (5.0, 16, 16, "give --threads 11"),
        (1.9, 2, 2, "give --threads 1"),
    ],
)
def test_who_would_wait_for_others_is_told(load, threads, cores, words):
    note = crowded(load, threads, cores)
    assert words in note and bool(words) == bool(note) and "\n" not in note


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Run the command with some flags, without training; how many threads it had."""
    seen = []

    def instead(*arguments):
        seen.append(torch.get_num_threads())
        return [dict(loss=1.0)]

    monkeypatch.setattr(real_run, "run", instead)
    monkeypatch.setattr(real_threads, "load_before", lambda: 1.9)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    data = data_file(tmp_path / "talk.jsonl", CONVERSATIONS)

    def start(*flags, model=None):
        options = ["--model", model or folder(), "--stage", "sft", "--data", data]
        options += ["--out", str(tmp_path / "out"), "--device", "cpu", "--full"]
        return main(["real", *options, *flags]), seen

    monkeypatch.setattr("posttrain.real.command.use_of", lambda options: "")
    return start


def test_the_command_takes_one_thread_for_a_narrow_model_and_says_nothing(
    started, capsys
):
    assert started() == (0, [1])
    assert capsys.readouterr().err == "" and torch.get_num_threads() == 2


def test_threads_that_are_asked_for_are_taken_and_the_crowd_is_named(started, capsys):
    assert started("--threads", "2") == (0, [2])
    said = capsys.readouterr().err
    assert said == crowded(1.9, 2, 2) + "\n" and "--threads 1" in said
    assert started("--threads", "1") == (0, [2, 1])
    assert capsys.readouterr().err == ""


def test_a_wide_model_gets_all_threads_and_the_crowd_is_named(
    started, capsys, monkeypatch
):
    monkeypatch.setattr(real_threads, "NARROW", 64)
    assert started() == (0, [2])
    assert "cores were busy" in capsys.readouterr().err


def test_fewer_threads_than_none_are_refused(started, capsys):
    assert started("--threads", "-1") == (2, [])
    assert capsys.readouterr().err == "threads is -1: use at least 0\n"


def test_a_dry_run_says_nothing_of_others(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(real_threads, "load_before", lambda: 1.9)
    config = dict(model_type="llama", vocab_size=384, hidden_size=576)
    config |= dict(num_hidden_layers=2, num_attention_heads=9, intermediate_size=64)
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    flags = ["--model", str(tmp_path), "--stage", "sft", "--dry-run"]
    assert main(["real", *flags]) == 0 and capsys.readouterr().err == ""
