"""`python -m posttrain`: the trained models, from the terminal."""

from __future__ import annotations

import argparse
import sys

from posttrain.data import corpus
from posttrain.notebook import progress
from posttrain.pretrain import base_model
from posttrain.sft import sft_model
from posttrain.terminal import HELP, Chat, converse

STAGES = {"base": base_model, "sft": sft_model}


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


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser("python -m posttrain", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    chat = commands.add_parser(
        "chat",
        help="talk to a model",
        description="Talk to a model. The first time it is trained, which takes minutes.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    chat.add_argument("--stage", choices=STAGES, default="sft", help="which model")
    chat.add_argument("--temperature", type=temperature, default=0.8)
    chat.add_argument("--seed", type=seed, help="the same answers every time")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    options = parse(arguments)
    try:
        # Train the model, or find it
        model, _ = STAGES[options.stage](corpus.load(), progress=progress)
    except KeyboardInterrupt:
        print("\nStopped. Stages that were finished are kept.", file=sys.stderr)
        return 130
    chat = Chat(model, options.stage != "base", options.temperature, options.seed)
    print(f"The {options.stage} model. /help lists the commands; Ctrl-C leaves.")
    converse(chat)
    return 0


if __name__ == "__main__":
    sys.exit(main())
