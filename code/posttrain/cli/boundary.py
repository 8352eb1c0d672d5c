"""The boundary between a command and all that can go wrong outside it: one sentence and
an exit status, never a traceback.

A fault of the program itself still has a traceback, by which it is found.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries that are not written in Python say of a full disk, and of no memory
FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
MEMORY_WORDS = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "bad_alloc",
)
# And of what a rate that is too high has made of a model
NUMBER_WORDS = ("probability tensor contains", "to type float without overflow")
LESS = (
    "take fewer rows at once (--micro-batch-size 1), shorter ones (--max-length), "
    "--checkpointing, --qlora, or a smaller model"
)
STAGES_KEPT = "Stages that were finished are kept."
CHECKPOINT_KEPT = "Checkpoints are kept: --resume goes on from the last."


def guarded(action: Callable[[], int], real: bool = False) -> int:
    """The exit status of an action: 2 and a sentence on standard error where something
    outside the program fails, 130 where it is interrupted, and 141 where nobody reads
    its output any more and it cannot finish (as shells count a broken pipe).

    real: whether it trains a real model, for what a sentence recommends.
    """
    show_any_letter()
    kept = CHECKPOINT_KEPT if real else STAGES_KEPT
    status = 141
    try:
        status = action()
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        say(f"\nStopped. {kept}")
        return 130
    except BrokenPipeError:
        return status
    except Exception as error:
        sentence = explain(error, real)
        if sentence is None:
            raise
        say(sentence)
        return 2
    finally:
        let_go()


def explain(error: Exception, real: bool = False) -> str | None:
    """What is wrong outside the program, and the way out; None for its own faults."""
    text = " ".join(str(error).split())
    if isinstance(error, MemoryError) or is_said(error, MEMORY_WORDS):
        way_out = LESS if real else "close other programs, or set a smaller batch_size"
        return f"There is not enough memory{in_brackets(text)}: {way_out}. " + (
            CHECKPOINT_KEPT if real else STAGES_KEPT
        )
    if is_full(error):
        name = getattr(error, "filename", None)
        return f"There is no space left on the disk{in_brackets(name)}: free some. " + (
            CHECKPOINT_KEPT if real else STAGES_KEPT
        )
    if is_said(error, NUMBER_WORDS):
        way_out = "--lr" if real else "with --set"
        return f"A model's numbers have left their range: lower its rate, {way_out}"
    # An error of the package's own is a sentence already
    if type(error).__module__.partition(".")[0] == "posttrain":
        return str(error)
    if isinstance(error, UnicodeError):
        return (
            f"This terminal's locale cannot express a name or a text ({text}): set "
            "PYTHONUTF8=1, or LC_ALL=C.UTF-8"
        )
    if isinstance(error, OSError):
        name = error.filename if error.filename is not None else "a file"
        return (
            f"{name} cannot be read or written ({error.strerror or text}): give "
            "another place, or the rights to this one"
        )
    if type(error).__name__ == "SafetensorError":
        return (
            f"A file of weights is cut or damaged ({text}): fetch it again, or train "
            "it anew"
        )
    return None


def is_said(error: Exception, words: tuple[str, ...]) -> bool:
    """Whether a library's error has one of these words."""
    outside = isinstance(error, (RuntimeError, OSError)) or is_rust(error)
    return outside and any(each.lower() in str(error).lower() for each in words)


def is_rust(error: Exception) -> bool:
    """Whether an error comes from tokenizers or safetensors, which have few kinds."""
    return type(error) is Exception or type(error).__name__ == "SafetensorError"


def is_full(error: Exception) -> bool:
    """Whether an error says that the disk is full."""
    return getattr(error, "errno", None) in FULL or is_said(error, FULL_WORDS)


def in_brackets(text: object) -> str:
    """A detail as it stands behind a statement, where there is one."""
    return f" ({text})" if text else ""


def say(sentence: str) -> None:
    """Print a sentence on standard error, if anybody reads that."""
    try:
        print(sentence, file=sys.stderr, flush=True)
    except OSError:
        pass


def show_any_letter() -> None:
    """Let standard input and output take what their encoding cannot express.

    What cannot be shown is written as its number, what cannot be read becomes a mark.
    """
    for stream, errors in ((sys.stdout, "backslashreplace"), (sys.stdin, "replace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def let_go() -> None:
    """Forget what cannot be written any more, so that Python does not try it again."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
