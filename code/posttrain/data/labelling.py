"""`python -m posttrain pairs label`: answers that models gave, and what a reader
prefers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from posttrain.chat import ask, render_question
from posttrain.data.datasets import ANSWER_TOKENS, DatasetError, clip
from posttrain.evaluate import answered
from posttrain.gpt import GPT, GPTConfig
from posttrain.tokenizer import END, SPECIAL_TOKENS, CharTokenizer

# Why one answer is preferred, by the letter that a reader types
GROUNDS = dict(m="manner", p="to the point", f="finished")
HELP = (
    "Type the better answer's number, the worse one's, and why: m its manner, "
    "p it is to the point, f it is finished. For example: 2 1 m\n"
    "Enter alone leaves a prompt out; u takes back the last decision; q stops."
)


class UnreadableDecision(ValueError):
    """What a reader typed is no decision: the message says what is wrong with it."""


@dataclass(frozen=True)
class Candidate:
    """An answer that a model gave, and the draw that it comes from.

    text: without its end; ended: whether it had one. The draw-th answer of the model of
    this seed to this prompt, counted from 0.
    """

    text: str
    ended: bool
    model_seed: int
    draw: int

    @property
    def source(self) -> dict[str, int]:
        """The draw as a row of a preferences file has it."""
        return dict(model_seed=self.model_seed, draw=self.draw)


def draw_candidates(
    models: Mapping[int, GPT],
    prompts: Sequence[str],
    n: int,
    temperature: float = 0.8,
    seed: int = 0,
) -> list[list[Candidate]]:
    """n answers of each model to each prompt, by prompt; every text once.

    models: by the seed that they were trained with. Left out is what a file cannot
    hold: no words, or a special token before the end.
    """
    found: list[dict[str, Candidate]] = [{} for _ in prompts]
    for model_seed, model in models.items():
        asked = [prompt for prompt in prompts for _ in range(n)]
        generator = torch.Generator().manual_seed(seed)
        answers = ask(
            model,
            asked,
            generator=generator,
            temperature=temperature,
            max_new_tokens=ANSWER_TOKENS,
        )
        for i, answer in enumerate(answers):
            text, ended = answer.removesuffix(END), answered(answer)
            if text.strip() and not any(token in text for token in SPECIAL_TOKENS):
                known = found[i // n]
                known.setdefault(text, Candidate(text, ended, model_seed, i % n))
    return [list(texts.values()) for texts in found]


def refuse_long(prompts: Sequence[str]) -> None:
    """Raise DatasetError, naming the first, for prompts that leave an answer no
    room.
    """
    for prompt in prompts:
        n = len(render_question(prompt, CharTokenizer()))
        if n > GPTConfig.context - ANSWER_TOKENS:
            raise DatasetError(
                f"the prompt {clip(prompt)!r} has {n} tokens and leaves no room for "
                f"{ANSWER_TOKENS} of an answer in {GPTConfig.context}: shorten it"
            )


def read_decision(
    typed: str, candidates: Sequence[Candidate]
) -> tuple[Candidate, Candidate, str]:
    """The chosen candidate, the rejected one, and the ground, from a line like `2 1 m`.

    Raises UnreadableDecision for a line of another form, and for a chosen answer that
    never came to its end: in a file it would have one.
    """
    words = typed.split()
    if len(words) != 3 or not (words[0] + words[1]).isdecimal():
        raise UnreadableDecision(f"{typed.strip()!r} is not two numbers and a letter")
    places, letter = [int(word) for word in words[:2]], words[2].lower()
    if not all(1 <= place <= len(candidates) for place in places):
        raise UnreadableDecision(f"there are answers 1 to {len(candidates)}")
    if places[0] == places[1]:
        raise UnreadableDecision("an answer cannot be better than itself")
    if letter not in GROUNDS:
        raise UnreadableDecision(f"{words[2]!r} is none of {', '.join(GROUNDS)}")
    chosen, rejected = (candidates[place - 1] for place in places)
    if not chosen.ended:
        raise UnreadableDecision(f"answer {places[0]} breaks off: it cannot be chosen")
    return chosen, rejected, GROUNDS[letter]


def pair_row(
    prompt: str, chosen: Candidate, rejected: Candidate, ground: str, number: int
) -> dict:
    """A row of a preferences file."""
    return dict(
        id=f"p{number:02}",
        prompt=prompt,
        chosen=chosen.text,
        rejected=rejected.text,
        ground=ground,
        chosen_draw=chosen.source,
        rejected_draw=rejected.source,
    )


def listed(prompt: str, candidates: Sequence[Candidate]) -> str:
    """A prompt and its numbered candidates, a line each."""
    lines = [prompt]
    for number, candidate in enumerate(candidates, start=1):
        text = candidate.text.replace("\n", " / ")
        lines.append(f"  {number}  {text}{'' if candidate.ended else ' ... (cut off)'}")
    return "\n".join(lines)


def decide(
    prompts: Sequence[str],
    candidates: Sequence[Sequence[Candidate]],
    rows: Sequence[dict],
    type_line: Callable[[str], str | None],
    say: Callable[[str], None] = print,
) -> Iterator[list[dict]]:
    """Ask a reader about one prompt after the other; after each decision, yield all
    rows.

    rows: decided before; their prompts are not asked again. type_line(question) returns
    what was typed, None at the end of the input. A prompt with fewer than two answers,
    or with none that came to its end, is passed over.
    """
    rows, decided = list(rows), {row["prompt"] for row in rows}
    waiting = [
        (prompt, some)
        for prompt, some in zip(prompts, candidates)
        if prompt not in decided and len(some) > 1 and any(c.ended for c in some)
    ]
    place, taken = 0, []  # the places whose decisions can be taken back
    while place < len(waiting):
        prompt, some = waiting[place]
        say(f"\n{place + 1} of {len(waiting)}: {listed(prompt, some)}")
        typed = type_line("> ")
        if typed is None or typed.strip().lower() == "q":
            return
        if typed.strip().lower() == "u":
            if not taken:
                say("There is nothing to take back.")
                continue
            place = taken.pop()
            rows.pop()
            yield list(rows)
            continue
        if typed.strip():
            try:
                decision = read_decision(typed, some)
            except UnreadableDecision as error:
                say(f"That cannot be read: {error}.\n{HELP}")
                continue
            rows.append(pair_row(prompt, *decision, number=next_number(rows)))
            taken.append(place)
            yield list(rows)
        place += 1


def next_number(rows: Sequence[dict]) -> int:
    """The least number above all that ids like `p07` have."""
    numbers = [row["id"][1:] for row in rows if row["id"].startswith("p")]
    return 1 + max((int(each) for each in numbers if each.isdecimal()), default=0)
