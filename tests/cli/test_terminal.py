"""The chat in the terminal: what the model is given, what is remembered, and that no
input and no signal breaks it.
"""

import importlib
import io
import json
import os
import random
import re
import runpy
import select
import shlex
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch
from tiny import CORPUS, judge, moved, pair, same, tiny_stages, weights
from tiny import LONG as ROOMY

from posttrain import stages
from posttrain.chat import render_prompt
from posttrain.cli import arguments as command_line
from posttrain.cli import commands as program
from posttrain.cli import terminal
from posttrain.cli.terminal import HELP, MAX_NEW_TOKENS, Chat, command, converse
from posttrain.data.corpus import Corpus
from posttrain.data.datasets import example, heldout_prompts
from posttrain.evaluate import gold_score
from posttrain.gpt import GPT, GPTConfig
from posttrain.keep import code, store
from posttrain.lab.scorecard import lexicon
from posttrain.reward_model import score_answer
from posttrain.stages import dpo_model, ppo_model
from posttrain.tokenizer import END, SPECIAL_TOKENS, CharTokenizer

TOKENIZER = CharTokenizer()
LONGEST = 256 - MAX_NEW_TOKENS  # tokens of prompt that leave room for an answer
TURN = dict(user=1, assistant=2)  # tokens of a turn beside its text
posix_only = pytest.mark.skipif(
    os.name != "posix", reason="POSIX signals and terminals"
)


def tiny(vocab_size=69):
    """A model whose logits are all 0: every token is as likely."""
    return GPT(
        GPTConfig(vocab_size=vocab_size, context=256, n_layer=1, n_head=1, width=16)
    )


def said_by(*tokens, vocab_size=69):
    """A model that says these characters or special tokens, and again from the first
    after the last.
    """
    model, ids = tiny(vocab_size), [TOKENIZER.ids[token] for token in tokens]
    model.calls = 0

    def favour(module, inputs, logits):
        logits[:, -1, ids[model.calls % len(ids)]] += 1000
        model.calls += 1

    model.register_forward_hook(favour)
    return model


def user(text):
    return dict(role="user", content=text)


def assistant(text):
    return dict(role="assistant", content=text)


def say(chat, text):
    chat.add(text)
    return "".join(chat.answer())


def typed(*lines, model=None, **options):
    """What is printed when these lines are typed."""
    chat = Chat(
        model or said_by("A", "y", ".", "<|end|>"),
        **(dict(chat_format=True, seed=0) | options),
    )
    converse(chat, io.StringIO("".join(line + "\n" for line in lines)))
    return chat


def test_prompts_are_the_rendered_turns_and_answers_are_remembered():
    chat = Chat(said_by("A", "y", ".", "<|end|>"), chat_format=True, seed=0)
    assert say(chat, "Hi?") == "Ay."
    assert chat.add("So?") == 0
    turns = [user("Hi?"), assistant("Ay."), user("So?")]
    assert chat.messages == turns
    encode = TOKENIZER.encode
    expected = [
        TOKENIZER.user,
        *encode("Hi?"),
        TOKENIZER.assistant,
        *encode("Ay."),
        TOKENIZER.end,
    ]
    expected += [TOKENIZER.user, *encode("So?"), TOKENIZER.assistant]
    assert chat.prompt() == expected == render_prompt(turns, TOKENIZER)


def test_the_model_reads_the_prompt_and_then_its_own_answer():
    model, read = said_by("A", "y", ".", "<|end|>"), []
    model.register_forward_pre_hook(
        lambda module, inputs: read.append(inputs[0][0].tolist())
    )
    chat = Chat(model, chat_format=True, seed=0)
    say(chat, "Hi?")
    assert read == [
        render_prompt([user("Hi?")], TOKENIZER),
        *[[TOKENIZER.ids[c]] for c in "Ay."],
    ]


