"""The recorded evidence: what many seeds gave, kept in `evidence/*.json` and read by
the pages.

A record is found by what it depends on: its setting, the book's data, and the code that
computes it. `make evidence` measures what is missing or stale; `make evidence-check`
names it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path

import torch

from posttrain.data import corpus
from posttrain.keep import code, store, workers
from posttrain.lab.experiments import EXPERIMENTS, Experiment
from posttrain.stages import base_model

FEWEST = 5  # seeds that a record has at least; a measurement of time has one
DIGITS = 5  # that a recorded number keeps
# How far beyond the seeds' range, in its widths, a run measured anew may be
SPREAD = 1.0
# And so far in any case: of the largest number, or three of 64 answers
LEAST_ROOM = 0.05
KEPT = "Runs that were finished are kept."
CHANGED = "the code was changed while it was measured: run it again"


class EvidenceError(ValueError):
    """A record cannot be read or measured: the message says which, why, and the way
    out.
    """


@dataclass(frozen=True)
class Recorded(Mapping):
    """What an experiment gave: by setting, a list with what each seed's run found.

    stale: the settings whose code, data or setting has changed since they were
    measured.
    """

    name: str
    runs: dict[str, list[dict]]
    stale: tuple[str, ...] = ()

    def __getitem__(self, setting: str) -> list[dict]:
        return self.runs[setting]

    def __iter__(self) -> Iterator[str]:
        return iter(self.runs)

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def note(self) -> str:
        """A line to show under what the record says, where the code is no longer that
        one.
        """
        if not self.stale:
            return ""
        return (
            "Measured before the code that computes this was changed. With yours: "
            f"make evidence NAMES={self.name}"
        )


def folder() -> Path:
    """POSTTRAIN_EVIDENCE, else `evidence/` in the checkout, else in the current
    folder.
    """
    chosen = os.environ.get("POSTTRAIN_EVIDENCE")
    return Path(chosen) if chosen else (corpus.checkout() or Path.cwd()) / "evidence"


def file_of(name: str) -> Path:
    """Where an experiment's record is."""
    return folder() / f"{name}.json"


def plain(setting: object) -> object:
    """A setting as JSON holds it."""
    return json.loads(json.dumps(asdict(setting) if is_dataclass(setting) else setting))


def keys_of(experiment: Experiment) -> dict[str, str]:
    """What records are found by: settings, and the code and data the trial reaches."""
    source, keys = code.code_key(experiment.trial, with_data=True), {}
    for name, setting in experiment.settings.items():
        whole = json.dumps(
            [type(setting).__name__, plain(setting), source], sort_keys=True
        )
        keys[name] = hashlib.sha256(whole.encode()).hexdigest()[:16]
    return keys


# Reading


def stored(name: str) -> dict:
    """An experiment's file, or one that holds nothing where there is none.

    Raises EvidenceError for a file that is no record.
    """
    path = file_of(name)
    if not path.exists():
        return dict(experiment=name, machines=[], settings={})
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        check_form(found, name)
        return found
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        TypeError,
        AttributeError,
    ) as error:
        raise EvidenceError(
            f"{path} is no record of {name!r} ({type(error).__name__}: {error}): "
            "restore it "
            f"with git, or delete it and run make evidence NAMES={name}"
        ) from None


def check_form(record: dict, name: str) -> None:
    """Raise ValueError, KeyError, IndexError or TypeError for what is no record."""
    if record["experiment"] != name:
        raise ValueError(f"it is the record of {record['experiment']!r}")
    for known in record["settings"].values():
        seeds = [run["seed"] for run in known["runs"]]
        if not isinstance(known["key"], str) or len(set(seeds)) < len(seeds):
            raise ValueError("it has a seed twice, or no key")
        for run in known["runs"]:
            run["seconds"], dict(run["found"]), record["machines"][run["machine"]]


def find(name: str) -> Experiment:
    """An experiment by its name. Raises EvidenceError for one that is not known."""
    if name not in EXPERIMENTS:
        known = ", ".join(EXPERIMENTS)
        raise EvidenceError(f"{name!r} is no experiment: use one of {known}")
    return EXPERIMENTS[name]


