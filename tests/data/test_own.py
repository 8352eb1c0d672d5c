"""A reader's own files for the toy: what its alphabet and chat format cannot express is
refused by row.
"""

import json

import pytest

from posttrain.data import datasets
from posttrain.data.datasets import ANSWER_TOKENS, FEWEST_PROMPTS, DatasetError
from posttrain.data.own import own_data, own_prompts
from posttrain.gpt import GPTConfig


def turn(role, content, **fields):
    return dict(role=role, content=content, **fields)


Q, A, R = turn("user", "Who?"), turn("assistant", "I."), turn("assistant", "Thou.")
PAIR = dict(prompt="Who?", chosen="I.", rejected="Thou.")


@pytest.fixture
def file(tmp_path):
    def write(*rows):
        path = tmp_path / "mine.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        return path

    return write


def test_without_files_the_data_is_the_books_own():
    assert own_data() == datasets.training_data()


def test_a_books_file_is_read_as_the_book_reads_it():
    folder = datasets.FOLDER
    data = own_data(folder / "conversations.jsonl", folder / "preferences.jsonl")
    for mine, own in [
        (data.conversations, datasets.conversations()),
        (data.pairs, datasets.preferences()),
    ]:
        assert mine == [{name: row[name] for name in mine[0]} for row in own]
    assert own_prompts(folder / "prompts.jsonl") == datasets.training_prompts()


def test_files_of_other_forms_are_read_and_pairs_bring_their_prompts(file):
    alpaca = dict(instruction="Who?", output="I.")
    assert own_data(file(alpaca)).conversations[0]["messages"] == [Q, A]
    data = own_data(pair_file=file(dict(chosen=[Q, A], rejected=[Q, R]), PAIR))
    rows = [dict(id=f"line {i}") | PAIR for i in (1, 2)]
    assert data.pairs == rows and data.prompts == ["Who?"] * FEWEST_PROMPTS
    assert own_prompts(file(dict(prompt=[Q]), PAIR)) == ["Who?"] * 2


LONGEST = GPTConfig.context
ROOM = LONGEST - ANSWER_TOKENS
SYSTEM = turn("system", "Be brief.")
CONVERSATIONS = {
    "a digit": ([turn("user", "7"), A], r"messages\[0\].content: '7' \(U\+0037"),
    "system": ([SYSTEM, Q, A], "the toy's chat format has no system turn"),
    "weight": (
        [Q, turn("assistant", "I.", weight=0), Q, A],
        "the toy learns every answer",
    ),
    "too long": ([turn("user", "x" * LONGEST), A], r"261 tokens .* reads 256"),
}
PAIRS = {
    "a digit": (PAIR | dict(chosen="7"), r"chosen: '7' \(U\+0037"),
    "turns": (
        dict(chosen=[Q, R, Q, A], rejected=[Q, R, Q, R]),
        "one question, and this has user, assistant, user",
    ),
    "system": (PAIR | dict(system="Be brief."), "this has system, user"),
    "too long": (PAIR | dict(prompt="x" * ROOM), "leave no room for 96"),
}


@pytest.mark.parametrize("bad", CONVERSATIONS)
def test_a_conversation_that_the_toy_cannot_express_is_named(file, bad, capsys):
    messages, reason = CONVERSATIONS[bad]
    path = file(dict(messages=[Q, A]), dict(id="b", messages=messages))
    with pytest.raises(DatasetError, match=rf"line 2 \(id b\): .*{reason}") as refused:
        own_data(path)
    assert "A line looks" not in str(refused.value)
    assert len(own_data(path, skip_bad=True).conversations) == 1
    assert "1 of 2 rows are left out (line 2)" in capsys.readouterr().out


@pytest.mark.parametrize("bad", PAIRS)
def test_a_pair_that_the_toy_cannot_express_is_named(file, bad):
    row, reason = PAIRS[bad]
    path = file(PAIR, row)
    with pytest.raises(DatasetError, match=rf"line 2: .*{reason}"):
        own_data(pair_file=path)
    assert len(own_data(pair_file=path, skip_bad=True).pairs) == 1


def test_a_prompt_that_the_toy_cannot_express_is_named(file):
    path = file(dict(prompt="Who?"), dict(prompt="é"), dict(prompt=[SYSTEM, Q]))
    with pytest.raises(DatasetError, match="2 of 3 rows cannot be used"):
        own_prompts(path)
    assert own_prompts(path, skip_bad=True) == ["Who?"]
