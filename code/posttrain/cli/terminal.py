"""A chat in the terminal: streamed answers, a memory of the turns, a few commands."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TextIO

import torch

from posttrain.chat import Message, render_prompt
from posttrain.cli.arguments import HELP
from posttrain.gpt import GPT
from posttrain.sampling import sample_steps
from posttrain.tokenizer import CharTokenizer

MAX_NEW_TOKENS = 120


class Chat:
    """A conversation with one model, as far as its context reaches back.

    chat_format: whether the model knows the chat template; a base model is given plain
    lines.
    """

    def __init__(
        self,
        model: GPT,
        chat_format: bool,
        temperature: float = 0.8,
        seed: int | None = None,
    ):
        self.model, self.chat_format, self.temperature = model, chat_format, temperature
        self.tokenizer = CharTokenizer()
        self.messages: list[Message] = []
        self.ended = False  # whether the last answer came to its <|end|>
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)

    def prompt(self) -> list[int]:
        """The token ids that the model continues."""
        if self.chat_format:
            return render_prompt(self.messages, self.tokenizer)
        return self.tokenizer.encode(
            "".join(m["content"] + "\n" for m in self.messages)
        )

    def add(self, text: str) -> int:
        """Append the user's message; return how many earlier ones had to be forgotten
        for it.

        Raises ValueError, and changes nothing, when the message alone is too long.
        """
        before = self.messages
        self.messages = [*before, dict(role="user", content=text)]
        # Forget the oldest turns until prompt and answer fit into the context
        longest = self.model.config.context - MAX_NEW_TOKENS
        while len(self.prompt()) > longest and len(self.messages) > 1:
            self.messages = self.messages[2:]
        if len(self.prompt()) > longest:
            excess, self.messages = len(self.prompt()) - longest, before
            raise ValueError(
                f"that is {excess} characters more than this model can read: say it "
                "shorter"
            )
        return len(before) + 1 - len(self.messages)

    def answer(self) -> Iterator[str]:
        """Yield the assistant's next message piece by piece, then remember it."""
        tokenizer, pieces = self.tokenizer, []
        # Take 0 for what is next to 0: logits divided by it would leave the range of
        # floats
        temperature = self.temperature if self.temperature >= 1e-3 else 0.0
        steps = sample_steps(
            self.model,
            [self.prompt()],
            MAX_NEW_TOKENS,
            generator=self.generator,
            temperature=temperature,
            stop=tokenizer.end if self.chat_format else None,
        )
        for token, _, _ in steps:
            # End at <|end|>, and at any other special token: what follows is nobody's
            # turn
            self.ended = int(token) == tokenizer.end
            if int(token) >= len(tokenizer.alphabet):
                break
            pieces.append(tokenizer.decode(token))
            yield pieces[-1]
        self.messages.append(dict(role="assistant", content="".join(pieces)))


def command(chat: Chat, line: str) -> str | None:
    """Carry out a line that starts with a slash; return what to say, or None to
    leave.
    """
    name, _, value = line[1:].partition(" ")
    if name in ("quit", "exit"):
        return None
    if name == "reset":
        chat.messages = []
        return "(forgotten)"
    if name == "temperature":
        try:
            temperature = float(value)
        except ValueError:
            temperature = -1.0
        # Refuse what is not a number from 0 up: "nan" fails this test as well
        if not 0 <= temperature <= 100:
            return (
                f"(/temperature takes a number from 0 to 100, now {chat.temperature:g})"
            )
        chat.temperature = temperature
        return f"(temperature {temperature:g})"
    named = name.encode("ascii", "replace").decode()
    return HELP if name == "help" else f"(there is no /{named})\n{HELP}"


def lines_of(source: TextIO) -> Iterator[str]:
    """What the user types, line by line; at a keyboard, with line editing."""
    if not source.isatty():
        yield from source
        return
    try:
        import readline  # noqa: F401 - to give input() a history
    except ImportError:
        pass
    while True:
        try:
            yield input("you: ")
        except EOFError:
            print()
            return


def converse(chat: Chat, source: TextIO | None = None) -> None:
    """Talk until the input ends, /quit, Ctrl-C, or nobody reads the answers any
    more.
    """
    source = source or sys.stdin
    # Take whatever bytes come: what is not text becomes a question mark in clean()
    if hasattr(source, "reconfigure"):
        source.reconfigure(errors="replace")
    try:
        for line in lines_of(source):
            line = line.strip()
            if line.startswith("/"):
                said = command(chat, line)
                if said is None:
                    return
                print(said, flush=True)
            elif line:
                speak(chat, line)
    except KeyboardInterrupt:
        print()
    except BrokenPipeError:
        # Python would try once more to write what is left, and complain
        sys.stdout = None


def speak(chat: Chat, line: str) -> None:
    """Put one line to the model, and print its answer as it comes."""
    text = chat.tokenizer.clean(line)
    if text != line:
        print(f"(read as: {text})")
    try:
        forgotten = chat.add(text)
    except ValueError as error:
        print(f"({error})", flush=True)
        return
    if forgotten:
        print(
            f"(the first {forgotten} messages no longer fit the context and are "
            "forgotten)"
        )
    print("model: ", end="", flush=True)
    for piece in chat.answer():
        print(piece, end="", flush=True)
    print(flush=True)
