"""A toy experiment in a package of its own, whose files can be edited, and the command
that measures it.

As a script, `TOY=FOLDER python toy_experiment.py measure`, it is `python -m
posttrain.lab.evidence` with the toy's experiments in place of the book's.
"""

import importlib
import os
import sys
from pathlib import Path

from posttrain.data import corpus
from posttrain.keep import code
from posttrain.lab import evidence
from posttrain.lab.experiments import Experiment

SHAKESPEARE = corpus.Corpus("To be, or not to be." * 9, "test", corpus.CANONICAL_SHA256)
FILES = {
    "__init__.py": '"""A toy."""\n',
    "data/rows.jsonl": '{"row": 3}\n',
    "data/unused.jsonl": '{"row": 4}\n',
    "trials.py": '''"""A toy's trial."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from toys.keep import kept
from toys.parts import FACTOR, unused

@dataclass(frozen=True)
class Setting:
    """One way to play."""

    scale: float = 1.0

def trial(corpus, setting, seed):
    """What a run finds."""
    time.sleep(float(os.environ.get("TOY_SECONDS", "0")))
    if seed < 0:
        raise ValueError("there is no seed below 0")
    kept("a run")
    rows = (Path(__file__).parent / "data" / "rows.jsonl").read_text()
    value = setting.scale * (seed + 1) * FACTOR * len(rows) / 3
    curve, card = [value, 2 * value], dict(b=seed, a=True)
    return dict(value=value, curve=curve, said=["Ay."], card=card)
''',
    "parts.py": '"""Parts."""\n\nFACTOR = 1.5\n\ndef unused():\n    return 1\n',
    "keep/__init__.py": '"""What keeps."""\n\ndef kept(text):\n    return text\n',
}


def write_package(folder: Path) -> None:
    """Write the toy's package into a folder."""
    for name, text in FILES.items():
        path = folder / "toys" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def install(folder: Path, put=setattr) -> None:
    """Import the toy's package anew, and put its experiments in the place of the
    book's.
    """
    for name in [name for name in sys.modules if name.split(".")[0] == "toys"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    put(code, "PACKAGE", folder / "toys")
    trials = importlib.import_module("toys.trials")
    whole = Experiment(
        trials.trial, {"wide": trials.Setting(2.0)}, {"usual": trials.Setting()}
    )
    few = Experiment(trials.trial, variations={"narrow": trials.Setting(0.1)})
    put(evidence, "EXPERIMENTS", dict(toy=whole, small=few))
    put(evidence, "base_model", lambda text: None)
    put(corpus, "load", lambda: SHAKESPEARE)


def one_by_one(function, jobs, progress=lambda done, total: done) -> list:
    """`workers.run_all` without processes."""
    jobs = list(jobs)
    return [function(*job) for job in progress(jobs, len(jobs))]


def measure_one_by_one(names: list, variables: dict, ready) -> None:
    """The command without workers, in a process group of its own.

    For a process that was forked: what it is told comes too late for its imports.
    """
    os.setsid()
    os.environ |= variables
    sys.dont_write_bytecode = True
    sys.path.insert(0, variables["TOY"])
    install(Path(variables["TOY"]))
    evidence.workers.run_all = one_by_one
    ready.set()
    sys.exit(evidence.main(["measure", *names]))


# Workers import this file as well, and have the toy's experiments from here
if "TOY" in os.environ:
    sys.path.insert(0, os.environ["TOY"])
    install(Path(os.environ["TOY"]))

if __name__ == "__main__":
    sys.exit(evidence.main())