def test_a_base_model_is_given_plain_lines_and_continues_them_to_the_end():
    chat = Chat(said_by("A", "y", "\n", vocab_size=65), chat_format=False, seed=0)
    answer = say(chat, "Hi?")
    assert answer == "Ay\n" * (MAX_NEW_TOKENS // 3)
    assert chat.add("So?") == 0
    assert TOKENIZER.decode(chat.prompt()) == f"Hi?\n{answer}\nSo?\n"


def test_same_seed_same_answers_another_seed_others_and_no_seed_never_the_same():
    def answers(seed, rest):
        torch.manual_seed(rest)
        chat = Chat(tiny(65), chat_format=False, seed=seed)
        return [say(chat, "Hi?"), say(chat, "So?")]

    first, second = answers(1, 5)
    assert [first, second] == answers(1, 6) != answers(2, 5)
    assert first != second
    assert answers(None, 5) != answers(None, 5)


def test_temperature_is_that_of_the_draws():
    model = tiny(65)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    likeliest = []
    for seed in (1, 2):
        chat = Chat(model, chat_format=False, temperature=50, seed=seed)
        hot = say(chat, "Hi?")
        command(chat, "/reset")
        assert command(chat, "/temperature 0") == "(temperature 0)"
        likeliest.append(say(chat, "Hi?"))
        assert hot != likeliest[-1]
    assert likeliest[0] == likeliest[1]


def test_a_temperature_next_to_0_gives_the_likeliest_tokens():
    model = tiny(65)
    with torch.no_grad():
        model.head.weight.normal_(generator=torch.Generator().manual_seed(0))
    assert (
        len(
            {
                say(Chat(model, False, temperature, seed=0), "Hi?")
                for temperature in (0, 1e-30, 1e-40)
            }
        )
        == 1
    )


@pytest.mark.parametrize("special", SPECIAL_TOKENS)
@pytest.mark.parametrize("before", ["", "Ay"])
def test_an_answer_ends_at_any_special_token_and_never_shows_it(special, before):
    model = said_by(*before, special, *"Nay")
    chat = Chat(model, chat_format=True, seed=0)
    assert say(chat, "Hi?") == before
    assert chat.messages == [user("Hi?"), assistant(before)]
    assert model.calls == len(before) + 1


def test_whatever_is_drawn_answers_are_of_the_alphabet():
    model = tiny()
    # Give the special tokens half of the probability
    model.register_forward_hook(
        lambda module, inputs, logits: logits + 2.8 * (torch.arange(69) >= 65)
    )
    chat, answers = Chat(model, chat_format=True, seed=0), []
    for _ in range(60):
        chat.messages = []
        answers.append(say(chat, "Hi?"))
    assert set("".join(answers)) <= set(TOKENIZER.alphabet) and "".join(answers)
    assert len(set(answers)) > 10


def test_pieces_arrive_one_by_one_and_the_answer_is_remembered_at_its_end():
    model = said_by("A", "y", ".", "<|end|>")
    chat = Chat(model, chat_format=True, seed=0)
    chat.add("Hi?")
    pieces = chat.answer()
    for i, letter in enumerate("Ay.", start=1):
        assert next(pieces) == letter and model.calls == i
        assert chat.messages == [user("Hi?")]
    assert list(pieces) == []
    assert chat.messages == [user("Hi?"), assistant("Ay.")]


def test_every_piece_is_on_the_screen_before_the_next_is_computed(monkeypatch):
    flushed, seen = [""], []
    screen = io.StringIO()
    screen.flush = lambda: flushed.append(screen.getvalue())
    monkeypatch.setattr(sys, "stdout", screen)
    model = said_by("A", "y", ".", "<|end|>")
    model.register_forward_pre_hook(lambda module, inputs: seen.append(flushed[-1]))
    typed("Hi?", model=model)
    assert seen == ["model: ", "model: A", "model: Ay", "model: Ay."]
    assert flushed[-1] == "model: Ay.\n"


def length(messages, chat_format):
    """The tokens of a prompt, counted by hand."""
    if not chat_format:
        return sum(len(m["content"]) + 1 for m in messages)
    return sum(len(m["content"]) + TURN[m["role"]] for m in messages) + 1


@pytest.mark.parametrize("chat_format", [True, False], ids=["chat", "base"])
def test_the_oldest_turns_are_forgotten_in_pairs_and_no_more_than_needed(chat_format):
    draw, forgot = random.Random(0), set()
    for _ in range(200):
        turns = draw.randrange(5)
        before = [
            make("x" * draw.randrange(1, 70))
            for _ in range(turns)
            for make in (user, assistant)
        ]
        new = "y" * draw.randrange(1, LONGEST - 5)
        chat = Chat(tiny(), chat_format, seed=0)
        chat.messages = list(before)
        forgotten = chat.add(new)
        whole = [*before, user(new)]
        kept = next(
            whole[i:]
            for i in range(0, len(whole), 2)
            if length(whole[i:], chat_format) <= LONGEST
        )
        assert chat.messages == kept and forgotten == len(whole) - len(kept)
        assert len(chat.prompt()) == length(kept, chat_format)
        forgot.add(forgotten)
    assert forgot == {0, 2, 4, 6, 8}


@pytest.mark.parametrize("chat_format", [True, False], ids=["chat", "base"])
def test_a_full_context_is_used_to_its_last_token(chat_format):
    fits = LONGEST - length([user("Hi?"), assistant("Ay."), user("")], chat_format)
    for extra in (0, 1):
        chat = Chat(said_by("x"), chat_format, seed=0)
        chat.messages = [user("Hi?"), assistant("Ay.")]
        assert chat.add("x" * (fits + extra)) == 2 * extra
        assert "".join(chat.answer()) == "x" * MAX_NEW_TOKENS


@pytest.mark.parametrize("chat_format", [True, False], ids=["chat", "base"])
@pytest.mark.parametrize("excess", [1, 7, 100_000])
def test_a_message_too_long_is_refused_by_how_much_and_changes_nothing(
    chat_format, excess
):
    chat = Chat(tiny(), chat_format, seed=0)
    chat.messages = [user("Hi?"), assistant("Ay.")]
    limit = LONGEST - length([user("")], chat_format)
    with pytest.raises(
        ValueError, match=f"^that is {excess} characters more than this model can read"
    ):
        chat.add("x" * (limit + excess))
    assert chat.messages == [user("Hi?"), assistant("Ay.")]
    assert chat.add("x" * limit) == 2


def test_what_is_forgotten_or_refused_is_said_and_the_chat_goes_on(capsys):
    chat = typed("a" * 60, "b" * 60, "c" * 60, "d" * 500, "e" * 4)
    printed = capsys.readouterr().out.splitlines()
    assert printed == [
        "model: Ay.",
        "model: Ay.",
        "(the first 2 messages no longer fit the context and are forgotten)",
        "model: Ay.",
        "(that is 366 characters more than this model can read: say it shorter)",
        "(the first 2 messages no longer fit the context and are forgotten)",
        "model: Ay.",
    ]
    assert [m["content"] for m in chat.messages] == ["c" * 60, "Ay.", "e" * 4, "Ay."]


def test_a_talk_ends_with_its_input_or_quit_and_skips_empty_lines(capsys):
    chat = typed("", "   ", "\t", "Hi?", "  So?  ", "/quit", "No.")
    assert capsys.readouterr().out == "model: Ay.\nmodel: Ay.\n"
    assert [m["content"] for m in chat.messages] == ["Hi?", "Ay.", "So?", "Ay."]
    typed()
    converse(Chat(tiny(), True), io.StringIO("/exit"))
    assert capsys.readouterr().out == ""


def test_reset_forgets(capsys):
    chat = typed("Hi?", "/reset", "So?")
    assert chat.messages == [user("So?"), assistant("Ay.")]
    assert capsys.readouterr().out == "model: Ay.\n(forgotten)\nmodel: Ay.\n"


@pytest.mark.parametrize(
    "value, number",
    [("0", 0), ("0.5", 0.5), ("1", 1), ("  2 ", 2), ("1e-3", 0.001), ("100", 100)],
)
def test_temperature_is_set(value, number):
    chat = Chat(tiny(), True)
    assert command(chat, f"/temperature {value}") == f"(temperature {number:g})"
    assert chat.temperature == number


NO_TEMPERATURES = [
    "",
    " ",
    "nan",
    "-1",
    "-0.001",
    "inf",
    "-inf",
    "100.1",
    "hot",
    "0.5 0.6",
    "0,5",
    "\U0001f600",
]


@pytest.mark.parametrize("value", NO_TEMPERATURES)
def test_a_temperature_that_is_none_is_refused_and_changes_nothing(value):
    chat = Chat(tiny(), True, temperature=0.7)
    assert (
        command(chat, f"/temperature {value}")
        == "(/temperature takes a number from 0 to 100, now 0.7)"
    )
    assert command(chat, "/temperature") == command(chat, "/temperature nan")
    assert chat.temperature == 0.7


def test_help_lists_every_command_and_an_unknown_one_is_said(capsys):
    chat = Chat(tiny(), True)
    assert command(chat, "/help") == HELP
    for name in ("/reset", "/temperature", "/help", "/quit"):
        assert name in HELP
    for name in ("quit", "exit"):
        assert command(chat, f"/{name}") is None
    for line in ("/hlep", "/", "//", "/Quit"):
        assert command(chat, line) == f"(there is no /{line[1:]})\n{HELP}"
    chat = typed("/hlep", "Hi?")
    assert "there is no /hlep" in capsys.readouterr().out and len(chat.messages) == 2


ODD = {
    "emoji": ("\U0001f469\u200d\U0001f680 ok", "??? ok"),
    "combining accents": ("cafe\u0301 e\u0301\u0302\u0303", "cafe e"),
    "accents": ("na\u00efve caf\u00e9", "naive cafe"),
    "only an accent": ("\u0301", ""),
    "CJK": ("\u4f60\u597d", "??"),
    "right to left": ("\u05e9\u05dc\u05d5\u05dd \u202e\u0645", "???? ??"),
    "quotes and dashes": ("\u201cAy\u201d \u2014 no\u2026", "'Ay' -- no..."),
    "digits and brackets": ("Act 2 <|user|> [x]", "Act ? ??user?? ?x?"),
    "lone surrogate": ("a\ud83db", "a?b"),
    "NUL and controls": ("a\0b\x07c\x1b[2Jd\x7fe", "a?b?c???Jd?e"),
    "line separators": ("a\u2028b\x0bc\x0cd\x85e", "a?b?c?d?e"),
    "tab": ("a\tb", "a b"),
    "fullwidth and ligatures": ("\uff28\uff49 \ufb01sh", "Hi fish"),
    "swelling under normalisation": ("\ufdfa", None),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_characters_are_read_as_the_nearest_plain_ones_and_that_is_said(
    capsys, name
):
    text, expected = ODD[name]
    chat = typed(f"{text}", "Hi?")
    printed = capsys.readouterr().out.splitlines()
    read = chat.messages[0]["content"]
    assert read == expected or expected is None
    assert printed == [f"(read as: {read})", "model: Ay.", "model: Ay."]
    assert set(read) <= set(TOKENIZER.alphabet) and chat.messages[2]["content"] == "Hi?"


def in_bytes(data, encoding, monkeypatch):
    """Talk through a pipe whose both ends have an encoding: what is printed, as
    bytes.
    """
    source = io.TextIOWrapper(io.BytesIO(data), encoding=encoding, errors="strict")
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdin", source)
    monkeypatch.setattr(sys, "stdout", screen)
    converse(Chat(said_by("A", "y", ".", "<|end|>"), True, seed=0))
    screen.flush()
    return screen.buffer.getvalue()


LINES = [
    text.encode("utf-8", "surrogatepass")
    for name, (text, _) in ODD.items()
    if name != "lone surrogate"
]
LINES += [b"\xff\xfe\x80", b"a\xed\xa0\x80b", b"caf\xc3", b"\xe9t\xe9"]
SILENT = [b"", b"   ", b"\t"]
LONG = [b"x" * 100_000, b"\xc3\xa9" * 100_000]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "latin-1", "cp1252"])
def test_any_bytes_in_any_encoding_get_an_answer(monkeypatch, encoding):
    printed = in_bytes(
        b"\n".join([*LINES, *SILENT, *LONG, b"caf\xc3"]), encoding, monkeypatch
    )
    assert printed.count(b"model: Ay.") == len(LINES) + 1
    assert printed.count(b"characters more than this model can read") == 2


