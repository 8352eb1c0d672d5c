"""`python -m posttrain`: the trained models, from the terminal."""

from __future__ import annotations

import argparse
import itertools
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from posttrain import stages
from posttrain.cli.terminal import HELP, Chat, converse
from posttrain.data import corpus
from posttrain.data.datasets import DatasetError, TrainingData
from posttrain.data.pairs_file import check_place, collect_pairs, fingerprint, write_pairs
from posttrain.data.synthetic_pairs import draw_pool
from posttrain.evaluate import gold_parts
from posttrain.lab.scorecard import lexicon
from posttrain.real import command as real_command
from posttrain.real.model import ModelError
from posttrain.reward_model import RewardConfig, score_answer
from posttrain.show import progress
from posttrain.stages import reward_model
from posttrain.tokenizer import END, CharTokenizer

STAGES = {name: load for name, load in stages.STAGES.items() if name != "reward"}  # that talk

TAKES_TIME = "The first time all models that it needs are trained, which takes minutes."


def temperature(text: str) -> float:
    """A temperature from the command line."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 100")
    return value


def seed(text: str) -> int:
    """A seed from the command line, of a size that PyTorch takes."""
    value = int(text)
    if not 0 <= value < 2**64:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to 2^64 - 1")
    return value


def at_least(least: int) -> Callable[[str], int]:
    """What reads a whole number from the command line, not below `least`."""

    def whole(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is too few: use {least} or more")
        return value

    return whole


def add_data(command: argparse.ArgumentParser, seed_flag: str) -> None:
    """The arguments that say what the model has been trained on."""
    command.add_argument(
        "--data", type=Path, metavar="FILE",
        help="conversations (for sft) or preference pairs of your own, a JSON object per line",
    )  # fmt: skip
    command.add_argument(
        "--conversations", type=Path, metavar="FILE",
        help="with pairs: the conversations of the SFT model that the training starts from",
    )  # fmt: skip
    command.add_argument(
        seed_flag, dest="model_seed", type=seed, default=0, metavar="N",
        help="the seed of the training (default: 0)",
    )  # fmt: skip


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser("python -m posttrain", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    chat = commands.add_parser(
        "chat",
        help="talk to a model",
        description="Talk to a model. " + TAKES_TIME,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chat.add_argument("--stage", choices=STAGES, default="sft", help="which model")
    add_data(chat, "--model-seed")
    train = commands.add_parser(
        "train",
        help="train a model, on your own data",
        description="Train a model, or find it, on the book's data or your own. " + TAKES_TIME,
    )
    train.add_argument("stage", choices=stages.STAGES, help="which model")
    add_data(train, "--seed")
    compare = commands.add_parser(
        "compare",
        help="ask all models the same",
        description="Ask every model the same, and have its answer judged. " + TAKES_TIME,
    )
    compare.add_argument("prompt", help="what to ask, in quotation marks")
    for command in (chat, compare):
        command.add_argument("--temperature", type=temperature, default=0.8)
        command.add_argument("--seed", type=seed, help="the same answers every time")
    score = commands.add_parser(
        "score",
        help="judge an answer",
        description="Judge an answer, by the reward model and the gold rubric. " + TAKES_TIME,
    )
    score.add_argument("prompt", help="what was asked, in quotation marks")
    score.add_argument("response", help="what was answered, in quotation marks")
    add_data(score, "--model-seed")
    add_pairs(commands)
    real_command.add_real(commands, seed)
    return parser.parse_args(arguments)


def add_pairs(commands) -> None:
    """The command that writes preference pairs."""
    pairs = commands.add_parser(
        "pairs",
        help="make preference pairs of a model's own answers",
        description="Answer the training prompts, again and again, judge the answers, and "
        "write the best and the worst of each few as pairs to train on. " + TAKES_TIME,
    )
    pairs.add_argument("--n", type=at_least(1), default=200, help="how many (default: 200)")
    pairs.add_argument(
        "--judge", choices=("reward", "gold"), default="reward",
        help="the reward model, or the gold rubric, which knows better than any judge that "
        "one could buy (default: reward)",
    )  # fmt: skip
    pairs.add_argument(
        "--samples", type=at_least(2), default=4, metavar="N",
        help="answers to each prompt, of which two make a pair (default: 4)",
    )  # fmt: skip
    pairs.add_argument("--temperature", type=temperature, default=0.8)
    pairs.add_argument("--seed", type=seed, default=0, help="of the answers (default: 0)")
    pairs.add_argument("--stage", choices=("sft", "ppo", "dpo"), default="sft",
                       help="which model answers (default: sft)")  # fmt: skip
    pairs.add_argument("--out", type=Path, default=Path("pairs.jsonl"), metavar="FILE")
    pairs.add_argument("--force", action="store_true", help="replace files that exist")
    add_data(pairs, "--model-seed")


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    options = parse(arguments)
    try:
        commands = dict(
            chat=chat, compare=compare, pairs=pairs, score=score, train=train, real=real
        )
        return commands[options.command](options)
    except (DatasetError, corpus.CorpusError, ModelError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        kept = "Stages that were finished are kept."
        if options.command == "real":
            kept = "The last checkpoint is kept: --resume goes on from it."
        print(f"\nStopped. {kept}", file=sys.stderr)
        return 130


def real(options: argparse.Namespace) -> int:
    """Train a model from Hugging Face."""
    return real_command.real(options, progress)


def find_or_train(
    stage: str, load: Callable, options: argparse.Namespace
) -> tuple[object, dict, TrainingData]:
    """A stage's model, trained if there is none, its history, and the data it learned from."""
    # Look at the reader's files before anything is trained
    data = stages.data_for(stage, options.data, options.conversations)
    chosen = dict(data=data) if options.data or options.conversations else {}
    if options.model_seed:
        chosen["config"] = stages.CONFIGS[stage](seed=options.model_seed)
    text = corpus.load()
    try:
        return *load(text, progress=progress, **chosen), data
    except ValueError as error:
        if "data" not in chosen:
            raise
        raise DatasetError(f"The {stage} model cannot learn from this data: {error}") from error


