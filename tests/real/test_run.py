"""Whole runs on tiny models: from the command line, cut off and taken up, one upon the
other; and what is refused.
"""

import copy
import json
import re
import shutil
import sys

import pytest

pytest.importorskip("transformers")
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from real_models import (  # noqa: E402
    CONVERSATIONS,
    PAIRS,
    data_file,
    folder,
    tokenizer,
)

from posttrain.chat import IGNORE  # noqa: E402
from posttrain.cli.commands import main  # noqa: E402
from posttrain.data.datasets import DatasetError  # noqa: E402
from posttrain.lora.adapters import is_transposed, linear_kinds  # noqa: E402
from posttrain.lora.nf4 import (  # noqa: E402
    NF4Linear,
    dequantize,
    dequantize_scales,
    named_layers,
    nf4_levels,
    quantize,
    quantize_scales,
)
from posttrain.optim import Descent  # noqa: E402
from posttrain.real import model as real_model  # noqa: E402
from posttrain.real import run as real_run  # noqa: E402
from posttrain.real.adapter import (
    adapter_settings,
    peft_state,
    quantize_blocks,
    targets_of,
)  # noqa: E402
from posttrain.real.checkpoint import CHECKPOINT, METRICS, read_metrics  # noqa: E402
from posttrain.real.memory import Setting, architecture_of, stage_memory  # noqa: E402
from posttrain.real.model import ModelError, load_config, load_model  # noqa: E402
from posttrain.real.run import (  # noqa: E402
    Setup,
    begin,
    open_model,
    open_tokenizer,
    refuse_no_numbers,
    run,
)
from posttrain.real.training import RealConfig  # noqa: E402

CONFIG = RealConfig(
    steps=5, batch_size=4, micro_batch_size=2, lr=1e-2, max_length=200, max_new_tokens=8
)


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    pairs = data_file(place / "pairs.jsonl", PAIRS)
    return dict(
        sft=data_file(place / "conversations.jsonl", CONVERSATIONS),
        reward=pairs,
        dpo=pairs,
        ppo=pairs,
    )


@pytest.fixture(scope="module")
def judge(files, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("judge") / "out")
    run(Setup(folder(), files["reward"], out, device="cpu"), config("reward"))
    return out


def config(stage, **changes):
    return RealConfig(**{**vars(CONFIG), "stage": stage, **changes})


def setup(files, stage, out, judge="", **changes):
    options = dict(
        device="cpu", save_every=2, reward_model=judge if stage == "ppo" else ""
    )
    return Setup(
        **{
            **dict(model=folder(), data=files[stage], out=str(out)),
            **options,
            **changes,
        }
    )


def result(out):
    """The tensors and the metrics in a finished run's folder."""
    name = (
        "adapter_model.safetensors"
        if (out / "adapter_config.json").exists()
        else "model.safetensors"
    )
    return safetensors.torch.load_file(out / name), read_metrics(out)