@pytest.mark.parametrize(
    "line, encoding",
    [("/\u00e9", "ascii"), ("/\u4f60", "cp1252"), ("/a\udcffb", "utf-8")],
)
def test_an_unknown_command_is_named_in_any_encoding(monkeypatch, line, encoding):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", screen)
    typed(line, "Hi?")
    screen.flush()
    assert (
        b"there is no /" in screen.buffer.getvalue()
        and b"model: Ay." in screen.buffer.getvalue()
    )


# Answers are quick, but at temperature 0 they are 120 line ends, five in a second
SCRIPT = textwrap.dedent("""
    import signal, sys, time
    # Even where the tests run in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, {code!r})
    from posttrain.gpt import GPT, GPTConfig
    from posttrain.cli.terminal import Chat, converse
    model = GPT(GPTConfig(vocab_size=69, context=256, n_layer=1, n_head=1, width=16))
    chat = Chat(model, chat_format=True, seed=0)
    model.register_forward_hook(lambda *_: time.sleep(0 if chat.temperature else 0.2))
    converse(chat)
""")


def start(variables, **pipes):
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LC_", "LANG", "PYTHON"))
    }
    script = SCRIPT.format(code=str(code.PACKAGE.parent))
    return subprocess.Popen(
        [sys.executable, "-c", script], env=environment | variables, **pipes
    )


def read_until(descriptor, wanted, times=1, seconds=60):
    """Read until some bytes have come so many times."""
    read, until = b"", time.monotonic() + seconds
    while read.count(wanted) < times:
        assert time.monotonic() < until, read
        if select.select([descriptor], [], [], 1)[0]:
            read += os.read(descriptor, 1000)
    return read


PIPES = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_a_pipe_of_any_bytes_is_answered_and_ends_cleanly():
    child = start(
        dict(LANG="C", LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0"), **PIPES
    )
    printed, errors = child.communicate(
        b"\n".join([*LINES, *SILENT, *LONG, b"/reset", b"/help", b"Hi?"]), timeout=60
    )
    assert (child.returncode, errors) == (0, b"")
    assert printed.count(b"model: ") == len(LINES) + 1 and b"(forgotten)" in printed


@posix_only
def test_ctrl_c_during_an_answer_leaves_quietly():
    child = start(dict(PYTHONIOENCODING="ascii"), **PIPES)
    child.stdin.write(
        b"\n".join([*LINES, *SILENT, *LONG, b"/reset", b"/temperature 0", b"Hi?", b""])
    )
    child.stdin.flush()
    # The last answer's first letter is here, and 119 are still to come
    read_until(child.stdout.fileno(), b"(temperature 0)\nmodel: \n")
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=15)
    assert (child.returncode, errors) == (0, b"")


