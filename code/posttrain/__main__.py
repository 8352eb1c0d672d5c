"""`python -m posttrain`: the trained models, from the terminal."""

from __future__ import annotations

import argparse
import sys

from posttrain.data import corpus
from posttrain.dpo import dpo_model
from posttrain.evaluate import gold_parts, lexicon
from posttrain.notebook import progress
from posttrain.ppo import ppo_model
from posttrain.pretrain import base_model
from posttrain.reward_model import reward_model, score_answer
from posttrain.sft import sft_model
from posttrain.terminal import HELP, Chat, converse
from posttrain.tokenizer import END, CharTokenizer

STAGES = {"base": base_model, "sft": sft_model, "ppo": ppo_model, "dpo": dpo_model}


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
    compare = commands.add_parser(
        "compare",
        help="ask all models the same",
        description="Ask every model the same, and have its answer judged.",
    )
    compare.add_argument("prompt", help="what to ask, in quotation marks")
    for command in (chat, compare):
        command.add_argument("--temperature", type=temperature, default=0.8)
        command.add_argument("--seed", type=seed, help="the same answers every time")
    score = commands.add_parser(
        "score",
        help="judge an answer",
        description="Judge an answer, by the reward model and by the gold rubric.",
    )
    score.add_argument("prompt", help="what was asked, in quotation marks")
    score.add_argument("response", help="what was answered, in quotation marks")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; return its exit status."""
    options = parse(arguments)
    try:
        return dict(chat=chat, compare=compare, score=score)[options.command](options)
    except KeyboardInterrupt:
        print("\nStopped. Stages that were finished are kept.", file=sys.stderr)
        return 130


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
    text = corpus.load()
    judge, _ = reward_model(text, progress=progress)
    try:
        value = score_answer(judge, *texts)
    except ValueError as error:
        print(f"This cannot be judged: {error}.", file=sys.stderr)
        return 2
    print(f"reward model  {value:+.2f}   (the SFT model: mean 0, deviation 1)")
    parts = gold_parts(texts[1] + END, lexicon(text))
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
    model, _ = STAGES[options.stage](corpus.load(), progress=progress)
    conversation = Chat(model, options.stage != "base", options.temperature, options.seed)
    print(f"The {options.stage} model. /help lists the commands; Ctrl-C leaves.")
    converse(conversation)
    return 0


if __name__ == "__main__":
    sys.exit(main())