@pytest.mark.parametrize(
    "stage, rank",
    [("sft", 4), ("sft", 0), ("reward", 4), ("dpo", 4), ("dpo", 0), ("ppo", 4)],
)
def test_a_run_that_was_killed_ends_as_the_unbroken_one_bit_for_bit(
    files, judge, tmp_path, stage, rank
):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run(setup(files, stage, whole, judge, rank=rank), config(stage))
    # Stop after step 3, behind the checkpoint of step 2; and once before there is any
    options = setup(files, stage, broken, judge, rank=rank), config(stage)
    run(*options, resume=True, stop_after=1)
    run(*options, resume=True, stop_after=3)
    assert len(read_metrics(broken)) == 3 and (broken / CHECKPOINT).exists()
    with open(broken / METRICS, "a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')  # killed while it wrote
    history = run(*options, resume=True)
    tensors, metrics = result(whole)
    again, theirs = result(broken)
    assert metrics == theirs == history and [row["step"] for row in metrics] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert set(tensors) == set(again) and all(
        torch.equal(tensors[name], again[name]) for name in tensors
    )
    assert not list(broken.glob("*.part")) and not (broken / CHECKPOINT).exists()


def test_the_stages_stand_one_upon_the_other(files, tmp_path):
    sft, dpo = tmp_path / "sft", tmp_path / "dpo"
    run(setup(files, "sft", sft), config("sft"))
    session = begin(setup(files, "dpo", dpo, model=str(sft)), config("dpo"))
    # The second starts from the first one's result, merged
    trained = begin(setup(files, "sft", tmp_path / "x"), config("sft")).trained["model"]
    state = safetensors.torch.load_file(sft / "adapter_model.safetensors")
    for name, module in trained.inner.named_modules():
        if hasattr(module, "adapter"):
            module.adapter.A.data = state[f"base_model.model.{name}.lora_A.weight"]
            module.adapter.B.data = state[f"base_model.model.{name}.lora_B.weight"]
    tokens = torch.arange(40).view(2, 20)
    torch.testing.assert_close(
        session.trained["model"](tokens), trained(tokens), rtol=0, atol=1e-5
    )
    assert not torch.allclose(
        trained(tokens), load_model(folder())(tokens).logits, atol=1e-2
    )
    history = run(setup(files, "dpo", dpo, model=str(sft)), config("dpo"))
    assert history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    tokenizer, _ = open_tokenizer(str(dpo))
    merged = open_model(str(dpo), tokenizer, False, torch.float32)
    assert not torch.allclose(merged(tokens).logits, trained(tokens), atol=1e-3)


def test_a_model_without_a_template_gets_rows_for_the_new_tokens_and_learns_them(
    files, tmp_path
):
    bare = folder("gpt2", chat=False)
    before = load_model(bare)
    session = begin(setup(files, "sft", tmp_path / "out", model=bare), config("sft"))
    model, V = session.trained["model"], before.config.vocab_size
    tokens = torch.arange(60).view(3, 20)
    # Old tokens' logits are what they were, and a new one's is the mean of them
    logits, old = model(tokens), before(tokens).logits
    torch.testing.assert_close(logits[..., :V], old, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        logits[..., V:], old.mean(-1, keepdim=True).expand(-1, -1, 2), rtol=0, atol=1e-4
    )
    run(setup(files, "sft", tmp_path / "out", model=bare), config("sft", steps=8))
    rows = result(tmp_path / "out")[0][
        "base_model.model.transformer.wte.token_adapter.trainable_tokens_delta"
    ]
    assert rows.shape == (2, 64) and not torch.allclose(rows[0], rows[1], atol=1e-3)


def test_the_reference_of_dpo_is_without_the_new_rows_too(files, tmp_path):
    bare = folder("gpt2", chat=False)
    history = run(setup(files, "dpo", tmp_path / "out", model=bare), config("dpo"))
    assert (
        history[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
        and history[-1]["loss"] != history[0]["loss"]
    )


def test_qlora_trains_adapters_and_half_precision_keeps_them_in_single(files, tmp_path):
    session = begin(
        setup(files, "sft", tmp_path / "a", nf4=True, bf16=True), config("sft")
    )
    inner = session.trained["model"].inner
    assert type(inner.model.layers[0].mlp.up_proj).__name__ == "NF4Linear"
    kinds = {p.dtype: p.requires_grad for p in inner.parameters()}
    assert kinds == {torch.float32: True, torch.bfloat16: False}
    history = run(
        setup(files, "sft", tmp_path / "a", nf4=True, bf16=True), config("sft", steps=8)
    )
    assert history[-1]["loss"] < history[0]["loss"] - 0.1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_packed_blocks_are_the_model_with_its_matrices_rounded(kind):
    """GPT-2 keeps its matrices as (in, out): the blocks that are rounded together are
    those of (out, in).
    """
    rounded, packed = load_model(folder(kind)), load_model(folder(kind))
    levels, tokens = nf4_levels(), torch.arange(40).view(2, 20)
    whole = rounded(tokens).logits
    for _, layer in named_layers(rounded, linear_kinds(rounded), targets_of(rounded)):
        turn = (
            (lambda weight: weight.mT)
            if is_transposed(layer)
            else (lambda weight: weight)
        )
        weight = turn(layer.weight.detach())
        codes, scales = quantize(weight, levels)
        scales = dequantize_scales(quantize_scales(scales), len(scales))
        layer.weight.data = turn(dequantize(codes, scales, levels, weight.shape))
    quantize_blocks(packed)
    left = [
        name
        for name, layer in packed.named_modules()
        if isinstance(layer, linear_kinds(rounded)) and not isinstance(layer, NF4Linear)
    ]
    assert left == ["lm_head"]
    torch.testing.assert_close(
        packed(tokens).logits, rounded(tokens).logits, rtol=0, atol=1e-5
    )
    assert (whole - rounded(tokens).logits).abs().max() > 1e-3


def test_qlora_of_gpt2_is_saved_as_what_peft_expects_of_its_layers(files, tmp_path):
    options = setup(files, "sft", tmp_path / "out", model=folder("gpt2"), nf4=True)
    history = run(options, config("sft", steps=8))
    assert history[-1]["loss"] < history[0]["loss"] - 0.1
    state, settings = result(tmp_path / "out")[0], adapter_settings(tmp_path / "out")
    assert settings["fan_in_fan_out"] and settings["target_modules"] == [
        "c_attn",
        "c_proj",
        "c_fc",
    ]
    assert state[
        "base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"
    ].shape == (3 * 64, 8)
    # Merged into the whole weights it is a change of as many digits
    merged, base = (
        open_model(
            str(tmp_path / "out"),
            open_tokenizer(folder("gpt2"))[0],
            False,
            torch.float32,
        ),
        load_model(folder("gpt2")),
    )
    change = (
        merged.transformer.h[0].attn.c_attn.weight
        - base.transformer.h[0].attn.c_attn.weight
    )
    assert torch.linalg.matrix_rank(change) == 8


def test_in_half_precision_what_is_trained_stays_in_single(files, tmp_path):
    for rank, kinds in (
        (4, {torch.float32: True, torch.bfloat16: False}),
        (0, {torch.float32: True}),
    ):
        session = begin(
            setup(files, "sft", tmp_path / "a", rank=rank, bf16=True), config("sft")
        )
        assert {
            p.dtype: p.requires_grad for p in session.trained["model"].parameters()
        } == kinds


def test_all_weights_can_be_trained_and_the_result_is_a_model(files, tmp_path):
    run(setup(files, "sft", tmp_path / "out", rank=0), config("sft"))
    before, after = load_model(folder()), load_model(str(tmp_path / "out"))
    assert all(
        not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters())
    )
    assert not (tmp_path / "out" / "writing").exists()


def test_a_new_adapter_changes_nothing(files, tmp_path):
    session = begin(setup(files, "sft", tmp_path / "out"), config("sft"))
    tokens = torch.arange(40).view(2, 20)
    assert torch.equal(
        session.trained["model"](tokens), load_model(folder())(tokens).logits
    )
    assert all(
        not value.any()
        for name, value in peft_state(session.trained["model"].inner).items()
        if "lora_B" in name
    )


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
@pytest.mark.parametrize("rank", [0, 4])
def test_what_a_stage_holds_is_what_is_computed_for_it(
    files, judge, tmp_path, stage, rank
):
    session = begin(
        setup(files, stage, tmp_path / "out", judge, rank=rank), config(stage)
    )
    shape, setting = architecture_of(load_config(folder())), Setting(4, 200, rank=rank)
    parts = stage_memory(stage, shape, setting)
    sizes = [
        (p.numel() * p.element_size(), p.requires_grad)
        for p in session.trained.parameters()
    ]
    assert parts["weights"] + parts["adapters"] == pytest.approx(
        sum(size for size, _ in sizes), rel=0.005
    )
    assert (
        parts["gradients"]
        == parts["adam"] / 2
        == pytest.approx(sum(size for size, trained in sizes if trained), rel=0.02)
    )
    # The models beside those that are trained are in the closures of its steps
    cells = dict(zip(session.steps.__code__.co_freevars, session.steps.__closure__))
    others = [cells["reference"].cell_contents] if stage == "dpo" else []
    others += (
        [
            getattr(cells["models"].cell_contents, name)
            for name in ("reference", "reward_model")
        ]
        if stage == "ppo"
        else []
    )
    own = {p.data_ptr() for p in session.trained.parameters()}
    held = {
        p.data_ptr(): p.numel() * p.element_size()
        for model in others
        for p in model.parameters()
    }
    assert parts["other_models"] == pytest.approx(
        sum(size for place, size in held.items() if place not in own), rel=0.005
    )
    assert (parts["logits"] == 0) == (stage == "reward") and parts["total"] == sum(
        parts.values()
    ) - parts["total"]
    one = stage_memory("sft", shape, setting)["activations"]
    assert parts["activations"] == one * (2 if stage == "ppo" else 1)


# The command line


def command(capsys, *arguments):
    code = main(["real", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.split("\r")[-1]


def test_the_command_trains_and_says_how_to_load(files, tmp_path, capsys):
    out = tmp_path / "out"
    flags = (
        "--steps",
        2,
        "--max-length",
        200,
        "--device",
        "cpu",
        "--lora-rank",
        2,
        "--checkpointing",
        "--bf16",
    )
    code, said, _ = command(
        capsys,
        "--model",
        folder(),
        "--stage",
        "sft",
        "--data",
        files["sft"],
        "--out",
        out,
        *flags,
    )
    assert (
        code == 0
        and re.search(r"2 steps: loss 5\.\d+ -> 5\.\d+", said)
        and "PeftModel.from_pretrained" in said
    )
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    code, _, error = command(
        capsys,
        "--model",
        folder(),
        "--stage",
        "sft",
        "--data",
        files["sft"],
        "--out",
        out,
    )
    assert (
        code == 2
        and error
        == f"{out} is not empty: --resume goes on with a run, or choose another "
        "folder\n"
    )
    code, _, error = command(
        capsys,
        "--model",
        folder(),
        "--stage",
        "sft",
        "--data",
        files["sft"],
        "--out",
        out,
        "--resume",
    )
    assert code == 2 and error == f"the run in {out} is finished\n"


def test_a_dry_run_needs_a_configuration_only_and_trains_nothing(tmp_path, capsys):
    (tmp_path / "config.json").write_text(
        json.dumps(
            dict(
                model_type="llama",
                vocab_size=128256,
                hidden_size=4096,
                num_hidden_layers=32,
                num_attention_heads=32,
                num_key_value_heads=8,
                intermediate_size=14336,
                tie_word_embeddings=False,
            )
        )
    )
    flags = (
        "--qlora",
        "--bf16",
        "--checkpointing",
        "--micro-batch-size",
        1,
        "--lora-rank",
        16,
        "--dry-run",
    )
    code, said, _ = command(capsys, "--model", tmp_path, "--stage", "sft", *flags)
    assert code == 0 and re.fullmatch(
        r"Memory, with 1 rows of 1024 tokens at once: 8\.\d\d GB \(weights 5\.70, "
        r".*\)\n",
        said,
    )
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    code, said, _ = command(
        capsys, "--model", tmp_path, "--stage", "dpo", "--full", "--dry-run"
    )
    assert code == 0 and "4 rows" in said and "other_models 32.12" in said


@pytest.mark.parametrize(
    "flags, message",
    [
        (("--model", "./nowhere"), r"\./nowhere: no such folder"),
        (
            ("--model", "no/such-model"),
            r"no/such-model cannot be loaded \(.*or the name of a model on the hub, "
            r"with a network",
        ),
        (
            ("--device", "cuda:7"),
            "there is no device 'cuda:7' here: use one of auto, cpu",
        ),
        (
            ("--data", "nowhere.jsonl"),
            "nowhere.jsonl cannot be read: No such file or directory",
        ),
        (
            ("--max-length", 9),
            r"10 of 10 rows cannot be used:\n  line 1 \(id c01\): it has "
            r"\d+ tokens and the longest allowed is 9: .* --max-length",
        ),
        (("--steps", 0), "steps is 0: use at least 1"),
        (
            ("--full", "--qlora"),
            "weights in four bits cannot be trained: give adapters a rank above 0",
        ),
        (("--stage", "ppo"), "ppo needs a judge: --reward-model FOLDER"),
        (
            ("--stage", "ppo", "--reward-model", "MODEL"),
            "is no reward model: train one with reward",
        ),
        (("--reward-model", "MODEL"), "a reward model is for ppo, not for sft"),
        (
            (
                "--data",
                "",
            ),
            "give --data FILE and --out FOLDER",
        ),
        (("--lora-rank", -1), "rank is -1: use at least 0"),
    ],
)
def test_what_cannot_work_is_said_in_a_line(files, tmp_path, capsys, flags, message):
    if torch.cuda.device_count() > 7:
        pytest.skip("eight GPUs")
    flags = [folder() if flag == "MODEL" else flag for flag in flags]
    base = [
        "--model",
        folder(),
        "--stage",
        "sft",
        "--data",
        files["sft"],
        "--out",
        tmp_path / "out",
    ]
    if "ppo" in flags:
        base[5] = files["ppo"]
    code, _, error = command(capsys, *base, *flags)
    assert code == 2 and re.search(message, error), error
    assert error.count("\n") == (11 if "--max-length" in flags else 1)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_run_learns_every_answer_where_the_template_rewrites_earlier_ones(
    tmp_path, monkeypatch
):
    model = shutil.copytree(folder(), tmp_path / "model")
    forgetful = copy.deepcopy(tokenizer())
    forgetful.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ m['content'] if loop.last or m['role'] == 'user' else 'gone' }}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    forgetful.save_pretrained(model)
    turns = CONVERSATIONS[0]["messages"][:2] + CONVERSATIONS[1]["messages"][:2]
    data = data_file(tmp_path / "talk.jsonl", [dict(id="a", messages=turns)])
    seen = []
    monkeypatch.setattr(
        real_run, "real_sft_steps", lambda model, rows, *rest: seen.extend(rows)
    )
    given = setup(dict(sft=data), "sft", tmp_path / "out", model=str(model))
    begin(given, config("sft")).steps(0, {})
    said = [
        forgetful.decode([label for label in labels if label != IGNORE])
        for _, labels in seen
    ]
    assert said == [f"{turn['content']}<|im_end|>" for turn in turns[1::2]]


@pytest.mark.parametrize(
    "stage, text, said",
    [
        ("dpo", "plain " * 200, "text is replayed in sft alone, not in dpo"),
        ("sft", "plain", "has . tokens: replay needs more than 64"),
        ("sft", None, "cannot be replayed: No such file"),
        ("sft", b"\xff\xfe", "cannot be replayed: it is no text in UTF-8"),
    ],
)
def test_a_text_that_cannot_be_replayed_is_refused(files, tmp_path, stage, text, said):
    path = tmp_path / "plain.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=said):
        begin(setup(files, stage, tmp_path / "out", replay=str(path)), config(stage))


def test_a_run_goes_on_with_the_text_that_it_was_begun_with(files, tmp_path):
    path, out = tmp_path / "plain.txt", tmp_path / "out"
    path.write_text("The bus used to stop in front of the library. " * 20)
    whole = setup(files, "sft", tmp_path / "whole", replay=str(path), save_every=1)
    chosen = setup(files, "sft", out, replay=str(path), save_every=1)
    run(chosen, config("sft"), stop_after=2)
    assert run(chosen, config("sft"), resume=True) == run(whole, config("sft"))
    shutil.rmtree(out)
    run(chosen, config("sft"), stop_after=2)
    without = setup(files, "sft", out, save_every=1)
    with pytest.raises(ModelError, match="no file does not hold what .*plain.txt held"):
        run(without, config("sft"), resume=True)
    path.write_text("Bread needs four things, and one of them is time. " * 20)
    with pytest.raises(ModelError, match="begun with another replay"):
        run(chosen, config("sft"), resume=True)


def test_a_row_longer_than_the_models_context_is_refused(files, tmp_path):
    long = dict(
        id="long",
        messages=[
            dict(role="user", content="why " * 300),
            dict(role="assistant", content="So."),
        ],
    )
    data = data_file(tmp_path / "long.jsonl", [long])
    with pytest.raises(DatasetError, match="it has .* the longest allowed is 256"):
        begin(
            setup(files, "sft", tmp_path / "out", data=data),
            config("sft", max_length=9000),
        )


def test_a_run_is_taken_up_with_the_settings_it_was_begun_with(files, tmp_path):
    out = tmp_path / "out"
    run(setup(files, "sft", out), config("sft"), stop_after=3)
    with pytest.raises(ModelError, match="was begun with another lr: give the same"):
        run(setup(files, "sft", out), config("sft", lr=0.5), resume=True)


def test_without_transformers_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        ModelError,
        match=re.escape(f"transformers is not installed: {real_model.INSTALL}"),
    ):
        load_model(folder())