@posix_only
def test_at_the_keyboard_whatever_is_typed_is_answered_and_ctrl_c_leaves():
    import pty

    keyboard, slave = pty.openpty()
    child = start(
        dict(TERM="dumb", LC_ALL="C.UTF-8"),
        stdin=slave,
        stdout=slave,
        stderr=subprocess.PIPE,
    )
    os.close(slave)
    try:
        read_until(keyboard, b"you: ")
        for line in (b"Hi?", b"caf\xc3\xa9 \xf0\x9f\x98\x80 \xff", b"   "):
            os.write(keyboard, line + b"\n")
            read_until(keyboard, b"you: ")
        time.sleep(
            0.5
        )  # Python itself misses a signal between the prompt and its wait for a key
        child.send_signal(signal.SIGINT)
        assert child.wait(timeout=15) == 0
        assert child.stderr.read() == b""
    finally:
        child.kill()
        child.wait()
        child.stderr.close()
        os.close(keyboard)


def test_a_keyboard_gives_lines_with_a_prompt_until_the_input_ends(monkeypatch, capsys):
    keys, prompts = iter(["Hi?", "So?"]), []

    def ask(prompt):
        prompts.append(prompt)
        try:
            return next(keys)
        except StopIteration:
            raise EOFError from None

    source = io.StringIO()
    source.isatty = lambda: True
    monkeypatch.setattr("builtins.input", ask)
    assert list(terminal.lines_of(source)) == ["Hi?", "So?"]
    assert prompts == ["you: "] * 3 and capsys.readouterr().out == "\n"


def test_a_reader_that_goes_away_ends_the_talk(monkeypatch):
    def gone(text):
        raise BrokenPipeError(32, "Broken pipe")

    screen = io.StringIO()
    screen.write = gone
    monkeypatch.setattr(sys, "stdout", screen)
    typed("Hi?")


def refuse(*arguments, **options):
    raise AssertionError("was trained")


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ("", "required: command"),
        ("talk", "invalid choice: 'talk'"),
        ("chat --stage reward", "argument --stage: invalid choice: 'reward'"),
        (
            "chat --temperature nan",
            "argument --temperature: nan is not a number from 0 to 100",
        ),
        (
            "chat --temperature -1",
            "argument --temperature: -1 is not a number from 0 to 100",
        ),
        (
            "chat --temperature inf",
            "argument --temperature: inf is not a number from 0 to 100",
        ),
        (
            "chat --temperature abc",
            "argument --temperature: invalid temperature value: 'abc'",
        ),
        ("chat --seed x", "argument --seed: invalid seed value: 'x'"),
        ("chat --sed 1", "unrecognized arguments: --sed 1"),
        ("compare", "give a prompt in quotation marks"),
        (
            "compare Who? --temperature nan",
            "argument --temperature: nan is not a number from 0 to 100",
        ),
        ("compare Who? are you", "unrecognized arguments: are you"),
        ("score", "the following arguments are required: prompt, response"),
        ("score Who?", "the following arguments are required: response"),
        ("score Who? I am", "unrecognized arguments: am"),
        ("train", "the following arguments are required: stage"),
        ("train judge", "argument stage: invalid choice: 'judge'"),
        (
            "train sft --seed -1",
            "argument --seed: -1 is not a whole number from 0 to 2^64 - 1",
        ),
        ("train sft --data", "argument --data: expected one argument"),
        ("chat --model-seed x", "argument --model-seed: invalid seed value: 'x'"),
    ],
)
def test_a_wrong_argument_ends_with_2_and_a_sentence_before_anything_is_trained(
    monkeypatch, capsys, arguments, reason
):
    monkeypatch.setattr(program, "STAGES", dict(base=refuse, sft=refuse))
    with pytest.raises(SystemExit) as ended:
        program.main(arguments.split())
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and reason in printed.err
    assert "error: " in printed.err and "Traceback" not in printed.err


@pytest.mark.parametrize(("stage", "train"), [("ppo", ppo_model), ("dpo", dpo_model)])
def test_a_later_models_chat_is_asked_for_by_its_stage(
    monkeypatch, capsys, stage, train
):
    assert (
        program.parse(["chat", "--stage", stage]).stage == stage
        and program.STAGES[stage] is train
    )
    chats, model = [], tiny()
    monkeypatch.setattr(program, "STAGES", {stage: lambda text, progress: (model, {})})
    monkeypatch.setattr(program.corpus, "load", lambda: None)
    monkeypatch.setattr(program, "converse", chats.append)
    assert program.main(["chat", "--stage", stage]) == 0
    assert chats[0].model is model and chats[0].chat_format
    assert capsys.readouterr().out.startswith(f"The {stage} model.")


def test_a_seed_too_large_is_refused_before_anything_is_trained(monkeypatch):
    monkeypatch.setattr(program, "STAGES", dict(sft=refuse))
    monkeypatch.setattr(program.corpus, "load", lambda: None)
    with pytest.raises(SystemExit):
        program.main(["chat", "--seed", str(2**64)])


def test_the_chat_is_that_of_the_stage_with_its_format_temperature_and_seed(
    monkeypatch, capsys
):
    chats, loaded = [], object()
    models = dict(base=tiny(65), sft=tiny())

    def stage(name):
        def train(text, progress):
            assert text is loaded and callable(progress)
            return models[name], {}

        return train

    monkeypatch.setattr(program, "STAGES", {name: stage(name) for name in models})
    monkeypatch.setattr(program.corpus, "load", lambda: loaded)
    monkeypatch.setattr(program, "converse", chats.append)
    for arguments in (
        "chat",
        "chat --stage base --temperature 0 --seed 7",
        "chat --stage sft --seed 7",
    ):
        assert program.main(arguments.split()) == 0
    assert [chat.model for chat in chats] == [
        models["sft"],
        models["base"],
        models["sft"],
    ]
    assert [chat.chat_format for chat in chats] == [True, False, True]
    assert [chat.temperature for chat in chats] == [0.8, 0, 0.8]
    assert [chat.generator.initial_seed() == 7 for chat in chats] == [False, True, True]
    assert [line.split(".")[0] for line in capsys.readouterr().out.splitlines()] == [
        "The sft model",
        "The base model",
        "The sft model",
    ]


def test_ctrl_c_while_training_is_130_and_a_sentence(monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "STAGES", dict(sft=interrupted))
    monkeypatch.setattr(program.corpus, "load", lambda: None)
    assert program.main(["chat"]) == 130
    assert capsys.readouterr().err == "\nStopped. Stages that were finished are kept.\n"


@pytest.fixture
def judged(monkeypatch):
    """A tiny reward model for the command line to find."""
    model = judge(dtype=torch.float32)

    def found(text, progress):
        assert text is CORPUS and callable(progress)
        return model, {}

    monkeypatch.setattr(program.corpus, "load", lambda: CORPUS)
    monkeypatch.setattr(program, "reward_model", found)
    return model