def read(name: str) -> Recorded:
    """What an experiment's record says, by setting and seed.

    Raises EvidenceError where a setting was never measured.
    """
    experiment, settings = find(name), stored(name)["settings"]
    missing = [
        each for each in experiment.settings if not settings.get(each, {}).get("runs")
    ]
    if missing:
        raise EvidenceError(
            f"{', '.join(map(repr, missing))} of {name!r} has not been measured: run "
            f"make evidence NAMES={name}"
        )
    runs = {
        each: [run["found"] for run in settings[each]["runs"]]
        for each in experiment.settings
    }
    keys = keys_of(experiment)
    stale = tuple(each for each in keys if settings[each]["key"] != keys[each])
    return Recorded(name, runs, stale)


# Measuring


def run_trial(name: str, setting: str, seed: int) -> dict:
    """One run: what its trial found, the seconds it took, and the key of the code that
    ran.

    Kept in the stages folder as well, so that an experiment that was broken off goes on
    where it was. Raises EvidenceError where the code that runs is not what the files
    say.
    """
    experiment, what = (
        EXPERIMENTS[name],
        dict(experiment=name, setting=setting, seed=seed),
    )
    key, started = keys_of(experiment)[setting], time.perf_counter()

    def train() -> tuple[dict, dict]:
        found = found_anew(name, setting, seed)
        return {}, dict(found=found, seconds=round(time.perf_counter() - started, 1))

    kept = store.obtain("evidence", what, train, reads=key, code_of=experiment.trial)
    if kept.key == store.UNKEPT:
        raise EvidenceError(CHANGED)
    return dict(seed=seed, **kept.history, key=key)


def found_anew(name: str, setting: str, seed: int) -> dict:
    """What the trial finds now, whether or not it was run before."""
    experiment = EXPERIMENTS[name]
    return rounded(experiment.trial(corpus.load(), experiment.settings[setting], seed))