# Data and folders as they come


def asked(text):
    return dict(role="user", content=text)


def told(text):
    return dict(role="assistant", content=text)


SYSTEM = dict(role="system", content="Be brief.")
FORMS = dict(
    sft=[
        dict(messages=[SYSTEM, asked("Who?"), told("Ich, 你好!")]),
        dict(conversations=[{"from": "human", "value": "?"}, told("So.")], n=3),
        dict(instruction="Add.", input="1, 2", output="3"),
        dict(messages=[asked("a"), told("b") | dict(weight=0), asked("c"), told("d")]),
        dict(messages=[asked("Who?"), told("I.")], tools=[dict(name="f")]),
    ],
    dpo=[
        dict(prompt="Who?", chosen=[told("I.")], rejected=[told("Thou.")]),
        dict(
            chosen=[SYSTEM, asked("a"), told("b"), asked("c"), told("d")],
            rejected=[SYSTEM, asked("a"), told("b"), asked("c"), told("e")],
        ),
        dict(prompt="Who?", chosen="I."),
    ],
    ppo=[
        dict(prompt="Who?"),
        dict(prompt=[SYSTEM, asked("Who?")]),
        dict(prompt="Who?", chosen="I.", rejected="Thou."),
        dict(messages=[asked("Who?"), told("I.")]),
    ],
)


