"""Tokenizers are compared by what they hold, and other ones refused."""

import copy
import json
import tempfile
from pathlib import Path

import pytest

pytest.importorskip("transformers")
from real_models import CONVERSATIONS, PAIRS, data_file, folder, tokenizer  # noqa: E402

from posttrain.real.model import ModelError, fetch, library  # noqa: E402
from posttrain.real.run import Setup, find_tokenizer, run  # noqa: E402
from posttrain.real.tiny import build_tokenizer, make_tiny  # noqa: E402
from posttrain.real.training import RealConfig  # noqa: E402
from posttrain.real.vocabulary import difference  # noqa: E402

CONFIG = RealConfig(steps=1, batch_size=2, max_length=200, max_new_tokens=4)


def read(path):
    return fetch(library().AutoTokenizer, str(path))


def edited(change):
    """The tiny model's tokenizer with a change to what its file says."""
    path = Path(tempfile.mkdtemp())
    tokenizer().save_pretrained(path)
    held = json.loads((path / "tokenizer.json").read_text(encoding="utf-8"))
    change(held)
    (path / "tokenizer.json").write_text(json.dumps(held), encoding="utf-8")
    return read(path)


def swap(held):
    vocab = held["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]


def test_a_tokenizer_is_the_same_wherever_it_lies_and_however_it_pads(tmp_path):
    tokenizer().save_pretrained(tmp_path)
    again = read(tmp_path)
    again.padding_side, again.chat_template = "left", "{{ messages }}"
    again(["one", "two three"], padding=True, truncation=True, max_length=3)
    assert difference(tokenizer(), again) == ""


@pytest.mark.parametrize(
    "change, message",
    [
        (swap, "other numbers for 'a', 'b'"),
        (lambda held: held["model"]["merges"].reverse(), "another model"),
        (
            lambda held: held.update(normalizer=dict(type="Lowercase")),
            "another normalizer",
        ),
        (
            lambda held: held["pre_tokenizer"].update(add_prefix_space=True),
            "another pre_tokenizer",
        ),
        (lambda held: held["model"].update(ignore_merges=True), "another model"),
    ],
)
def test_what_makes_two_tokenizers_differ_is_said(change, message):
    assert difference(tokenizer(), edited(change)) == message
    assert difference(tokenizer(), edited(change), growing=True) == message


def test_added_tokens_count_unless_a_tokenizer_may_grow():
    more = copy.deepcopy(tokenizer())
    more.add_special_tokens(dict(additional_special_tokens=["<|tool|>"]))
    assert difference(tokenizer(), more) == "other numbers for '<|tool|>'"
    assert difference(tokenizer(), more, growing=True) == ""
    assert difference(more, tokenizer(), growing=True) != ""


def test_tokenizers_in_plain_python_are_compared_by_what_they_make_of_a_text():
    class Plain:
        def __init__(self, vocab, cut):
            self.get_vocab, self.tokenize = lambda: vocab, cut

    one = Plain(dict(a=0, b=1), list)
    assert difference(one, Plain(dict(a=0, b=1), list)) == ""
    assert difference(one, Plain(dict(a=0, b=1), str.split)) == "another encoding"
    assert difference(one, Plain(dict(a=1, b=0), list)) == "other numbers for 'a', 'b'"


def test_a_judge_that_reads_with_another_tokenizer_is_refused(tmp_path):
    texts = [pair["chosen"] for pair in PAIRS]
    other = str(make_tiny(tmp_path / "other", texts))
    data = data_file(tmp_path / "pairs.jsonl", PAIRS)
    judge = str(tmp_path / "judge")
    reward = RealConfig(**{**vars(CONFIG), "stage": "reward"})
    run(Setup(other, data, judge, rank=2, device="cpu"), reward)
    ppo = RealConfig(**{**vars(CONFIG), "stage": "ppo"})
    options = dict(rank=2, device="cpu", reward_model=judge)
    setup = Setup(folder(), data, str(tmp_path / "out"), **options)
    with pytest.raises(ModelError) as error:
        run(setup, ppo)
    said = str(error.value)
    assert f"{judge} does not read with the tokenizer of {folder()}: it has" in said
    assert said.endswith("give one that was trained from the same model")


def adapter(tmp_path):
    """A run's adapter upon the tiny model."""
    data = data_file(tmp_path / "chats.jsonl", CONVERSATIONS)
    out = str(tmp_path / "adapter")
    run(Setup(folder(), data, out, rank=2, device="cpu"), CONFIG)
    return out


def test_an_adapter_without_a_tokenizer_has_its_bases_and_its_own_may_only_grow(
    tmp_path,
):
    out = adapter(tmp_path)
    files = [path for path in Path(out).iterdir() if "token" in path.name]
    for path in (*files, *Path(out).glob("chat_template*")):
        path.unlink()
    assert difference(tokenizer(), find_tokenizer(out)) == ""
    more = copy.deepcopy(tokenizer())
    more.add_special_tokens(dict(additional_special_tokens=["<|tool|>"]))
    more.save_pretrained(out)
    assert "<|tool|>" in find_tokenizer(out).get_vocab()
    build_tokenizer(["Another text."]).save_pretrained(out)
    with pytest.raises(ModelError, match=f"{out} does not read with the tokenizer of"):
        find_tokenizer(out)
