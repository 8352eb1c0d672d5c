"""The record: measured where it is missing, named where it is stale, never
half-written, never wrong.
"""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import forks
import pytest
import torch
import toy_experiment
from tiny import empty_shelf

from posttrain.keep import store
from posttrain.lab import evidence
from posttrain.lab.evidence import (
    EvidenceError,
    Recorded,
    measure,
    outside,
    problems,
    read,
)
from posttrain.lab.experiments import EXPERIMENTS, Experiment

WIDE, USUAL = 20, 5  # seeds of the toy's claim and of its variation
DRIVER = Path(toy_experiment.__file__)


class Toy:
    """The toy's package on disk, and the runs that took place."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch, self.runs = folder, monkeypatch, []
        toy_experiment.write_package(folder)
        self.install()

    def install(self):
        toy_experiment.install(self.folder, self.monkeypatch.setattr)

    def edit(self, name, old, new):
        """Change a file, as an editor would, and start afresh."""
        path = self.folder / "toys" / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        self.install()

    def set(self, **changes):
        """Change the toy experiment's claims or variations, or its trial."""
        found = evidence.EXPERIMENTS["toy"]
        fields = dict(
            trial=found.trial, claims=found.claims, variations=found.variations
        )
        self.monkeypatch.setitem(
            evidence.EXPERIMENTS, "toy", Experiment(**fields | changes)
        )

    def setting(self, scale):
        return sys.modules["toys.trials"].Setting(scale)


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """The toy's experiments, empty folders for stages and evidence, and runs in this
    process.
    """
    empty_shelf(monkeypatch, tmp_path / "stages")
    monkeypatch.setenv("POSTTRAIN_EVIDENCE", str(tmp_path / "evidence"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(tmp_path / "package")
    toy, found_anew = Toy(tmp_path / "package", monkeypatch), evidence.found_anew

    def noted(*run):
        toy.runs.append(run)
        return found_anew(*run)

    monkeypatch.setattr(evidence, "found_anew", noted)
    monkeypatch.setattr(evidence.workers, "run_all", toy_experiment.one_by_one)
    monkeypatch.setattr(
        evidence.workers, "run_alone", lambda function, *job: function(*job)
    )
    monkeypatch.setattr(evidence, "this_machine", lambda: dict(processor="one"))
    return toy


def seeds_of(name="toy"):
    found = evidence.stored(name)["settings"]
    return {
        setting: [run["seed"] for run in known["runs"]]
        for setting, known in found.items()
    }


def path_of(name="toy"):
    return evidence.file_of(name)


# Measuring


def test_what_is_missing_is_measured_with_the_wanted_seeds_and_no_more(
    toy,
):
    assert measure("toy") == WIDE + USUAL == len(toy.runs)
    assert seeds_of() == dict(wide=list(range(WIDE)), usual=list(range(USUAL)))
    before = path_of().read_bytes()
    assert (
        measure("toy") == 0 and len(toy.runs) == 25 and path_of().read_bytes() == before
    )
    found = read("toy")
    assert (
        list(found) == ["wide", "usual"]
        and len(found) == 2
        and found.stale == ()
        and found.note == ""
    )
    assert found["wide"][3] == dict(
        value=44.0, curve=[44.0, 88.0], said=["Ay."], card=dict(b=3, a=True)
    )
    assert problems("toy") == []


def test_more_seeds_add_the_new_ones_alone_and_fewer_keep_what_is_there(toy):
    assert measure("toy", 2) == 4 and seeds_of() == dict(wide=[0, 1], usual=[0, 1])
    assert problems("toy") == [
        f"toy: 'wide' has 2 seeds of {evidence.FEWEST}",
        f"toy: 'usual' has 2 seeds of {evidence.FEWEST}",
    ]
    assert measure("toy", 7) == 5 + 3 and toy.runs[4] == ("toy", "wide", 2)
    assert (
        seeds_of() == dict(wide=list(range(7)), usual=list(range(USUAL)))
        and problems("toy") == []
    )
    assert measure("toy", 2) == 0 and seeds_of()["wide"] == list(range(7))


EDITS = {
    "the trial": ("trials.py", "len(rows) / 3", "len(rows) / 4"),
    "what it calls": ("parts.py", "1.5", "2.5"),
    "its data": ("data/rows.jsonl", "3", "35"),
}
TALK = {
    "a docstring": ("trials.py", "What a run finds.", "What one finds."),
    "a message": ("trials.py", "there is no seed below 0", "no such seed"),
    "a comment": ("trials.py", "    kept(", "    # Keep it\n    kept("),
    "what keeps": ("keep/__init__.py", "return text", "return text + text"),
    "what it does not reach": ("parts.py", "return 1", "return 2"),
    "data it does not read": ("data/unused.jsonl", "4", "5"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_a_change_makes_the_record_stale_which_is_named_and_measured_again(
    toy, capsys, edit
):
    for name in evidence.EXPERIMENTS:
        measure(name)
    before = read("toy")["wide"][0]["value"]
    toy.edit(*edit)
    named = [
        f"{name}: {setting!r} is stale"
        for name, setting in (("toy", "wide"), ("toy", "usual"), ("small", "narrow"))
    ]
    assert problems("toy") + problems("small") == named
    assert (
        evidence.main(["check"]) == 1 and capsys.readouterr().out.splitlines() == named
    )
    found = read("toy")
    assert found.stale == ("wide", "usual") and found["wide"][0]["value"] == before
    assert "make evidence NAMES=toy" in found.note
    assert (
        measure("toy") == 25
        and problems("toy") == []
        and read("toy")["wide"][0]["value"] != before
    )


@pytest.mark.parametrize("edit", TALK.values(), ids=TALK)
def test_what_changes_no_number_makes_nothing_stale(toy, edit):
    measure("toy")
    toy.edit(*edit)
    assert problems("toy") == [] and read("toy").note == "" and measure("toy") == 0


def test_a_changed_setting_is_stale_alone_a_new_one_missing_and_one_that_is_gone_goes(
    toy, capsys
):
    measure("toy")
    toy.set(
        claims={"wide": toy.setting(3.0)},
        variations={"usual": toy.setting(1.0), "new": toy.setting(4.0)},
    )
    assert problems("toy") == ["toy: 'wide' is stale", "toy: 'new' is missing"]
    with pytest.raises(
        EvidenceError,
        match="'new' of 'toy' has not been measured: run make evidence NAMES=toy",
    ):
        read("toy")
    toy.runs.clear()
    assert measure("toy") == WIDE + USUAL and {
        setting for _, setting, _ in toy.runs
    } == {"wide", "new"}
    # One that is gone is named, and the next measurement drops it
    toy.set(claims={})
    assert problems("toy") == ["toy: 'wide' is no setting any more"]
    assert (
        measure("toy") == 0
        and problems("toy") == []
        and list(seeds_of()) == ["new", "usual"]
    )


def test_keys_know_neither_pytorchs_version_nor_the_processor(toy, monkeypatch):
    before = evidence.keys_of(evidence.EXPERIMENTS["toy"])
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    for name in ("machine", "processor", "platform"):
        monkeypatch.setattr(evidence.platform, name, lambda: "another")
    monkeypatch.setattr(evidence, "processor", lambda: "another")
    assert evidence.keys_of(evidence.EXPERIMENTS["toy"]) == before


def test_an_experiment_that_is_alone_is_measured_one_run_after_the_other(
    toy, monkeypatch
):
    monkeypatch.setattr(evidence.workers, "run_all", None)
    evidence.EXPERIMENTS["small"] = Experiment(
        evidence.EXPERIMENTS["small"].trial,
        variations={"narrow": toy.setting(0.1)},
        alone=True,
    )
    seen = []
    assert measure(
        "small", progress=lambda jobs, total: seen.append(total) or jobs
    ) == USUAL and seen == [USUAL]
    assert toy.runs == [("small", "narrow", seed) for seed in range(USUAL)]


def test_without_tinyshakespeare_nothing_is_measured(toy, monkeypatch, capsys):
    other = evidence.corpus.Corpus("To be", "stand-in", "0" * 64)
    monkeypatch.setattr(evidence.corpus, "load", lambda: other)
    assert evidence.main(["measure", "toy"]) == 2 and toy.runs == []
    assert "tinyshakespeare, which was not found" in capsys.readouterr().err


# The file


def test_the_file_is_the_same_twice_sorted_rounded_and_a_runs_numbers_stand_in_a_line(
    toy,
):
    measure("toy")
    before = path_of().read_bytes()
    evidence.write("toy", [])
    assert path_of().read_bytes() == before
    path_of().unlink()
    measure("toy")
    record = json.loads(before)
    assert path_of().read_bytes() == before and record["machines"] == [
        dict(processor="one")
    ]
    lines = before.decode().splitlines()
    assert max(map(len, lines)) < 100
    assert lines.count('    "card": {"a": true, "b": 0},') == 0 and any(
        '{"a": true, "b": 3}' in line for line in lines
    )
    assert list(record) == sorted(record) and list(record["settings"]) == [
        "usual",
        "wide",
    ]
    (value,) = {
        run["found"]["value"]
        for run in record["settings"]["usual"]["runs"]
        if run["seed"] == 3
    }
    assert value == 22.0
    assert evidence.rounded(dict(a=[math.pi, (1, True)], b="x")) == dict(
        a=[3.1416, [1, True]], b="x"
    )


def test_machines_are_listed_once_each_and_those_whose_runs_are_gone_are_not(
    toy, monkeypatch
):
    measure("toy", 2)
    monkeypatch.setattr(evidence, "this_machine", lambda: dict(processor="two"))
    measure("toy", 3)
    record = evidence.stored("toy")
    machines = [
        record["machines"][run["machine"]]["processor"]
        for run in record["settings"]["wide"]["runs"]
    ]
    assert machines == ["one", "one", "two"] and len(record["machines"]) == 2
    toy.edit(*EDITS["the trial"])
    measure("toy", 3)
    assert evidence.stored("toy")["machines"] == [dict(processor="two")]


def test_two_that_measure_at_a_time_write_no_seed_twice(toy, monkeypatch):
    jobs = evidence.missing_runs("toy", None)
    measure("toy")
    before = path_of().read_bytes()
    monkeypatch.setattr(evidence, "missing_runs", lambda *_: jobs)
    assert measure("toy") == 25 and path_of().read_bytes() == before


def test_a_write_that_fails_leaves_the_file_as_it_was_and_no_other_behind(
    toy, monkeypatch, capsys
):
    measure("toy", 2)
    before = path_of().read_bytes()

    def full(one, other):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(
            store.os,
            "replace",
            lambda one, other: (
                full(one, other)
                if ".json" in str(other) and "evidence/toy" in str(other)
                else os.rename(one, other)
            ),
        )
        assert evidence.main(["measure", "toy"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert path_of().read_bytes() == before and [
        path.name for path in evidence.folder().iterdir()
    ] == ["toy.json"]
    # What was measured is found again
    toy.runs.clear()
    assert measure("toy") == 21 and toy.runs == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"experiment": "other", "machines": [], "settings": {}}',
        '{"experiment": "toy", "machines": [], "settings": []}',
        '{"experiment": "toy", "machines": [], "settings": {"wide": 3}}',
        '{"experiment": "toy", "machines": [], "settings": {"wide": {"key": "a", '
        '"runs": [{"seed": 0}]}}}',
        '{"experiment": "toy", "machines": [], "settings": {"wide": {"key": "a", '
        '"runs": [{"seed": 0, "seconds": 1, "found": {}, "machine": 0}]}}}',
        '<<<<<<< HEAD\n{"experiment": "toy"}',
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence_with_the_way_out(
    toy, capsys, text
):
    evidence.folder().mkdir()
    path_of().write_text(text)
    for command in (["check"], ["measure", "toy"]):
        assert evidence.main(command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{path_of()} is no record of 'toy'" in said
        assert said.endswith(
            "restore it with git, or delete it and run make evidence NAMES=toy\n"
        )
    with pytest.raises(EvidenceError):
        read("toy")
    assert path_of().read_text() == text and toy.runs == []


def test_the_folder_is_the_checkouts_wherever_the_stages_are(monkeypatch, tmp_path):
    empty_shelf(monkeypatch, tmp_path)
    monkeypatch.delenv("POSTTRAIN_EVIDENCE", raising=False)
    assert evidence.folder() == Path(__file__).parents[2] / "evidence"


# Interruptions, and old code


def test_an_interrupted_measurement_goes_on_where_it_was(toy, monkeypatch, capsys):
    found_anew = evidence.found_anew

    def stop(name, setting, seed):
        if len(toy.runs) == 9:
            raise KeyboardInterrupt
        return found_anew(name, setting, seed)

    monkeypatch.setattr(evidence, "found_anew", stop)
    assert evidence.main(["measure", "toy"]) == 130 and not path_of().exists()
    assert capsys.readouterr().err.endswith(
        "Stopped. Runs that were finished are kept.\n"
    )
    monkeypatch.setattr(evidence, "found_anew", found_anew)
    assert measure("toy") == 25 and len(toy.runs) == 25
    assert [run["value"] for run in read("toy")["usual"]] == [
        5.5,
        11.0,
        16.5,
        22.0,
        27.5,
    ]


def test_a_run_of_code_that_is_not_on_disk_is_refused(toy, capsys):
    # A worker that imported the package before it was edited
    path = toy.folder / "toys" / "parts.py"
    path.write_text(path.read_text().replace("1.5", "2.5"))
    assert evidence.main(["measure", "toy"]) == 2 and not path_of().exists()
    assert (
        capsys.readouterr().err
        == "the code was changed while it was measured: run it again\n"
    )


def test_runs_that_were_measured_before_an_edit_are_not_written_after_it(
    toy, monkeypatch
):
    def edited(function, jobs, progress):
        runs = toy_experiment.one_by_one(function, jobs)
        toy.edit(*EDITS["the trial"])
        return runs

    monkeypatch.setattr(evidence.workers, "run_all", edited)
    with pytest.raises(EvidenceError, match="the code was changed"):
        measure("toy")
    assert not path_of().exists()


def places(folder):
    """Where the toy's package, stages and record are, as the command is told."""
    return dict(
        TOY=str(folder / "package"),
        POSTTRAIN_STAGES=str(folder / "stages"),
        POSTTRAIN_EVIDENCE=str(folder / "evidence"),
    )


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_twenty_kills_lose_and_falsify_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("POSTTRAIN_EVIDENCE", str(tmp_path / "evidence"))
    toy_experiment.write_package(tmp_path / "package")
    draw, done, written = random.Random(0), set(), set()
    # So slow that no run of the command ends before it is killed
    context, slow = forks.context(), dict(TOY_SECONDS="0.2")
    for _ in range(20):
        ready = context.Event()
        child = context.Process(
            target=toy_experiment.measure_one_by_one,
            args=(["small", "toy"], places(tmp_path) | slow, ready),
        )
        child.start()
        assert ready.wait(60)
        time.sleep(draw.uniform(0.0, 0.4))
        os.killpg(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        # What was finished is still there
        now = {path.name for path in (tmp_path / "stages").glob("evidence-*.json")}
        assert done <= now
        done = now
        runs = set()
        for name in ("toy", "small"):
            settings = evidence.stored(name)["settings"]
            runs |= {
                (name, each, run["seed"], run["found"]["value"])
                for each in settings
                for run in settings[each]["runs"]
            }
        assert written <= runs
        written = runs
    assert 0 < len(done) <= 30
    # With workers, to the end
    path = [str(Path(evidence.__file__).parents[2]), str(DRIVER.parent)]
    told = dict(PYTHONPATH=os.pathsep.join(path), PYTHONDONTWRITEBYTECODE="1")
    ended = subprocess.run(
        [sys.executable, str(DRIVER), "measure"],
        env=os.environ | places(tmp_path) | told,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert ended.returncode == 0, (ended.stdout, ended.stderr)
    scales = {("toy", "wide"): 2.0, ("toy", "usual"): 1.0, ("small", "narrow"): 0.1}
    for (name, setting), scale in scales.items():
        runs = evidence.stored(name)["settings"][setting]["runs"]
        expected = [
            evidence.rounded(scale * (seed + 1) * 1.5 * 11 / 3)
            for seed in range(WIDE if setting == "wide" else USUAL)
        ]
        assert [run["found"]["value"] for run in runs] == expected
    left = sorted(path.name for path in (tmp_path / "evidence").iterdir())
    assert left == ["small.json", "toy.json"]


# Checking


def run_of(**found):
    return dict(seed=0, found=found)


def test_numbers_within_the_recorded_range_and_its_room_are_as_recorded():
    runs = [
        run_of(loss=10.0, card=dict(kl=2.0), seconds=9.0),
        run_of(loss=12.0, card=dict(kl=2.0), seconds=9.0),
    ]
    # One range to each side, and a twentieth of the largest
    for loss in (8.0 - 0.59, 11.0, 14.0 + 0.59):
        assert outside(dict(loss=loss, card=dict(kl=2.09), seconds=1e9), runs) == []
    assert outside(dict(loss=14.7, card=dict(kl=2.2)), runs) == [
        "loss is 14.7, recorded 10 to 12",
        "card.kl is 2.2, recorded 2 to 2",
    ]
    assert outside(dict(loss=7.3), runs) and outside(dict(loss=math.nan), runs)


def test_a_share_may_differ_by_three_answers_of_64_where_all_seeds_agree():
    runs = [run_of(finished=1.0, blunt=0.0)] * 5
    assert outside(dict(finished=61 / 64, blunt=3 / 64), runs) == []
    assert len(outside(dict(finished=60 / 64, blunt=4 / 64), runs)) == 2


def test_of_lists_the_last_entry_counts_and_of_numbers_the_mean():
    runs = [
        run_of(cards=[dict(gold=9.0), dict(gold=1.0)], scores=[0.0, 4.0], said=["a"])
    ]
    assert (
        outside(
            dict(cards=[dict(gold=0.0), dict(gold=1.0)], scores=[2.0, 2.0], said=["b"]),
            runs,
        )
        == []
    )
    assert outside(
        dict(cards=[dict(gold=9.0), dict(gold=2.0)], scores=[4.0, 4.0]), runs
    ) == [
        "cards.gold is 2, recorded 1 to 1",
        "scores is 4, recorded 2 to 2",
    ]


def test_a_spot_check_measures_anew_and_names_what_is_not_as_recorded(
    toy, monkeypatch, capsys
):
    for name in evidence.EXPERIMENTS:
        measure(name)
    toy.runs.clear()
    assert evidence.main(["check", "--anew", "3", "--draw", "abc"]) == 0
    said, first = capsys.readouterr().out, list(toy.runs)
    assert (
        len(first) == 3
        and said.endswith("The record is current.\n")
        and said.count("measuring ") == 3
    )
    toy.runs.clear()
    assert (
        evidence.spot_check(3, "abc") == [] and toy.runs == first
    )  # not found on the shelf
    toy.runs.clear()
    assert evidence.spot_check(3, "abd") == [] and toy.runs != first
    assert evidence.spot_check(1000, "") == []
    monkeypatch.setattr(evidence, "found_anew", lambda *run: dict(value=1e6))
    assert evidence.main(["check", "--anew", "1", "--draw", "abc"]) == 1
    name, setting, seed = first[0]
    assert (
        f"{name}: {setting!r}, seed {seed}: value is 1e+06, recorded"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("strange", [1, 2, 3])
def test_one_strange_run_is_an_outlier_and_two_are_not(
    toy, monkeypatch, capsys, strange
):
    for name in evidence.EXPERIMENTS:
        measure(name)
    found_anew, asked = evidence.found_anew, []

    def found(name, setting, seed):
        asked.append((name, setting, seed))
        return dict(value=1e6) if len(asked) < strange else found_anew(*asked[-1])

    monkeypatch.setattr(evidence, "found_anew", found)
    said = evidence.spot_check(1, "abc")
    (name, setting, seed), *others = asked
    following = [(seed + step) % evidence.FEWEST for step in (1, 2)]
    assert others == [(name, setting, s) for s in following[: 2 * (strange > 1)]]
    assert len(said) == (2 if strange == 3 else 0)
    assert ("An outlier:" in capsys.readouterr().out) == (strange == 2)


def test_experiments_that_measure_time_are_not_checked_anew(toy):
    one = evidence.EXPERIMENTS["small"]
    evidence.EXPERIMENTS["small"] = Experiment(
        one.trial, variations=one.variations, alone=True
    )
    for name in evidence.EXPERIMENTS:
        measure(name)
    toy.runs.clear()
    evidence.spot_check(1000, "")
    assert {name for name, _, _ in toy.runs} == {"toy"}


# The command


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ("measure --seeds 0", "--seeds is 0: use at least 1"),
        ("check --anew -1", "--anew is -1: use 0 or more"),
        ("", "required"),
    ],
)
def test_a_wrong_argument_is_2_and_a_sentence(toy, capsys, arguments, reason):
    with pytest.raises(SystemExit) as ended:
        evidence.main(arguments.split())
    assert (
        ended.value.code == 2 and reason in capsys.readouterr().err and toy.runs == []
    )


def test_an_experiment_that_is_not_known_is_named_before_anything_is_measured(
    toy, capsys
):
    assert evidence.main(["measure", "toy", "tyo"]) == 2 and toy.runs == []
    assert capsys.readouterr().err == "'tyo' is no experiment: use one of toy, small\n"


def test_all_experiments_are_measured_and_said(toy, capsys):
    assert evidence.main(["measure", "--seeds", "1"]) == 0
    assert [line.split(" in ")[0] for line in capsys.readouterr().out.splitlines()] == [
        "toy: 2 runs measured",
        "small: 1 runs measured",
    ]


# The book's experiments


def test_what_is_recorded_knows_its_settings():
    found = Recorded("toy", dict(a=[dict(x=1)], b=[]), ("b",))
    assert (
        found["a"] == [dict(x=1)]
        and list(found) == ["a", "b"]
        and "b" in found
        and found.note
    )


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_books_trials_have_keys_and_run_the_code_that_is_on_disk(name):
    keys = evidence.keys_of(EXPERIMENTS[name])
    assert list(keys) == list(EXPERIMENTS[name].settings) and len(
        set(keys.values())
    ) == len(keys)
    assert evidence.code.changed(EXPERIMENTS[name].trial) == []
    assert not set(EXPERIMENTS[name].claims) & set(EXPERIMENTS[name].variations)


def test_the_committed_records_that_are_compared_start_from_the_same_models():
    """An SFT model of seed i is one in all of them: they come from one machine.

    Where it fails, remove these records and measure them anew, all on one machine.
    """
    starts = {}
    for name in ("ppo", "dpo", "rivals"):
        for runs in evidence.read(name).runs.values():
            for seed, run in enumerate(runs):
                start = run["cards"][0]["gold_score"]
                starts.setdefault(seed, {}).setdefault(round(start, 3), name)
    assert starts and all(len(found) == 1 for found in starts.values()), starts