@pytest.mark.parametrize("stage", FORMS)
def test_data_in_peoples_forms_is_read_and_bad_rows_can_be_left_out(
    judge, tmp_path, capsys, stage
):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(FORMS[stage]), encoding="utf-16")
    given, n = dict([(stage, str(path))]), len(FORMS[stage])
    with pytest.raises(DatasetError, match=rf"1 of {n} rows .*\n  row {n}: "):
        begin(setup(given, stage, tmp_path / "out", judge), config(stage))
    options = setup(given, stage, tmp_path / "out", judge, skip_bad=True)
    history = run(options, config(stage, steps=2))
    assert len(history) == 2
    assert f"1 of {n} rows are left out (row {n})" in capsys.readouterr().out


def broken(folder_, name, data):
    """A copy of a model's folder in which a file has other bytes."""
    shutil.copytree(folder(), folder_)
    path = folder_ / name
    path.write_bytes(data(path.read_bytes()))
    return str(folder_)


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
BROKEN = {
    "a pointer": (
        "model.safetensors",
        lambda data: POINTER,
        "is a Git-LFS pointer, and not the file itself: fetch that with git lfs pull",
    ),
    "a tokenizer's pointer": ("tokenizer.json", lambda data: POINTER, "is a Git-LFS"),
    "cut weights": (
        "model.safetensors",
        lambda data: data[:-100],
        "bytes, and its header speaks of .*: fetch it again",
    ),
    "cut in the header": (
        "model.safetensors",
        lambda data: data[:100],
        "does not begin as a safetensors file does: fetch it again",
    ),
    "empty weights": ("model.safetensors", lambda data: b"", "does not begin as a"),
    "a cut configuration": (
        "config.json",
        lambda data: data[:20],
        r"config.json is no JSON \(.*: fetch it again",
    ),
    "a cut tokenizer": ("tokenizer.json", lambda data: data[:99], "is no JSON"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_is_cut_or_a_pointer_is_named(files, tmp_path, capsys, kind):
    name, data, message = BROKEN[kind]
    model, out = broken(tmp_path / "model", name, data), tmp_path / "out"
    flags = "--model", model, "--stage", "sft", "--data", files["sft"], "--out", out
    code, _, error = command(capsys, *flags)
    assert code == 2 and re.search(message, error) and error.count("\n") == 1
    assert str(tmp_path / "model" / name) in error and not list(tmp_path.glob("out/*"))
    with pytest.raises(ModelError, match=message):
        begin(setup(files, "sft", out, model=model), config("sft"))
    # A dry run needs the descriptions alone
    code, _, error = command(capsys, *flags, "--dry-run")
    assert code == (0 if name == "model.safetensors" else 2)


def test_a_cut_checkpoint_is_named_and_so_is_a_file_in_the_results_place(
    files, tmp_path, capsys
):
    out = tmp_path / "out"
    run(setup(files, "sft", out), config("sft"), stop_after=3)
    path = out / CHECKPOINT
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelError, match=rf"{CHECKPOINT} has .* bytes, and its header"):
        run(setup(files, "sft", out), config("sft"), resume=True)
    flags = "--model", folder(), "--stage", "sft", "--data", files["sft"], "--out"
    code, _, error = command(capsys, *flags, files["sft"])
    assert code == 2 and "is a file: name a folder with --out" in error
    code, _, error = command(capsys, *flags, f"{files['sft']}/out")
    assert code == 2 and "Not a directory" in error and error.count("\n") == 1


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "ppo"])
def test_losses_that_are_no_numbers_stop_a_run_and_keep_its_checkpoint(
    files, judge, tmp_path, monkeypatch, stage
):
    out, options = tmp_path / "out", config(stage, steps=8)
    step, calls = Descent.step, []

    def overflow(self, number):
        noted = step(self, number)
        calls.append(number)
        # Before the loss that shows it, sft's checkpoint of step 4 would be written
        if number >= (3 if stage == "sft" else 2):
            for group in self.groups:
                group["params"][0].data.fill_(float("nan"))
        return noted

    monkeypatch.setattr(Descent, "step", overflow)
    with pytest.raises(ModelError) as refused:
        run(setup(files, stage, out, judge), options)
    message = str(refused.value)
    assert re.match(
        "step [34] has a loss|the weights are no numbers after step 4", message
    )
    assert f"The checkpoint of step 2 is kept in {out}: begin anew" in message
    state = safetensors.torch.load_file(out / CHECKPOINT)
    assert all(value.isfinite().all() for value in state.values())
    assert all(row["step"] < 5 for row in read_metrics(out))


