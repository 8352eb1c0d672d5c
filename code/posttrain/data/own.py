"""A reader's own files, as far as the toy can express them: its alphabet, its chat
format, its context.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from posttrain.data import datasets
from posttrain.data.datasets import FEWEST_PROMPTS, TrainingData
from posttrain.data.json_rows import RowProblem
from posttrain.data.row_files import RowFile
from posttrain.gpt import GPTConfig


def own_data(
    conversation_file: str | Path | None = None,
    pair_file: str | Path | None = None,
    skip_bad: bool = False,
) -> TrainingData:
    """The book's own data, with a reader's in its place where a file is named.

    Who brings pairs practises on their prompts. Raises DatasetError, which names all
    rows that cannot be used; with skip_bad they are left out.
    """
    data = datasets.training_data()
    if conversation_file is not None:
        file = RowFile(conversation_file, "conversations").each(toy_conversation)
        data = replace(data, conversations=file.kept(skip_bad))
    if pair_file is not None:
        pairs = RowFile(pair_file, "preferences").each(toy_pair).kept(skip_bad)
        prompts = list(dict.fromkeys(pair["prompt"] for pair in pairs))
        times = -(-FEWEST_PROMPTS // len(prompts))
        data = replace(data, pairs=pairs, prompts=prompts * times)
    return data


def own_prompts(path: str | Path, skip_bad: bool = False) -> list[str]:
    """The prompts of a reader's file. Raises DatasetError as `own_data` does."""
    rows = RowFile(path, "prompts").each(toy_prompt).kept(skip_bad)
    return [row["prompt"] for row in rows]


def toy_conversation(row: dict) -> dict:
    """A conversation that the toy can learn. Raises RowProblem for any other."""
    roles = [message["role"] for message in row["messages"]]
    if "system" in roles:
        raise RowProblem("the toy's chat format has no system turn: leave it out")
    if any("weight" in message for message in row["messages"]):
        raise RowProblem(
            "the toy learns every answer of a conversation: leave out what comes "
            "before the first to be learned, and after the last"
        )
    return without_problem(row, datasets.find_bad_turn(row, GPTConfig.context))


def toy_pair(row: dict) -> dict:
    """A pair that the toy can learn from. Raises RowProblem for any other."""
    refuse_turns(row)
    return without_problem(row, datasets.find_bad_pair(row, GPTConfig.context))


def toy_prompt(row: dict) -> dict:
    """A prompt that the toy can be asked. Raises RowProblem for any other."""
    refuse_turns(row)
    return without_problem(row, datasets.find_bad_prompt(row))


def refuse_turns(row: dict) -> None:
    """Raise RowProblem for a prompt that is more than a question."""
    if not isinstance(row["prompt"], str):
        roles = ", ".join(message["role"] for message in row["prompt"])
        raise RowProblem(f"the toy's prompts are one question, and this has {roles}")


def without_problem(row: dict, problem: str | None) -> dict:
    """The row, unless there is a problem with it."""
    if problem:
        raise RowProblem(problem)
    return row