def rounded(value: object) -> object:
    """Numbers with DIGITS digits, in whatever lists and dictionaries they stand."""
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {str(key): rounded(each) for key, each in value.items()}
    return (
        [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value
    )


def missing_runs(name: str, seeds: int | None) -> list[tuple[str, int]]:
    """The settings and seeds of an experiment for which there is no current run.

    seeds: at most so many of each setting; all that are wanted where it is None.
    """
    experiment, settings = find(name), stored(name)["settings"]
    keys, jobs = keys_of(experiment), []
    for setting in experiment.settings:
        known = settings.get(setting, {})
        done = [run["seed"] for run in known.get("runs", ())]
        current = known.get("key") == keys[setting]
        wanted = experiment.seeds(setting)
        wanted = wanted if seeds is None else min(seeds, wanted)
        jobs += [(setting, i) for i in range(wanted) if not current or i not in done]
    return jobs


def measure(
    name: str, seeds: int | None = None, progress: Callable = lambda done, total: done
) -> int:
    """Measure what is missing or stale of an experiment, side by side; return how many
    runs.

    The file is replaced when all is done. Raises EvidenceError without tinyshakespeare,
    and where the code changed meanwhile.
    """
    experiment, jobs = find(name), missing_runs(name, seeds)
    if not jobs:
        if gone(name):
            write(name, [])
        return 0
    base_model(shakespeare())  # once, before the workers all want it
    calls = [(name, *job) for job in jobs]
    if experiment.alone:
        runs = [
            workers.run_alone(run_trial, *call) for call in progress(calls, len(calls))
        ]
    else:
        runs = workers.run_all(run_trial, calls, progress)
    write(name, list(zip((setting for setting, _ in jobs), runs)))
    return len(jobs)


def shakespeare() -> corpus.Corpus:
    """The text that all evidence is measured on. Raises EvidenceError where it is not
    there.
    """
    text = corpus.load()
    if text.sha256 != corpus.CANONICAL_SHA256:
        raise EvidenceError(
            "the evidence is measured on tinyshakespeare, which was not found"
        )
    return text


def write(name: str, measured: list[tuple[str, dict]]) -> None:
    """Put newly measured runs (setting, run) in the place of stale ones, in one move.

    Raises EvidenceError for a run of other code than is on disk.
    """
    experiment, here = find(name), this_machine()
    keys = keys_of(experiment)
    if any(run["key"] != keys[setting] for setting, run in measured):
        raise EvidenceError(CHANGED)
    folder().mkdir(parents=True, exist_ok=True)
    with store.lock(store.stages_folder() / f"evidence-{name}"):
        record, settings = stored(name), {}
        for setting, key in keys.items():
            runs = current_runs(record, setting, key)
            fresh = {run["seed"]: run for each, run in measured if each == setting}
            runs |= {seed: dict(run, machine=here) for seed, run in fresh.items()}
            plainly = plain(experiment.settings[setting])
            settings[setting] = dict(key=key, setting=plainly, runs=runs)
        # Sweep up what a killed run was writing
        for unfinished in folder().glob(f"{name}.json.*.tmp"):
            unfinished.unlink()
        store.replace_file(file_of(name), as_text(name, settings).encode())


def current_runs(record: dict, setting: str, key: str) -> dict[int, dict]:
    """A setting's runs by seed, their machines written out; none that is stale."""
    known = record["settings"].get(setting, dict(key=None, runs=[]))
    if known["key"] != key:
        return {}
    machines = record["machines"]
    return {
        run["seed"]: dict(run, machine=machines[run["machine"]])
        for run in known["runs"]
    }


def as_text(name: str, settings: dict[str, dict]) -> str:
    """The text of a record: sorted, and each machine that measured something listed
    once.
    """
    parts, machines = ("found", "machine", "seconds", "seed"), []
    for known in settings.values():
        rows = []
        for _, run in sorted(known["runs"].items()):
            if run["machine"] not in machines:
                machines.append(run["machine"])
            rows.append(dict(run, machine=machines.index(run["machine"])))
        known["runs"] = [{part: run[part] for part in parts} for run in rows]
    return laid_out(dict(experiment=name, machines=machines, settings=settings)) + "\n"


def laid_out(value: object, indent: str = "") -> str:
    """JSON whose lists of plain values, and dictionaries of them, are one line each."""
    nested = isinstance(value, (dict, list)) and any(
        isinstance(part, (dict, list))
        for part in (value.values() if isinstance(value, dict) else value)
    )
    if not nested:
        return json.dumps(value, ensure_ascii=False, sort_keys=True)
    deeper = indent + " "
    if isinstance(value, list):
        rows = [f"{deeper}{laid_out(part, deeper)}" for part in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    rows = [
        f"{deeper}{json.dumps(k)}: {laid_out(value[k], deeper)}" for k in sorted(value)
    ]
    return "{\n" + ",\n".join(rows) + f"\n{indent}}}"


def this_machine() -> dict[str, str]:
    """Where and with what a run was measured."""
    return dict(revision=revision(), pytorch=torch.__version__, processor=processor())


def revision() -> str:
    """The commit of the code, marked where files of it differ; "unknown" outside a
    checkout.
    """
    here = dict(cwd=code.PACKAGE, capture_output=True, text=True, check=True)
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short=10", "HEAD"], **here
        ).stdout
        edits = subprocess.run(["git", "status", "--porcelain", "."], **here).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("-dirty" if edits else "")


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [
        line.partition(":")[2].strip()
        for line in lines
        if line.startswith("model name")
    ]
    wide = any("avx512f" in line for line in lines if line.startswith("flags"))
    name = names[0] if names else platform.machine()
    return f"{name}, {'with' if wide else 'without'} AVX-512"


# Checking


def problems(name: str) -> list[str]:
    """What is wrong with an experiment's record: missing, stale, or of too few
    seeds.
    """
    experiment, settings = find(name), stored(name)["settings"]
    found, fewest = [], 1 if experiment.alone else FEWEST
    for setting, key in keys_of(experiment).items():
        known = settings.get(setting)
        if known is None:
            found.append(f"{name}: {setting!r} is missing")
        elif known["key"] != key:
            found.append(f"{name}: {setting!r} is stale")
        elif len(known["runs"]) < fewest:
            found.append(
                f"{name}: {setting!r} has {len(known['runs'])} seeds of {fewest}"
            )
    return found + [
        f"{name}: {setting!r} is no setting any more" for setting in gone(name)
    ]


def gone(name: str) -> list[str]:
    """The settings in an experiment's record that it has no more."""
    return [
        each for each in stored(name)["settings"] if each not in find(name).settings
    ]


def numbers(value: object, path: str = "") -> Iterator[tuple[str, float]]:
    """Every number in a finding, but for seconds, under the path that leads to it."""
    if isinstance(value, bool) or path.endswith(("seconds", "memory", "before")):
        return
    if isinstance(value, (int, float)):
        yield path, float(value)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from numbers(part, f"{path}.{key}".removeprefix("."))


def outside(found: dict, runs: list[dict]) -> list[str]:
    """The numbers of a run measured anew that are far from what the recorded seeds
    gave.

    Compared are those that a finding has by name, and of its lists the last entry, or
    the mean where they hold numbers.
    """
    ends = [dict(numbers(with_ends(each["found"]))) for each in runs]
    problems = []
    for path, value in numbers(with_ends(found)):
        known = [each[path] for each in ends if path in each]
        if not known:
            continue
        room = SPREAD * (max(known) - min(known)) + LEAST_ROOM * max(
            1.0, *map(abs, known)
        )
        if not min(known) - room <= value <= max(known) + room:
            problems.append(
                f"{path} is {value:g}, recorded {min(known):g} to {max(known):g}"
            )
    return problems


def with_ends(value: object) -> object:
    """A finding with each list replaced by its last entry, or by its mean if it is
    numbers.
    """
    if isinstance(value, dict):
        return {key: with_ends(part) for key, part in value.items()}
    if not isinstance(value, list) or not value:
        return value
    plainly = all(isinstance(part, (int, float)) for part in value)
    return sum(value) / len(value) if plainly else with_ends(value[-1])


def spot_check(n: int, draw: str) -> list[str]:
    """Measure n runs anew, drawn by a text, and say where they are not as recorded.

    A run of another processor is another run, and one in many lies outside by chance.
    So where one does, the next two seeds of its setting are measured as well: if both
    are as recorded it is an outlier, which is printed; if not, all that was found is
    returned.
    """
    choices = [
        (name, setting, seed)
        for name, experiment in EXPERIMENTS.items()
        for setting in experiment.settings
        for seed in range(FEWEST)
        if not experiment.alone
    ]
    base_model(shakespeare())
    found = []
    for name, setting, seed in random.Random(draw).sample(
        choices, min(n, len(choices))
    ):
        said = not_as_recorded(name, setting, seed)
        if not said:
            continue
        others = [(seed + step) % FEWEST for step in (1, 2)]
        more = [not_as_recorded(name, setting, other) for other in others]
        if any(more):
            found += sum(more, said)
        else:
            print("An outlier:", *said, "(two more seeds are as recorded)", sep="\n  ")
    return found


def not_as_recorded(name: str, setting: str, seed: int) -> list[str]:
    """Measure one run anew; say where it is not as recorded."""
    print(f"measuring {name}: {setting!r}, seed {seed}", flush=True)
    anew = workers.run_alone(found_anew, name, setting, seed)
    said = outside(anew, stored(name)["settings"][setting]["runs"])
    return [f"{name}: {setting!r}, seed {seed}: {each}" for each in said]


# The command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        "python -m posttrain.lab.evidence", description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True)
    measuring = commands.add_parser("measure", help="measure what is missing or stale")
    measuring.add_argument(
        "names", nargs="*", metavar="NAME", help=", ".join(EXPERIMENTS)
    )
    measuring.add_argument("--seeds", type=int, help="at most so many of each setting")
    checking = commands.add_parser("check", help="name what is missing or stale")
    checking.add_argument(
        "--anew", type=int, default=0, metavar="N", help="measure N runs anew"
    )
    checking.add_argument(
        "--draw", default="", help="the text that draws them, as a revision"
    )
    options = parser.parse_args(arguments)
    if options.command == "measure" and options.seeds is not None and options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}: use at least 1")
    if options.command == "check" and options.anew < 0:
        parser.error(f"--anew is {options.anew}: use 0 or more")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Measure or check the evidence; return the exit status."""
    from posttrain.show import progress

    options = parse(arguments)
    try:
        if options.command == "measure":
            list(map(find, options.names))  # before anything is measured
            for experiment in options.names or EXPERIMENTS:
                started = time.perf_counter()
                n = measure(experiment, options.seeds, progress)
                took = f" in {time.perf_counter() - started:.0f} s" if n else ""
                print(f"{experiment}: {n} runs measured{took}", flush=True)
            return 0
        found = [problem for name in EXPERIMENTS for problem in problems(name)]
        if not found and options.anew:
            found = spot_check(options.anew, options.draw)
    except (EvidenceError, corpus.CorpusError) as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error}: free some space, and run it again. {KEPT}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nStopped. {KEPT}", file=sys.stderr)
        return 130
    print("\n".join(found) or "The record is current.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