def test_weights_broken_by_the_last_step_are_not_saved(files, tmp_path):
    out, options = tmp_path / "out", config("sft", steps=1)
    session = begin(setup(files, "sft", out), options)
    with torch.no_grad():
        next(p for p in session.trained.parameters() if p.requires_grad).fill_(
            float("inf")
        )
    with pytest.raises(ModelError, match="no numbers after step 1. No checkpoint was"):
        refuse_no_numbers(session.trained, 1, tmp_path)


@pytest.mark.parametrize("place", ["save_checkpoint", "append_metrics", "save_result"])
def test_a_full_disk_ends_a_run_with_a_sentence_and_keeps_what_there_is(
    files, tmp_path, capsys, monkeypatch, place
):
    calls, real_one = [], getattr(real_run, place)

    def full(*arguments):
        calls.append(place)
        if place == "save_result" or len(calls) > 1:
            raise OSError(28, "No space left on device")
        return real_one(*arguments)

    monkeypatch.setattr(real_run, place, full)
    out = tmp_path / "out"
    flags = "--model", folder(), "--stage", "sft", "--data", files["sft"], "--out", out
    flags += "--steps", 5, "--save-every", 1 if place == "save_result" else 2
    code, _, error = command(capsys, *flags, "--device", "cpu", "--batch-size", 2)
    assert code == 2 and "There is no space left on the disk: free some." in error
    assert "Traceback" not in error
    assert (out / CHECKPOINT).exists() == (place != "append_metrics")


def test_no_memory_is_a_sentence_with_what_to_do(files, tmp_path, capsys, monkeypatch):
    def none(*arguments, **options):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: 9")

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", none)
    flags = "--model", folder(), "--stage", "sft", "--data", files["sft"]
    code, _, error = command(capsys, *flags, "--out", tmp_path / "out")
    assert code == 2 and "There is not enough memory" in error
    assert "--micro-batch-size 1" in error and error.count("\n") == 1