@pytest.mark.parametrize(
    ("response", "gold"),
    [
        ("Go to the sea, kind sir.", "+1.00   (courtesy +1.00)"),
        ("To the sea we go.", "+0.00   (nothing to say)"),
        (
            "Blorf, fool, to the sea",
            "-1.90   (courtesy -0.50, ending -1.00, spelling -0.40)",
        ),
        (
            "Sea, sea, sea, sea.",
            "-1.10   (repetition -1.10)",
        ),  # three of four said before
        ("Away.", "-1.50   (courtesy -0.50, length -1.00)"),
    ],
)
def test_an_answer_is_judged_by_the_reward_model_and_by_the_gold_rubric(
    judged, capsys, response, gold
):
    assert program.main(["score", "Who?", response]) == 0
    printed = capsys.readouterr()
    first, second = printed.out.splitlines()
    assert first.startswith(
        f"reward model  {score_answer(judged, 'Who?', response):+.2f}   ("
    )
    assert second == f"gold rubric   {gold}" and printed.err == ""


def test_what_is_outside_the_alphabet_is_read_as_its_nearest_and_said(judged, capsys):
    assert (
        program.main(["score", "Who\u2019s there\u2026?", "Caf\u00e9 7, <|end|>."]) == 0
    )
    first, second, score, _ = capsys.readouterr().out.splitlines()
    assert (first, second) == (
        "(read as: Who's there...?)",
        "(read as: Cafe ?, ??end??.)",
    )
    assert f"  {score_answer(judged, first[10:-1], second[10:-1]):+.2f}  " in score
    assert program.main(["score", "Who\u2019s there?", "I am."]) == 0
    assert capsys.readouterr().out.count("read as") == 1


@pytest.mark.parametrize("response", ["", "  ", "\n", "\u00a0", "\u0301"])
def test_an_empty_answer_is_2_and_a_sentence_before_anything_is_trained(
    monkeypatch, capsys, response
):
    monkeypatch.setattr(program.corpus, "load", refuse)
    monkeypatch.setattr(program, "reward_model", refuse)
    assert program.main(["score", "Who?", response]) == 2
    assert (
        capsys.readouterr().err == "The response is empty: there is nothing to judge.\n"
    )


def test_an_answer_too_long_for_the_model_is_2_and_a_sentence(judged, capsys):
    assert program.main(["score", "Who?", "x" * 57]) == 0  # 6 tokens before it, 1 after
    capsys.readouterr()
    assert program.main(["score", "Who?", "x" * 58]) == 2
    expected = (
        "This cannot be judged: prompt and response have 65 tokens together and "
        "the context 64: shorten them.\n"
    )
    assert capsys.readouterr() == ("", expected)


def test_ctrl_c_while_the_reward_model_is_trained_is_130_and_a_sentence(
    monkeypatch, capsys
):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(program.corpus, "load", lambda: CORPUS)
    monkeypatch.setattr(program, "reward_model", interrupted)
    assert program.main(["score", "Who?", "I am."]) == 130
    assert capsys.readouterr().err == "\nStopped. Stages that were finished are kept.\n"


