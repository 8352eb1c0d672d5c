"""`python -m posttrain real`: any of the four stages on a real model, from the
terminal.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import fields
from pathlib import Path

DESCRIPTION = (
    "Fine-tune a Hugging Face model with the book's own code: supervised, a reward "
    "model, DPO "
    "or PPO. The result is a folder that peft (or, with --full, transformers) loads."
)
NUMBERS = {  # flag, type, default, what it says; the names are RealConfig's and Setup's
    "steps": (int, 100, "optimiser steps; for ppo, rounds"),
    "batch-size": (int, 8, "rows per step"),
    "micro-batch-size": (
        int,
        2,
        "rows per forward pass; gradients add up (ppo: a step each)",
    ),
    "lr": (float, 2e-4, "the learning rate, falling in a straight line to 0"),
    "max-length": (int, 1024, "the longest row, in tokens"),
    "max-new-tokens": (int, 128, "ppo: the longest answer"),
    "temperature": (float, 1.0, "ppo: at which answers are drawn"),
    "beta": (float, 0.1, "dpo and ppo: the weight of a nat away from the reference"),
    "nll-weight": (float, 0.0, "dpo: the weight of the chosen answers' own loss"),
    "label-smoothing": (float, 0.0, "dpo: the share of labels taken to be wrong"),
    "save-every": (int, 50, "steps between checkpoints"),
    "threads": (int, 0, "on the processor; 0: chosen by the model's width"),
}


def add_real(commands: argparse._SubParsersAction, seed) -> argparse.ArgumentParser:
    """Add the command to the command line; return it. seed: the type of a seed."""
    real = commands.add_parser(
        "real", help="train a model from Hugging Face", description=DESCRIPTION
    )
    real.add_argument("--model", required=True, help="a folder, or a name on the hub")
    real.add_argument("--stage", required=True, choices=("sft", "reward", "dpo", "ppo"))
    real.add_argument(
        "--data", default="", metavar="FILE", help="rows in JSON: see the book"
    )
    real.add_argument(
        "--out", default="", metavar="FOLDER", help="where the result goes"
    )
    how_much = real.add_mutually_exclusive_group()
    how_much.add_argument("--lora-rank", dest="rank", type=int, default=8, metavar="N")
    how_much.add_argument(
        "--full",
        dest="rank",
        action="store_const",
        const=0,
        help="train all weights, without adapters",
    )
    real.add_argument(
        "--qlora", dest="nf4", action="store_true", help="weights in four bits"
    )
    real.add_argument("--bf16", action="store_true", help="compute in bfloat16")
    real.add_argument(
        "--checkpointing", action="store_true", help="less memory, more time"
    )
    real.add_argument(
        "--device", default="auto", help="auto (default), cuda, mps or cpu"
    )
    real.add_argument(
        "--reward-model", default="", metavar="FOLDER", help="for ppo: the judge"
    )
    real.add_argument(
        "--replay",
        default="",
        metavar="FILE",
        help="for sft: plain text to rehearse beside the conversations",
    )
    for name, (kind, default, text) in NUMBERS.items():
        real.add_argument(
            f"--{name}",
            type=kind,
            default=default,
            metavar="N",
            help=f"{text} (default: {default})",
        )
    real.add_argument("--seed", type=seed, default=0, metavar="N")
    real.add_argument("--resume", action="store_true", help="go on with a run cut off")
    real.add_argument(
        "--dry-run", action="store_true", help="only say what memory it takes"
    )
    return real


def real(options: argparse.Namespace, progress) -> int:
    """Run the command. Raises ModelError for whatever cannot work, in one sentence."""
    from posttrain.real.model import ModelError

    try:
        return begin(options, progress)
    except UnicodeError:
        raise
    except ValueError as error:
        raise ModelError(str(error)) from error


def begin(options: argparse.Namespace, progress) -> int:
    """Say what memory the run takes, and unless it is a dry one, train; the imports are
    here.
    """
    from posttrain.real.threads import load_before, threads_set

    load = load_before()
    from posttrain.real.model import ModelError
    from posttrain.real.run import Setup, run
    from posttrain.real.training import RealConfig

    config = from_options(RealConfig, options)
    if options.dry_run:
        print(needed(options))
        return 0
    if not options.data or not options.out:
        raise ModelError("give --data FILE and --out FOLDER (or --dry-run)")
    setup = from_options(Setup, options)
    print(needed(options))
    with threads_set(threads_for(options, load)):
        history = run(setup, config, options.resume, progress)
    print(course(history))
    print(f"The result is in {options.out}. {use_of(options)}")
    return 0


def threads_for(options: argparse.Namespace, load: float) -> int:
    """The run's threads; where they would wait for others, a line on standard error.

    load: the cores that were busy before. Raises ModelError for fewer than none.
    """
    from posttrain.real.model import ModelError, choose_device, load_config
    from posttrain.real.run import base_of
    from posttrain.real.threads import NARROW, chosen_threads, crowded

    if options.threads < 0:
        raise ModelError(f"threads is {options.threads}: use at least 0")
    try:
        on_processor = choose_device(options.device).type == "cpu"
        text = load_config(base_of(options.model)).get_text_config()
    except ModelError:  # the run itself will say so
        return options.threads or 1
    width = getattr(text, "hidden_size", NARROW)
    threads = chosen_threads(options.threads, width)
    note = crowded(load, threads, os.cpu_count() or 1) if on_processor else ""
    if note:
        print(note, file=sys.stderr)
    return threads


def from_options(kind: type, options: argparse.Namespace):
    """A dataclass whose fields are those options that have their names."""
    given = vars(options)
    return kind(**{f.name: given[f.name] for f in fields(kind) if f.name in given})


def needed(options: argparse.Namespace) -> str:
    """What the run takes in memory, in a line. Only the model's configuration is
    read.
    """
    from posttrain.real.memory import Setting, architecture_of, describe, stage_memory
    from posttrain.real.model import ModelError, load_config
    from posttrain.real.run import base_of, refuse_broken_model

    refuse_broken_model(options.model, weights=not options.dry_run)
    try:
        shape = architecture_of(load_config(base_of(options.model)))
    except ModelError as error:
        if options.dry_run:
            raise
        return f"({error})"
    rows = options.micro_batch_size * (2 if options.stage in ("reward", "dpo") else 1)
    half = options.bf16 and options.rank
    setting = Setting(
        rows,
        options.max_length,
        options.rank,
        nf4=options.nf4,
        weight_bytes=2 if half else 4,
        bf16=options.bf16,
        checkpointing=options.checkpointing,
    )
    parts = stage_memory(options.stage, shape, setting)
    size = f"{rows} rows of {options.max_length} tokens at once"
    return f"Memory, with {size}: {describe(parts)}"


def course(history: list[dict]) -> str:
    """How a run went, from its first step to its last."""
    first, last = history[0], history[-1]
    key = "score" if "score" in first else "loss"
    return f"{len(history)} steps: {key} {first[key]:.4f} -> {last[key]:.4f}"


def use_of(options: argparse.Namespace) -> str:
    """What can be done with the result."""
    judge = f"Use it: --stage ppo --reward-model {options.out}. "
    said = judge if options.stage == "reward" else ""
    return f"{said}Load it elsewhere:\n" + "\n".join(loading(options))


def loading(options: argparse.Namespace) -> list[str]:
    """The lines of Python that load the result with transformers and peft, as `model`.

    An adapter stands on all that came before it, so the earlier ones are merged first.
    A reward model's stand on a language model that is saved and opened once more, with
    a head. A language model is told where its answers end.
    """
    from posttrain.real.peft_settings import chain_of

    out, scores = str(Path(options.out)), options.stage == "reward"
    stop = [] if scores else [stopping(out)]
    language, head = "AutoModelForCausalLM", "AutoModelForSequenceClassification"
    score = f"model = {head}.from_pretrained(%r, num_labels=1)"
    if not options.rank:
        whole = f"model = {language}.from_pretrained({out!r})"
        return [score % out if scores else whole, *stop]
    name, *earlier = chain_of(options.model)
    resized = grown(name, out)
    if scores and not earlier:
        lines = [score % name, *resized]
    else:
        lines = [f"model = {language}.from_pretrained({name!r})", *resized]
    lines += [
        f"model = PeftModel.from_pretrained(model, {each!r}).merge_and_unload()"
        for each in earlier
    ]
    if scores and earlier:
        merged = f"{out}-base"
        lines += [f"model.save_pretrained({merged!r})", score % merged]
    return [*lines, f"model = PeftModel.from_pretrained(model, {out!r})", *stop]


def stopping(out: str) -> str:
    """The line that tells a loaded model at which token its answers end."""
    from posttrain.real.model import fetch, library

    tokenizer = fetch(library().AutoTokenizer, out)
    end, text = tokenizer.eos_token_id, tokenizer.eos_token
    return f"model.generation_config.eos_token_id = {end}  # {text}"


def grown(base: str, out: str) -> list[str]:
    """The lines that give a base model the rows of a result's tokens, where it lacks
    some.
    """
    from posttrain.real.model import fetch, library, load_config

    size = len(fetch(library().AutoTokenizer, out))
    if size <= load_config(base).vocab_size:
        return []
    return [f"model.resize_token_embeddings({size})  # len(tokenizer)"]
