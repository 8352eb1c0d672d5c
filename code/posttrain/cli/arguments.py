"""The command line of `python -m posttrain`, checked before PyTorch is imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from posttrain.real.command import add_real

STAGES = ("base", "sft", "reward", "ppo", "dpo")  # `stages.STAGES`
TALKING = tuple(name for name in STAGES if name != "reward")
TAKES_TIME = "The first time all models that it needs are trained, which takes minutes."
HELP = """\
/reset            forget the conversation so far
/temperature 0.5  how daring it is: 0 is always the likeliest token, 1 the model's odds
/help             these lines
/quit             leave (so do Ctrl-C and Ctrl-D)"""


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
        raise argparse.ArgumentTypeError(
            f"{text} is not a whole number from 0 to 2^64 - 1"
        )
    return value


def no_less_than(least: int) -> Callable[[str], int]:
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
        "--data",
        type=Path,
        metavar="FILE",
        help="conversations (for sft) or preference pairs of your own, a JSON object "
        "per line; the forms of OpenAI, TRL, ShareGPT and Alpaca are read as well",
    )
    add_skip_bad(command)
    command.add_argument(
        "--conversations",
        type=Path,
        metavar="FILE",
        help="with pairs: the conversations of the SFT model that the training starts "
        "from",
    )
    command.add_argument(
        "--set",
        dest="settings",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a setting of the training, as in --set beta=0.1; more than once for more",
    )
    command.add_argument(
        seed_flag,
        dest="model_seed",
        type=seed,
        default=0,
        metavar="N",
        help="the seed of the training (default: 0)",
    )


def add_skip_bad(command: argparse.ArgumentParser) -> None:
    """The argument that lets a data file have rows that cannot be used."""
    command.add_argument(
        "--skip-bad",
        action="store_true",
        help="leave out rows that cannot be used, and say how many there are",
    )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        "python -m posttrain", description="The trained models, from the terminal."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    chat = commands.add_parser(
        "chat",
        help="talk to a model",
        description="Talk to a model. " + TAKES_TIME,
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chat.add_argument("--stage", choices=TALKING, default="sft", help="which model")
    add_data(chat, "--model-seed")
    train = commands.add_parser(
        "train",
        help="train a model, on your own data",
        description="Train a model, or find it, on the book's data or your own. "
        + TAKES_TIME,
    )
    train.add_argument("stage", choices=STAGES, help="which model")
    add_data(train, "--seed")
    add_prompts(train, "what ppo practises on, and what is asked before and after")
    compare = commands.add_parser(
        "compare",
        help="ask all models the same",
        description="Ask every model the same, and have its answer judged. "
        + TAKES_TIME,
    )
    compare.add_argument("prompt", nargs="?", help="what to ask, in quotation marks")
    add_prompts(compare, "what to ask, in the place of a prompt")
    add_data(compare, "--model-seed")
    for command in (chat, compare):
        command.add_argument("--temperature", type=temperature, default=0.8)
        command.add_argument("--seed", type=seed, help="the same answers every time")
    add_score(commands)
    add_pairs(commands)
    add_skip_bad(add_real(commands, seed))
    options = parser.parse_args(arguments)
    if options.command == "compare" and bool(options.prompt) == bool(options.prompts):
        compare.error("give a prompt in quotation marks, or a file with --prompts")
    return options


def add_score(commands) -> None:
    """The command that judges an answer."""
    score = commands.add_parser(
        "score",
        help="judge an answer",
        description="Judge an answer, by the reward model and the gold rubric. "
        + TAKES_TIME,
    )
    score.add_argument("prompt", help="what was asked, in quotation marks")
    score.add_argument("response", help="what was answered, in quotation marks")
    add_data(score, "--model-seed")


def add_prompts(command: argparse.ArgumentParser, what: str) -> None:
    """The argument that names a file of prompts."""
    command.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help=f"{what}: a JSON object with a prompt per line",
    )


def add_pairs(commands) -> None:
    """The command that writes preference pairs."""
    pairs = commands.add_parser(
        "pairs",
        help="make preference pairs of a model's own answers",
        description="Answer the training prompts, again and again, judge the answers, "
        "and "
        "write the best and the worst of each few as pairs to train on. " + TAKES_TIME,
    )
    pairs.add_argument(
        "--n", type=no_less_than(1), default=200, help="how many (default: 200)"
    )
    pairs.add_argument(
        "--judge",
        choices=("reward", "gold"),
        default="reward",
        help="the reward model, or the gold rubric, which knows better than any judge "
        "that "
        "one could buy (default: reward)",
    )
    pairs.add_argument(
        "--samples",
        type=no_less_than(2),
        default=4,
        metavar="N",
        help="answers to each prompt, of which two make a pair (default: 4)",
    )
    pairs.add_argument("--temperature", type=temperature, default=0.8)
    pairs.add_argument(
        "--seed", type=seed, default=0, help="of the answers (default: 0)"
    )
    pairs.add_argument(
        "--stage",
        choices=("sft", "ppo", "dpo"),
        default="sft",
        help="which model answers (default: sft)",
    )
    pairs.add_argument("--out", type=Path, default=Path("pairs.jsonl"), metavar="FILE")
    pairs.add_argument("--force", action="store_true", help="replace files that exist")
    add_data(pairs, "--model-seed")
    add_label(pairs.add_subparsers(dest="action", metavar="label"))


def add_label(actions) -> None:
    """The command that asks a reader which of two answers is better."""
    label = actions.add_parser(
        "label",
        help="decide yourself which answers are better",
        description="Draw answers of SFT models of several seeds, ask you which is "
        "better and why, and write your decisions as pairs to train on, each with "
        "the draws that it comes from. What has been decided is kept: the same command "
        "goes on from there. " + TAKES_TIME,
    )
    label.add_argument("--out", type=Path, required=True, metavar="FILE")
    label.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="what to ask, a JSON object with a prompt per line (default: the "
        "prompts that policies practise on)",
    )
    label.add_argument(
        "--models",
        type=no_less_than(1),
        default=3,
        metavar="N",
        help="how many SFT models answer, of seeds 0 to N - 1 (default: 3)",
    )
    label.add_argument(
        "--samples",
        type=no_less_than(1),
        default=4,
        metavar="N",
        help="answers of each model to each prompt (default: 4)",
    )
    label.add_argument("--temperature", type=temperature, default=0.8)
    label.add_argument(
        "--seed", type=seed, default=0, help="of the answers (default: 0)"
    )
    label.add_argument(
        "--data",
        type=Path,
        metavar="FILE",
        help="conversations of your own that the models are fine-tuned on",
    )
    add_skip_bad(label)