def train(options: argparse.Namespace) -> int:
    """Train a model, or find it; print how that went, and how to talk to it."""
    stage = options.stage
    _, history, data = find_or_train(stage, stages.STAGES[stage], options)
    print(f"The {stage} model has learned from {stages.rows_of(stage, data)}.")
    print(stages.course_of(stage, history))
    # Say how to use it: a reward model does not talk, it judges
    use = ["score", "Who?", "A friend."] if stage == "reward" else ["chat", "--stage", stage]
    for flag in ("data", "conversations", "model_seed"):
        value = getattr(options, flag)
        use += [f"--{flag.replace('_', '-')}", str(value)] if value else []
    print("Try it: python -m posttrain", shlex.join(use))
    return 0


def pairs(options: argparse.Namespace) -> int:
    """Write preference pairs of a model's own answers, and where they come from."""
    check_place(options.out, options.force)
    # Train the models, or find them
    policy, _, data = find_or_train(options.stage, STAGES[options.stage], options)
    text = corpus.load()
    judge, _ = reward_model(text, RewardConfig(seed=options.model_seed), progress)
    words, prompts = lexicon(text), list(dict.fromkeys(data.prompts))
    asked = dict(real_words=words, n=options.samples, temperature=options.temperature)
    # Answer, judge and pair
    found = collect_pairs(
        lambda seed: draw_pool(policy, judge, prompts, seed=seed, **asked),
        options.judge, options.seed,
    )  # fmt: skip
    try:
        made = list(progress(itertools.islice(found, options.n), options.n))
    except ValueError as error:
        raise DatasetError(f"There are not {options.n} pairs: {error}") from error
    rows, sources = ([pair[side] for pair in made] for side in (0, 1))
    settings = ("stage", "model_seed", "judge", "samples", "temperature", "seed")
    about = {name: getattr(options, name) for name in settings} | dict(
        policy_sha256=fingerprint(policy), reward_model_sha256=fingerprint(judge),
        scores="of the chosen and of the rejected answer", prompts=prompts,
    )  # fmt: skip
    write_pairs(options.out, rows, sources, about)
    print(f"{len(rows)} pairs, judged by {options.judge}, are in {options.out}.")
    use = ["train", "dpo", "--data", str(options.out)]
    print("Try it: python -m posttrain", shlex.join(use))
    return 0


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
    """Print every model's answer to one prompt, and what the two judges say of it."""
    (prompt,) = cleaned(options.prompt)
    if not prompt.strip():
        print("The prompt is empty: there is nothing to ask.", file=sys.stderr)
        return 2
    # Train the judge, or find it; then, one after the other, the models
    text = corpus.load()
    judge, _ = reward_model(text, progress=progress)
    real_words = lexicon(text)
    for name, stage in STAGES.items():
        model, _ = stage(text, progress=progress)
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
    conversation = Chat(model, options.stage != "base", options.temperature, options.seed)
    print(f"The {options.stage} model. /help lists the commands; Ctrl-C leaves.")
    converse(conversation)
    return 0

