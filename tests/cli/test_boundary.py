"""What goes wrong outside the program: a sentence and an exit status, no traceback."""

import errno
import io
import os
import signal
import subprocess
import sys
import textwrap

import pytest
import safetensors.torch
import torch

from posttrain.cli.boundary import CHECKPOINT_KEPT, STAGES_KEPT, explain, guarded
from posttrain.data.datasets import DatasetError
from posttrain.keep import code
from posttrain.real.model import ModelError

posix_only = pytest.mark.skipif(os.name != "posix", reason="POSIX pipes and devices")


def raised(make):
    """The error that a call raises."""
    try:
        make()
    except Exception as error:
        return error


def damaged(folder):
    path = folder / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(8)}, path)
    path.write_bytes(path.read_bytes()[:-4])
    return raised(lambda: safetensors.torch.load_file(path))


ERRORS = {
    "the book's own": (lambda _: DatasetError("mine.jsonl: no"), "mine.jsonl: no"),
    "a model's": (lambda _: ModelError("smol: no such folder"), "smol: no such"),
    "not there": (
        lambda place: raised(lambda: open(place / "nowhere")),
        "nowhere cannot be read or written (No such file or directory)",
    ),
    "a folder": (
        lambda place: raised(lambda: open(place, "w")),
        "cannot be read or written (Is a directory): give another place",
    ),
    "a file as a folder": (
        lambda place: raised(lambda: (place / "a" / "b").mkdir(parents=True)),
        "a/b cannot be read or written (Not a directory)",
    ),
    "forbidden": (
        lambda place: PermissionError(errno.EACCES, "Permission denied", "out"),
        "out cannot be read or written (Permission denied)",
    ),
    "a full disk": (
        lambda _: OSError(errno.ENOSPC, "No space left on device"),
        "no space left on the disk: free some",
    ),
    "a full disk, safetensors": (
        lambda _: safetensors.SafetensorError(
            "Error while serializing: I/O error: No space left on device (os error 28)"
        ),
        "no space left on the disk: free some",
    ),
    "a full disk, tokenizers": (
        lambda _: Exception("No space left on device (os error 28)"),
        "no space left on the disk",
    ),
    "no memory": (lambda _: MemoryError(), "There is not enough memory: "),
    "no memory, PyTorch": (
        lambda _: raised(lambda: torch.empty(2**60)),
        "There is not enough memory (",
    ),
    "no memory, CUDA": (
        lambda _: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        "There is not enough memory (CUDA out of memory",
    ),
    "no memory, a mapped file": (
        lambda _: OSError(errno.ENOMEM, "Cannot allocate memory"),
        "There is not enough memory",
    ),
    "cut weights": (damaged, "A file of weights is cut or damaged ("),
    "a letter": (
        lambda _: raised(lambda: "\udcff".encode()),
        "cannot express a name or a text",
    ),
    "no probabilities": (
        lambda _: raised(
            lambda: torch.multinomial(torch.tensor([float("nan"), 1.0]), 1)
        ),
        "numbers have left their range: lower its rate",
    ),
}


@pytest.mark.parametrize("kind", ERRORS)
@pytest.mark.parametrize("real", [True, False])
def test_each_error_is_one_sentence_and_2(kind, real, tmp_path, capsys):
    (tmp_path / "a").touch()
    make, sentence = ERRORS[kind]
    error = make(tmp_path)

    def fail():
        raise error

    assert guarded(fail, real) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and printed.err.count("\n") == 1 and not printed.out
    kept = CHECKPOINT_KEPT if real else STAGES_KEPT
    assert (kept in printed.err) == ("memory" in kind or "disk" in kind)


def test_a_fault_of_the_program_itself_keeps_its_traceback():
    for error in (ValueError("x"), KeyError("x"), RuntimeError("shapes"), Exception()):
        assert explain(error) is None

    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        guarded(fail)


def test_the_status_is_the_actions_and_an_interruption_130(capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert guarded(lambda: 3) == 3
    assert guarded(interrupt, real=True) == 130 == guarded(interrupt)
    told = capsys.readouterr().err
    assert told == f"\nStopped. {CHECKPOINT_KEPT}\n\nStopped. {STAGES_KEPT}\n"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_screen_shows_what_it_can_and_the_rest_as_numbers(encoding, monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", screen)

    def show():
        print("\u4f60 \udcff na\u00efve")
        return 0

    assert guarded(show) == 0
    shown = screen.buffer.getvalue().decode(encoding)
    assert r"\udcff na" in shown and ("\u4f60" in shown or r"\u4f60" in shown)


SCRIPT = """
    import signal, sys, time
    # Even where the tests run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from posttrain.cli.boundary import guarded
    def action():
        {}
        return 0
    sys.exit(guarded(action))
"""


def started(action, **options):
    """A process that carries out an action in the boundary."""
    script = textwrap.dedent(SCRIPT).format(action)
    environment = os.environ | dict(
        PYTHONPATH=str(code.PACKAGE.parent), PYTHONUNBUFFERED=""
    )
    options = dict(stderr=subprocess.PIPE, stdout=subprocess.PIPE) | options
    return subprocess.Popen([sys.executable, "-c", script], env=environment, **options)


@posix_only
@pytest.mark.parametrize(
    ("action", "status"), [("print('a')", 0), ("print('a\\n' * 10**6)", 141)]
)
def test_a_reader_that_goes_away_ends_it_quietly(action, status):
    child = started(f"sys.stdin.read(); {action}", stdin=subprocess.PIPE)
    child.stdout.close()
    child.stdin.close()
    assert (child.wait(30), child.stderr.read()) == (status, b"")
    child.stderr.close()


@posix_only
@pytest.mark.parametrize("action", ["print('a')", "print('a' * 10**6, flush=True)"])
def test_a_full_disk_behind_the_output_is_a_sentence(action):
    with open("/dev/full", "wb") as full:
        child = started(action, stdout=full)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 2 and errors.count(b"\n") == 1
    assert errors.startswith(b"There is no space left on the disk: free some.")


@posix_only
def test_a_process_that_is_interrupted_says_so():
    child = started("print('a', flush=True); time.sleep(60)")
    assert child.stdout.read(2) == b"a\n"
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=30)
    assert child.returncode == 130 and errors.decode() == f"\nStopped. {STAGES_KEPT}\n"


@posix_only
def test_help_into_a_closed_pipe_is_quiet():
    environment = os.environ | dict(PYTHONPATH=str(code.PACKAGE.parent))
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "posttrain", "real", "--help"]
    told = subprocess.run(command, env=environment, stdout=write, stderr=-1)
    os.close(write)
    assert (told.returncode, told.stderr) == (0, b"")
