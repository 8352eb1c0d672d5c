"""`python -m posttrain`: the trained models, from the terminal."""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import nn

from posttrain import stages
from posttrain.chat import grow_vocabulary
from posttrain.cli import report
from posttrain.cli.arguments import TALKING, parse
from posttrain.cli.boundary import guarded
from posttrain.cli.terminal import Chat, converse
from posttrain.data import corpus, datasets
from posttrain.data.datasets import DatasetError, TrainingData
from posttrain.data.labelling import HELP, decide, draw_candidates, refuse_long
from posttrain.data.own import own_data, own_prompts
from posttrain.data.pairs_file import (
    check_place,
    collect_pairs,
    fingerprint,
    write_pairs,
    write_rows,
)
from posttrain.data.synthetic_pairs import draw_pool
from posttrain.evaluate import gold_parts
from posttrain.lab.scorecard import lexicon
from posttrain.real import command as real_command
from posttrain.reward_model import RewardConfig, RewardModel, score_answer
from posttrain.settings import SettingError, settings_from
from posttrain.sft import SFTConfig
from posttrain.show import progress
from posttrain.stages import reward_model, sft_model
from posttrain.tokenizer import END, CharTokenizer

STAGES = {name: stages.STAGES[name] for name in TALKING}


def main(arguments: list[str] | None = None) -> int:
    """Read a command line and run it; return the exit status."""
    return run(parse(arguments))


def run(options: argparse.Namespace) -> int:
    """Run a command; return its exit status."""
    commands = dict(
        chat=chat, compare=compare, pairs=pairs, score=score, train=train, real=real
    )
    command = commands[options.command]
    return guarded(lambda: command(options), real=command is real)


def real(options: argparse.Namespace) -> int:
    """Train a model from Hugging Face."""
    return real_command.real(options, progress)


def data_of(stage: str, options: argparse.Namespace) -> TrainingData:
    """What a stage learns from: the book's data, or the reader's where there is a
    file.
    """
    own = options.data, options.conversations, options.skip_bad
    data, prompts = stages.data_for(stage, *own), getattr(options, "prompts", None)
    return (
        replace(data, prompts=own_prompts(prompts, options.skip_bad))
        if prompts
        else data
    )


def find_or_train(
    stage: str,
    load: Callable,
    options: argparse.Namespace,
    data: TrainingData | None = None,
) -> tuple[object, dict, TrainingData]:
    """A stage's model, trained if there is none, its history, and the data it learned
    from, which is read unless it is given.
    """
    # Look at the reader's files before anything is trained
    data = data or data_of(stage, options)
    own = options.data or options.conversations or getattr(options, "prompts", None)
    chosen = dict(data=data) if own and stage != "base" else {}
    config = settings_of(stage, options)
    if options.model_seed or options.settings:
        chosen["config"] = config
    text = corpus.load()
    try:
        model, history = load(text, progress=progress, **chosen)
        refuse_unusable(model)
    except ValueError as error:
        if not chosen:
            raise
        what = "from this data" if "data" in chosen else "with these settings"
        kind = DatasetError if "data" in chosen else SettingError
        raise kind(f"The {stage} model cannot learn {what}: {error}") from error
    return model, history, data


def refuse_unusable(model: nn.Module) -> None:
    """Raise ValueError for a model that the last step of its training has broken."""
    if not all(torch.isfinite(weight).all() for weight in model.state_dict().values()):
        raise ValueError(
            "its weights are no numbers after the last step: lower the rate"
        )


def settings_of(stage: str, options: argparse.Namespace) -> object:
    """The configuration that the command line asks for. Raises SettingError."""
    kind = stages.CONFIGS[stage]
    return settings_from(kind, options.settings, seed=options.model_seed)


def train(options: argparse.Namespace) -> int:
    """Train a model, or find it; print how that went, and how to talk to it."""
    stage = options.stage
    model, history, data = find_or_train(stage, stages.STAGES[stage], options)
    print(f"The {stage} model has learned from {stages.rows_of(stage, data)}.")
    print(stages.course_of(stage, history))
    for line in before_and_after(stage, model, history, data, options):
        print(line)
    # Say how to use it: a reward model does not talk, it judges
    use = (
        ["score", "Who?", "A friend."]
        if stage == "reward"
        else ["chat", "--stage", stage]
    )
    for flag in ("data", "conversations", "model_seed"):
        value = getattr(options, flag)
        use += [f"--{flag.replace('_', '-')}", str(value)] if value else []
    for setting in options.settings:
        use += ["--set", setting]
    use += ["--skip-bad"] * options.skip_bad
    print("Try it: python -m posttrain", shlex.join(use))
    return 0