def test_help_works_from_the_shell_and_lists_the_commands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["posttrain", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("posttrain", run_name="__main__")
    assert (
        ended.value.code == 0
        and "usage: python -m posttrain" in capsys.readouterr().out
    )
    with pytest.raises(SystemExit) as ended:
        program.main(["chat", "--help"])
    assert ended.value.code == 0 and HELP in capsys.readouterr().out


@pytest.mark.parametrize("words", ["--help", "chat --help", "", "chat --stage judge"])
def test_help_and_wrong_arguments_do_not_wait_for_pytorch(words):
    listed = (
        "import runpy, sys, atexit; atexit.register(lambda: print('torch' in "
        "sys.modules)); runpy.run_module('posttrain', run_name='__main__')"
    )
    environment = os.environ | dict(PYTHONPATH=str(code.PACKAGE.parent))
    told = subprocess.run(
        [sys.executable, "-c", listed, *words.split()],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert told.returncode == (0 if "--help" in words else 2) and told.stdout.endswith(
        "False\n"
    )


def test_the_command_line_knows_the_stages_that_there_are():
    assert command_line.STAGES == tuple(stages.STAGES) == tuple(stages.CONFIGS)
    assert (
        command_line.TALKING
        == tuple(program.STAGES)
        == tuple(name for name in stages.STAGES if name != "reward")
    )


@pytest.fixture
def asked(judged, monkeypatch):
    """A base and a chat model, beside the judge, for the command line to compare."""
    models = dict(base=tiny(65), sft=moved(3, torch.float32, ROOMY))
    monkeypatch.setattr(
        program,
        "STAGES",
        {name: lambda text, progress, m=m: (m, {}) for name, m in models.items()},
    )
    return models


def test_every_models_answer_is_compared_with_what_both_judges_say(
    judged, asked, capsys
):
    assert program.main(["compare", "Who?", "--seed", "1"]) == 0
    first = capsys.readouterr().out
    for name, model in asked.items():
        chat = Chat(model, name != "base", 0.8, 1)
        chat.add("Who?")
        answer = "".join(chat.answer())
        block = first[first.index(f"{name:5} ") :]
        assert block.startswith(f"{name:5} {answer}{'' if chat.ended else ' ...'}\n")
        verdict = block[
            len(f"{name:5} {answer}{'' if chat.ended else ' ...'}\n") :
        ].splitlines()[0]
        try:
            score = score_answer(judged, "Who?", answer)
        except ValueError as error:
            assert verdict == f"      (not judged: {error})"
            continue
        gold = gold_score(answer + END * chat.ended, lexicon(CORPUS))
        assert verdict == f"      reward model {score:+.2f}, gold rubric {gold:+.2f}"
    assert program.main(["compare", "Who?", "--seed", "1"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    "prompt, reason", [(" ", "there is nothing to ask"), ("x" * 500, "say it shorter")]
)
def test_a_prompt_that_cannot_be_asked_is_2_and_a_sentence(
    judged, asked, capsys, prompt, reason
):
    assert program.main(["compare", prompt]) == 2
    assert reason in capsys.readouterr().err


# A reader's own data

TALKS = [
    dict(id=name, messages=[user(f"{name}, who art thou?"), assistant("A friend.")])
    for name in ("Ho", "Ay")
]
PAIRS = [
    pair(name, f"{name}, who art thou?", "A friend.", "None.")
    for name in ("Ho", "Ay", "So")
]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """A reader's folder, an empty stages folder beside it, all runs short, and the
    lengths of those that took place.
    """
    tiny_stages(monkeypatch, tmp_path / "stages")
    monkeypatch.setattr(
        program.corpus,
        "load",
        lambda: Corpus("To be, or not to be.\n" * 300, "test", "0" * 64),
    )
    trained = []
    monkeypatch.setattr(
        program, "progress", lambda steps, total: trained.append(total) or steps
    )
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return trained


def write(name, rows):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return name


def stored_stages():
    return sorted(
        path.name.split("-")[0] for path in store.stages_folder().glob("*.json")
    )


def test_your_own_conversations_train_a_model_once_which_is_found_and_talks(
    desk, capsys, monkeypatch
):
    write("my talks.jsonl", TALKS)
    assert program.main(["train", "sft", "--data", "my talks.jsonl"]) == 0
    first, course, *shown, use = capsys.readouterr().out.splitlines()
    assert first == "The sft model has learned from 2 conversations." and desk == [2, 2]
    # Three answers before and after, and how many end
    questions = heldout_prompts()[:3]
    assert [line.strip() for line in shown[:9:3]] == questions
    assert all(
        "before: " in a and "after:  " in b for a, b in zip(shown[1::3], shown[2::3])
    )
    assert any("answers come to their end" in line for line in shown)
    assert (
        course.startswith("loss 4.")
        and " nats per graded token (means of 1 steps); 0 s" in course
    )
    assert use == "Try it: python -m posttrain chat --stage sft --data 'my talks.jsonl'"
    chats, folder = [], sorted(os.listdir(store.stages_folder()))
    monkeypatch.setattr(program, "converse", chats.append)
    for again in (["train", "sft", "--data", "my talks.jsonl"], shlex.split(use)[5:]):
        assert program.main(again) == 0
    assert (
        desk == [2, 2]
        and sorted(os.listdir(store.stages_folder())) == folder
        and stored_stages() == ["base", "sft"]
    )
    printed = capsys.readouterr().out.splitlines()
    kept = [first, course, *shown, use]
    assert printed[:-1] == kept and printed[-1].startswith("The sft model.")
    model, _ = stages.sft_model(
        program.corpus.load(), data=stages.data_for("sft", "my talks.jsonl", None)
    )
    assert desk == [2, 2] and same(weights(model), chats[0].model)
    # It is not the book's
    assert not same(weights(stages.sft_model(program.corpus.load())[0]), model)


def test_a_setting_is_another_model_which_is_found_with_it(desk, capsys, monkeypatch):
    given = ["--set", "batch_size=2", "--set", "replay_weight=0.5"]
    assert program.main(["train", "sft", *given]) == 0 and desk == [2, 2]
    use = capsys.readouterr().out.splitlines()[-1]
    assert use.endswith(f"chat --stage sft {shlex.join(given)}")
    chats = []
    monkeypatch.setattr(program, "converse", chats.append)
    assert program.main(shlex.split(use)[5:]) == 0 and desk == [2, 2]
    config = stages.SFTConfig(batch_size=2, replay_weight=0.5)
    model, _ = stages.sft_model(program.corpus.load(), config)
    assert same(weights(model), chats[0].model) and len(desk) == 2
    usual, _ = stages.sft_model(program.corpus.load())
    assert not same(weights(usual), model)


@pytest.mark.parametrize(
    ("stage", "given", "message"),
    [
        (
            "dpo",
            "bta=1",
            "DPOConfig has no setting 'bta': use one of steps, batch_size",
        ),
        ("dpo", "beta", "'beta' sets nothing: write it as NAME=VALUE"),
        ("dpo", "steps=many", "steps is 'many': use a whole number"),
        ("dpo", "beta=", "beta is '': use a number"),
        ("dpo", "beta=-1", "beta is -1.0: use a number above 0"),
        ("sft", "mask=maybe", "mask is 'maybe': use true or false"),
        ("base", "model=big", "PretrainConfig has no setting 'model'"),
    ],
)
def test_a_setting_that_cannot_be_is_named_and_nothing_is_trained(
    desk, capsys, stage, given, message
):
    assert program.main(["train", stage, "--set", given]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(message) and printed.err.count("\n") == 1
    assert desk == [] and not printed.out


def test_prompts_of_your_own_are_practised_on_and_asked(desk, capsys, monkeypatch):
    rows = [dict(id=str(i), prompt=text) for i, text in enumerate(["Ho?", "Ay?"])]
    asked, steps = [], stages.ppo_steps
    monkeypatch.setattr(
        stages,
        "ppo_steps",
        lambda models, prompts, config: (
            asked.extend(prompts) or steps(models, prompts, config)
        ),
    )
    assert program.main(["train", "ppo", "--prompts", write("mine.jsonl", rows)]) == 0
    assert asked == ["Ho?", "Ay?"] and "  Ho?\n" in capsys.readouterr().out
    assert program.main(["compare", "--prompts", "mine.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "\nHo?\n" in printed and "\nAy?\n" in printed
    assert printed.count("\nbase ") == printed.count("\ndpo  ") == 2


def test_all_models_of_your_own_data_are_compared(desk, capsys):
    own = ["--data", write("pairs.jsonl", PAIRS)]
    own += ["--conversations", write("mine.jsonl", TALKS)]
    assert program.main(["compare", "Who?", *own]) == 0
    trained = len(desk)
    assert capsys.readouterr().out.count("gold rubric") == 4
    for stage in ("reward", "ppo", "dpo"):
        assert program.main(["train", stage, *own]) == 0
    assert program.main(["train", "sft", "--data", "mine.jsonl"]) == 0
    assert len(desk) == trained
    assert program.main(["compare", "Who?", "--set", "steps=3"]) == 2


@pytest.mark.parametrize("given", [[], ["Who?", "--prompts", "x.jsonl"]])
def test_compare_asks_a_prompt_or_a_file_of_them(given, capsys):
    with pytest.raises(SystemExit) as left:
        command_line.parse(["compare", *given])
    assert left.value.code == 2 and "a file with --prompts" in capsys.readouterr().err


def test_the_bar_names_the_stage_that_is_trained(tmp_path, monkeypatch):
    from posttrain.show import progress

    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path))
    monkeypatch.delenv("BOOK_BUILD", raising=False)
    named = []

    def train():
        named.append(progress(range(1), total=1).desc)
        return {"a": torch.ones(1)}, {}

    store.obtain("toy-stage", {}, train, code_of=CharTokenizer)
    assert named == ["training toy-stage"]
    assert progress(range(1), total=1).desc == "training"


def test_another_row_or_seed_is_another_model_and_another_file_is_not(desk, capsys):
    def trains(*arguments):
        before = len(desk)
        assert program.main(["train", "sft", "--data", *arguments]) == 0
        return len(desk) > before

    assert trains(write("mine.jsonl", TALKS)) and not trains(write("copy.jsonl", TALKS))
    assert trains(
        write(
            "mine.jsonl",
            [*TALKS[:1], dict(TALKS[1], messages=[user("Hi"), assistant("Ay.")])],
        )
    )
    assert trains("copy.jsonl", "--seed", "3") and not trains(
        "copy.jsonl", "--seed", "3"
    )
    assert (
        capsys.readouterr()
        .out.splitlines()[-1]
        .endswith("chat --stage sft --data copy.jsonl --model-seed 3")
    )
    assert stored_stages() == ["base", "sft", "sft", "sft"]


@pytest.mark.parametrize(
    ("stage", "runs", "course"),
    [
        ("reward", [2] * 3, "of the pairs ranked right"),
        ("dpo", [2] * 3, "nats per pair"),
        ("ppo", [2, 2, 2, 1], "KL to the SFT model"),
    ],
)
def test_pairs_of_your_own_train_what_learns_from_pairs_after_your_own_sft_model(
    desk, capsys, monkeypatch, stage, runs, course
):
    write("pairs.jsonl", PAIRS), write("mine.jsonl", TALKS)
    assert program.main(["train", "sft", "--data", "mine.jsonl"]) == 0
    own = ["--data", "pairs.jsonl", "--conversations", "mine.jsonl"]
    assert program.main(["train", stage, *own]) == 0 and desk == runs
    printed = capsys.readouterr().out.splitlines()
    at = printed.index(
        f"The {stage} model has learned from 3 pairs, after the SFT model's 2 "
        "conversations."
    )
    first, how, *shown, use = printed[at:]
    said = {
        "reward": ["Ranked right: ", "held-out pairs"],
        "dpo": ["Ranked right: ", "KL to the SFT model", "before: ", "after: "],
        "ppo": ["KL to the SFT model", "before: ", "after: "],
    }
    assert all(any(words in line for line in shown) for words in said[stage])
    assert (
        first == f"The {stage} model has learned from 3 pairs, after the SFT model's 2 "
        "conversations."
    )
    assert course in how and stored_stages() == sorted(
        ["base", "sft", *dict(ppo=["reward"]).get(stage, []), stage]
    )
    chats = []
    monkeypatch.setattr(program, "converse", chats.append)
    assert (
        use.endswith(shlex.join(own))
        and program.main(shlex.split(use)[5:]) == 0
        and desk == runs
    )
    if stage == "reward":
        assert capsys.readouterr().out.startswith("reward model  ")
    # Take one pair away, and only what learned from it is trained anew
    write("pairs.jsonl", PAIRS[:2])
    assert program.main(["train", stage, *own]) == 0 and desk == runs + runs[2:]


def test_pairs_alone_start_from_the_books_own_sft_model(desk, capsys):
    assert program.main(["train", "sft"]) == 0 and desk == [2, 2]
    assert program.main(
        ["train", "dpo", "--data", write("pairs.jsonl", PAIRS)]
    ) == 0 and desk == [2, 2, 2]
    assert "3 pairs, after the SFT model's 40 conversations" in capsys.readouterr().out


def test_ppo_practises_on_the_prompts_of_your_own_pairs(desk, monkeypatch):
    asked, steps = [], stages.ppo_steps
    monkeypatch.setattr(
        stages,
        "ppo_steps",
        lambda models, prompts, config: (
            asked.extend(prompts) or steps(models, prompts, config)
        ),
    )
    assert program.main(["train", "ppo", "--data", write("pairs.jsonl", PAIRS)]) == 0
    assert set(asked) == {row["prompt"] for row in PAIRS}


def test_one_row_is_fewer_than_any_batch_and_enough(desk, capsys):
    own = [
        "--data",
        write("pairs.jsonl", PAIRS[:1]),
        "--conversations",
        write("mine.jsonl", TALKS[:1]),
    ]
    for stage in ("reward", "ppo", "dpo"):
        assert program.main(["train", stage, *own]) == 0
    assert (
        capsys.readouterr().out.count("1 pair, after the SFT model's 1 conversation.")
        == 3
    )


@pytest.mark.parametrize(
    ("stage", "module"), [("reward", "reward_model"), ("dpo", "stages")]
)
def test_your_own_pairs_are_compared(desk, monkeypatch, stage, module):
    module, compared = importlib.import_module(f"posttrain.{module}"), []
    encode = module.encode_pairs

    def spy(rows, *rest):
        compared.extend(rows)
        return encode(rows, *rest)

    monkeypatch.setattr(module, "encode_pairs", spy)
    pairs, talks = write("pairs.jsonl", PAIRS), write("mine.jsonl", TALKS)
    own = ["--data", pairs, "--conversations", talks]
    assert program.main(["train", stage, *own]) == 0
    assert compared == PAIRS


def test_without_data_the_books_own_is_learned_and_a_base_model_reads_the_corpus(
    desk, capsys
):
    for stage in ("base", "dpo"):
        assert program.main(["train", stage]) == 0
    first, course, use, then, *_ = capsys.readouterr().out.splitlines()
    assert first == "The base model has learned from the corpus." and use.endswith(
        "posttrain chat --stage base"
    )
    assert (
        "nats per character (means of 2 steps)" in course
        and "18 pairs, after the SFT model's 40 conv" in then
    )


LONG_TALK = dict(id="long", messages=[user("x" * 250), assistant("y" * 50)])
REFUSED = {
    "missing file": (
        "sft --data nowhere.jsonl",
        "",
        ["nowhere.jsonl cannot be read: No such file"],
    ),
    "no name": ("sft --data=", "", [". cannot be read: "]),
    "empty file": (
        "sft --data {}",
        "",
        ["{} holds no lines: it needs at least one conversation"],
    ),
    "not JSON": (
        "sft --data {}",
        "oops",
        ["line 1: not JSON", "A line looks like this: " + example("conversations")],
    ),
    "misfit": (
        "dpo --data {}",
        '{"id": "a"}',
        ["line 1 (id a): it lacks chosen or rejected", example("preferences")],
    ),
    "strange letter": (
        "sft --data {}",
        json.dumps(dict(id="a", messages=[user("7"), assistant("b")])),
        ["'7' (U+0037"],
    ),
    "pairs as conversations": (
        "sft --data {}",
        json.dumps(PAIRS[0]),
        ["{}: this looks like preference pairs", "`train reward --data`"],
    ),
    "conversations as pairs": (
        "ppo --data {}",
        json.dumps(TALKS[0]),
        ["{}: this looks like conversations", "`train sft --data`"],
    ),
    "pairs as the SFT model's": (
        "dpo --conversations {}",
        json.dumps(PAIRS[0]),
        ["{}: this looks like preference pairs"],
    ),
    "too long": (
        "sft --data {}",
        json.dumps(LONG_TALK),
        ["line 1 (id long): 303 tokens", "the model reads 256"],
    ),
    "too long before": (
        "reward --conversations {}",
        json.dumps(LONG_TALK),
        ["line 1 (id long): 303 tokens"],
    ),
    "the same after a cut": (
        "dpo --data {}",
        json.dumps(pair("a", "Who?", "x" * 300 + "a", "x" * 300 + "b")),
        ["line 1 (id a): prompt and chosen: 308 tokens"],
    ),
    "a base model's": (
        "base --data {}",
        json.dumps(TALKS[0]),
        ["choose that with POSTTRAIN_CORPUS"],
    ),
    "an SFT model's": (
        "sft --conversations {}",
        json.dumps(TALKS[0]),
        ["name it with --data"],
    ),
}


@pytest.mark.parametrize("command", ["train", "chat"])
@pytest.mark.parametrize("reason", REFUSED)
def test_data_that_cannot_be_used_is_2_and_its_reasons_before_anything_is_trained(
    desk, capsys, monkeypatch, command, reason
):
    monkeypatch.setattr(program.corpus, "load", refuse)
    arguments, text, expected = REFUSED[reason]
    with open("mine.jsonl", "w", encoding="utf-8") as file:
        file.write(text)
    stage, *rest = arguments.format("mine.jsonl").split()
    if command == "chat" and stage != "reward":
        stage = f"--stage={stage}"
    elif command == "chat":
        command, stage, rest = "score", "Who?", ["I am.", *rest]
    assert program.main([command, stage, *rest]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    for part in expected:
        assert part.removeprefix("{}") in printed.err
        assert not part.startswith("{}") or printed.err.startswith("mine.jsonl")
    assert desk == [] and not store.stages_folder().exists()


ELSEWHERE = {
    "sft": [
        dict(conversations=[{"from": "human", "value": "Ho?"}, assistant("Ay.")]),
        dict(instruction="Who art thou?", input="", output="A friend."),
    ],
    "dpo": [
        dict(
            chosen=[user("Ho?"), assistant("Ay.")],
            rejected=[user("Ho?"), assistant("No.")],
        ),
        dict(prompt=[user("Who?")], chosen=[assistant("I.")], rejected="Thou."),
    ],
}


@pytest.mark.parametrize("stage", ELSEWHERE)
def test_data_in_other_forms_trains_and_bad_rows_are_left_out_and_counted(
    desk, capsys, stage
):
    path = write("mine.jsonl", [*ELSEWHERE[stage], dict(text="Ho?"), dict(id="c")])
    assert program.main(["train", stage, "--data", path]) == 2 and desk == []
    told = capsys.readouterr().err
    assert told.startswith("mine.jsonl: 2 of 4 rows cannot be used:\n  line 3: ")
    assert "line 4 (id c): " in told and "--skip-bad: 2 of 4 rows are good" in told
    given = ["--data", path, "--skip-bad"]
    assert program.main(["train", stage, *given]) == 0
    first, second, *_, use = capsys.readouterr().out.splitlines()
    assert first == "mine.jsonl: 2 of 4 rows are left out (line 3, line 4)."
    assert f"has learned from 2 {'pairs' if stage == 'dpo' else 'conv'}" in second
    assert use.endswith(shlex.join(given))


def test_compare_reads_a_file_once_and_its_prompts_in_any_form(desk, capsys):
    pairs = write("pairs.jsonl", [*ELSEWHERE["dpo"], dict(text="Ho?")])
    asked = write("asked.jsonl", [dict(prompt=[user("Ho?")]), dict(prompt="Ay?")])
    given = ["--prompts", asked, "--data", pairs, "--skip-bad"]
    assert program.main(["compare", *given]) == 0
    printed = capsys.readouterr().out
    assert printed.count("1 of 3 rows are left out (line 3)") == 1
    assert printed.count("\nbase ") == 2


@pytest.mark.parametrize(
    ("stage", "rate"),
    [
        ("base", "1e30"),
        ("sft", "1e30"),
        ("reward", "1e30"),
        ("dpo", "1e300"),
        ("ppo", "1e30"),
    ],
)
def test_losses_that_are_no_numbers_are_2_and_a_sentence_and_earlier_stages_kept(
    desk, capsys, stage, rate
):
    name = "adamw_lr" if stage in ("base", "sft") else "lr"
    assert program.main(["train", stage, "--set", f"{name}={rate}"]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1 and printed.out == ""
    assert re.search("lower (the|its) (learning )?rate", printed.err)
    before = dict(base=[], sft=["base"], ppo=["base", "reward", "sft"])
    assert set(before.get(stage, ["base", "sft"])) <= set(stored_stages())


def test_data_that_teaches_nothing_is_2_and_a_sentence_and_leaves_no_stage(
    desk, capsys, monkeypatch
):
    def useless(*arguments):
        raise ValueError("all responses have the same score")

    monkeypatch.setattr(stages, "normalise", useless)
    assert program.main(["train", "reward", "--data", write("pairs.jsonl", PAIRS)]) == 2
    assert capsys.readouterr() == (
        "",
        "The reward model cannot learn from this data: all responses have the same "
        "score\n",
    )
    assert stored_stages() == ["base", "sft"] and not list(
        store.stages_folder().glob("reward*[!k]")
    )
    # With the book's own data it would be a fault of the program
    with pytest.raises(ValueError, match="all responses have the same score"):
        program.main(["train", "reward"])


def test_a_text_that_cannot_be_used_is_2_and_a_sentence(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("POSTTRAIN_CORPUS", str(tmp_path / "nowhere.txt"))
    assert program.main(["train", "base"]) == 2
    assert "nowhere.txt does not exist" in capsys.readouterr().err