def before_and_after(
    stage: str,
    model: object,
    history: dict,
    data: TrainingData,
    options: argparse.Namespace,
) -> Iterator[str]:
    """What there is to be said of a trained model, beside the one it started from."""
    if stage == "base":
        return
    config, text = settings_of(stage, options), corpus.load()
    if stage == "reward":
        yield from report.reward_ranking(model, data)
        return
    if stage == "sft":
        base, _ = stages.base_model(text, progress=progress)
        start = grow_vocabulary(base, CharTokenizer().vocab_size)
    else:
        usual = SFTConfig(seed=config.seed)
        start, _ = sft_model(text, usual, data=data, progress=progress)
    prompts = data.prompts if options.prompts else datasets.heldout_prompts()
    yield from report.policy_report(stage, model, start, history, prompts)
    if stage == "dpo":
        yield from report.dpo_ranking(model, start, data, config.beta)


def pairs(options: argparse.Namespace) -> int:
    """Write preference pairs of a model's own answers, and where they come from."""
    if options.action == "label":
        return label(options)
    check_place(options.out, options.force)
    # Train the models, or find them
    policy, _, data = find_or_train(options.stage, STAGES[options.stage], options)
    text = corpus.load()
    config = RewardConfig(seed=options.model_seed)
    judge, _ = reward_model(text, config, progress=progress)
    words, prompts = lexicon(text), list(dict.fromkeys(data.prompts))
    asked = dict(real_words=words, n=options.samples, temperature=options.temperature)
    # Answer, judge and pair
    found = collect_pairs(
        lambda seed: draw_pool(policy, judge, prompts, seed=seed, **asked),
        options.judge,
        options.seed,
    )
    try:
        made = list(progress(itertools.islice(found, options.n), options.n))
    except ValueError as error:
        raise DatasetError(f"There are not {options.n} pairs: {error}") from error
    rows, sources = ([pair[side] for pair in made] for side in (0, 1))
    settings = ("stage", "model_seed", "judge", "samples", "temperature", "seed")
    about = {name: getattr(options, name) for name in settings} | dict(
        policy_sha256=fingerprint(policy),
        reward_model_sha256=fingerprint(judge),
        scores="of the chosen and of the rejected answer",
        prompts=prompts,
    )
    write_pairs(options.out, rows, sources, about)
    print(f"{len(rows)} pairs, judged by {options.judge}, are in {options.out}.")
    use = ["train", "dpo", "--data", str(options.out)]
    print("Try it: python -m posttrain", shlex.join(use))
    return 0


def label(options: argparse.Namespace) -> int:
    """Ask which of some models' answers are better; write what was decided."""
    # Look at the reader's files before anything is trained
    if not options.out.parent.is_dir():
        raise DatasetError(
            f"{options.out.parent} is no folder: make it first, or choose another --out"
        )
    decided = datasets.preferences(options.out) if options.out.exists() else []
    prompts = prompts_of(options, datasets.training_prompts)
    refuse_long(prompts)
    data = own_data(options.data, skip_bad=options.skip_bad) if options.data else None
    # Train the models, or find them
    text = corpus.load()
    models = {
        seed: sft_model(text, SFTConfig(seed=seed), data=data, progress=progress)[0]
        for seed in range(options.models)
    }
    # Draw the answers, and ask
    candidates = draw_candidates(
        models, prompts, options.samples, options.temperature, options.seed
    )
    print(HELP)
    for rows in decide(prompts, candidates, decided, read_line):
        write_rows(options.out, rows)
        decided = rows
    n = len(decided)
    print(f"\n{n} {'pair is' if n == 1 else 'pairs are'} in {options.out}.")
    if decided:
        use = ["train", "dpo", "--data", str(options.out)]
        print("Try it: python -m posttrain", shlex.join(use))
    return 0


def prompts_of(
    options: argparse.Namespace, otherwise: Callable[[], list[str]]
) -> list[str]:
    """The prompts of the reader's file, or where there is none, others."""
    if options.prompts:
        return own_prompts(options.prompts, options.skip_bad)
    return otherwise()


def read_line(question: str) -> str | None:
    """What is typed at a question, or None at the end of the input."""
    try:
        return input(question)
    except EOFError:
        return None


def cleaned(*given: str) -> list[str]:
    """Texts in the models' alphabet; where that changes one, it is printed."""
    texts = [CharTokenizer().clean(text) for text in given]
    for text, before in zip(texts, given):
        if text != before:
            print(f"(read as: {text})")
    return texts


def score(options: argparse.Namespace) -> int:
    """Print what the reward model and the gold rubric say of an answer."""
    texts = cleaned(options.prompt, options.response)
    if not texts[1].strip():
        print("The response is empty: there is nothing to judge.", file=sys.stderr)
        return 2
    # Train the model, or find it
    judge, _, _ = find_or_train("reward", reward_model, options)
    try:
        value = score_answer(judge, *texts)
    except ValueError as error:
        print(f"This cannot be judged: {error}.", file=sys.stderr)
        return 2
    print(f"reward model  {value:+.2f}   (the SFT model: mean 0, deviation 1)")
    parts = gold_parts(texts[1] + END, lexicon(corpus.load()))
    said = ", ".join(f"{name} {part:+.2f}" for name, part in parts.items() if part)
    print(f"gold rubric   {sum(parts.values()):+.2f}   ({said or 'nothing to say'})")
    return 0


def compare(options: argparse.Namespace) -> int:
    """Print every model's answer to each prompt, and what the two judges say of it."""
    if options.settings:
        raise SettingError(
            "compare asks all models, and no setting is of all: train one with --set, "
            "and talk to it with chat"
        )
    prompts = prompts_of(options, lambda: cleaned(options.prompt))
    # Train the judge, or find it; then, one after the other, the models
    given = compared(options, "reward")
    judge, _, data = find_or_train("reward", reward_model, given)
    models = {
        name: find_or_train(name, stage, compared(options, name), data)[0]
        for name, stage in STAGES.items()
    }
    for prompt in prompts:
        if len(prompts) > 1:
            print(f"\n{prompt}")
        status = compare_once(prompt, models, judge, options)
        if status:
            return status
    return 0


def compared(options: argparse.Namespace, stage: str) -> argparse.Namespace:
    """What a command that asks all models says of one of them.

    Pairs are of no use to the base and the SFT model, and conversations of none to the
    base model; --prompts are what is asked, and not what is practised on.
    """
    given = argparse.Namespace(**vars(options))
    given.prompts = None
    if stage == "base":
        given.data = given.conversations = None
        given.model_seed = 0
    elif stage == "sft":
        given.data, given.conversations = options.conversations, None
    return given


def compare_once(
    prompt: str, models: dict, judge: RewardModel, options: argparse.Namespace
) -> int:
    """Print every model's answer to one prompt; the exit status."""
    if not prompt.strip():
        print("The prompt is empty: there is nothing to ask.", file=sys.stderr)
        return 2
    real_words = lexicon(corpus.load())
    for name, model in models.items():
        conversation = Chat(model, name != "base", options.temperature, options.seed)
        try:
            conversation.add(prompt)
        except ValueError as error:
            print(f"This cannot be asked: {error}.", file=sys.stderr)
            return 2
        answer = "".join(conversation.answer())
        print(f"{name:5} {answer}{'' if conversation.ended else ' ...'}")
        try:
            value = score_answer(judge, prompt, answer)
        except ValueError as error:
            print(f"      (not judged: {error})")
            continue
        gold = sum(gold_parts(answer + END * conversation.ended, real_words).values())
        print(f"      reward model {value:+.2f}, gold rubric {gold:+.2f}")
    return 0


def chat(options: argparse.Namespace) -> int:
    """Talk to a model."""
    # Train the model, or find it
    model, _, _ = find_or_train(options.stage, STAGES[options.stage], options)
    conversation = Chat(
        model, options.stage != "base", options.temperature, options.seed
    )
    print(f"The {options.stage} model. /help lists the commands; Ctrl-C leaves.")
    converse(conversation)
    return 0
