"""A real model's training: TRL's trainers, peft's adapters and transformers' GPT-2."""

import argparse
import copy
import tempfile
from pathlib import Path

import pytest
import torch
from real_models import data_file, folder
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
)

from posttrain.data import datasets
from posttrain.data.row_files import RowFile
from posttrain.lab.real_trials import CONVERSATIONS, PAIRS
from posttrain.real.adapter import adapt, adapter_settings, merge_adapter, save_adapter
from posttrain.real.command import loading
from posttrain.real.gpt2_weights import load_gpt2
from posttrain.real.model import LanguageModel, ModelError, load_model
from posttrain.real.peers import peft_logits, trl_losses
from posttrain.real.run import Setup, begin, grow, open_model, run, save_result
from posttrain.real.smollm import is_there, smollm2
from posttrain.real.training import RealConfig

peft = pytest.importorskip("peft")
TOKENS = torch.arange(60).view(3, 20)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_each_steps_loss_is_that_of_trls_trainer(kind, stage, tmp_path):
    rows = (
        datasets.conversations()[:11] if stage == "sft" else datasets.preferences()[:11]
    )
    config = RealConfig(
        stage=stage, steps=5, batch_size=4, micro_batch_size=2, lr=3e-3, max_length=256
    )
    options = Setup(
        folder(kind),
        data_file(tmp_path / "rows.jsonl", rows),
        str(tmp_path / "out"),
        rank=0,
        device="cpu",
    )
    ours = [row["loss"] for row in run(options, config)]
    theirs = trl_losses(folder(kind), rows, config)
    assert ours == pytest.approx(theirs, abs=1e-5) and len(set(ours)) == 5


@pytest.mark.skipif(not is_there(), reason="SmolLM2 is not installed: make real")
@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_smollm2s_first_steps_are_those_of_trls_trainer(stage, tmp_path):
    data = CONVERSATIONS if stage == "sft" else PAIRS
    rows = RowFile(data, "conversations" if stage == "sft" else "preferences").kept()
    config = RealConfig(
        stage=stage, steps=3, batch_size=4, micro_batch_size=2, lr=1e-5, max_length=256
    )
    model = str(smollm2())
    options = Setup(model, str(data), str(tmp_path / "out"), rank=0, device="cpu")
    ours = [row["loss"] for row in run(options, config)]
    theirs = trl_losses(model, rows, config)
    print(stage, ours, theirs)
    assert ours == pytest.approx(theirs, rel=1e-4) and len(set(ours)) == 3


@pytest.mark.skipif(not is_there(), reason="SmolLM2 is not installed: make real")
def test_peft_loads_what_was_trained_beside_smollm2(tmp_path):
    config = RealConfig(steps=2, batch_size=4, micro_batch_size=4, lr=1e-3)
    options = Setup(str(smollm2()), str(CONVERSATIONS), str(tmp_path), device="cpu")
    run(options, config)
    ours = load_model(str(smollm2())).eval()
    base, asked = copy.deepcopy(ours), TOKENS + 1000
    with torch.no_grad():
        before = ours(input_ids=asked).logits
        after = merge_adapter(ours, tmp_path)(input_ids=asked).logits
    assert (after - before).abs().max() > 0.01
    theirs = peft_logits(base, tmp_path, asked)
    torch.testing.assert_close(theirs, after, rtol=0, atol=1e-3)


def adapted(kind, new_tokens=None, tied=True, scores=False):
    """A model whose adapters, new rows and head are away from where they start."""
    auto = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
    base = auto.from_pretrained(folder(kind), **(dict(num_labels=1) if scores else {}))
    if not tied:
        base.config.tie_word_embeddings = False
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach() + 0.1)
    inner = copy.deepcopy(base)
    config = adapt(inner, 3, 12.0, torch.Generator().manual_seed(0), new_tokens)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in inner.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return base, inner, config


@pytest.mark.parametrize(
    "kind, new_tokens, tied",
    [
        ("llama", None, True),
        ("gpt2", None, True),
        ("qwen2", None, True),
        ("llama", [3, 17], True),
        ("gpt2", [3, 17], True),
        ("llama", [3, 17], False),
    ],
)
def test_peft_loads_our_adapter_and_gives_our_logits(kind, new_tokens, tied, tmp_path):
    base, inner, config = adapted(kind, new_tokens, tied)
    save_adapter(tmp_path, inner, config, folder(kind))
    ours = inner(input_ids=TOKENS).logits
    assert (ours - base(input_ids=TOKENS).logits).abs().max() > 0.1
    torch.testing.assert_close(
        peft_logits(copy.deepcopy(base), tmp_path, TOKENS), ours, rtol=0, atol=1e-5
    )
    # And so does our own merging
    merged = merge_adapter(copy.deepcopy(base), tmp_path)(input_ids=TOKENS).logits
    torch.testing.assert_close(merged, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_peft_loads_our_reward_models_head(kind, tmp_path):
    base, inner, config = adapted(kind, scores=True)
    for model in (base, inner):
        model.config.pad_token_id = 0
    save_adapter(tmp_path, inner, config, folder(kind))
    theirs = (
        peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path))
        .eval()(input_ids=TOKENS + 1)
        .logits
    )
    torch.testing.assert_close(
        theirs, inner(input_ids=TOKENS + 1).logits, rtol=0, atol=1e-5
    )
    assert adapter_settings(tmp_path)["task_type"] == "SEQ_CLS"


def test_a_trained_runs_folder_is_loaded_by_peft_with_the_tokenizer_in_it(tmp_path):
    bare = folder("gpt2", chat=False)
    data = data_file(tmp_path / "c.jsonl", datasets.conversations()[:8])
    options = Setup(bare, data, str(tmp_path / "out"), device="cpu")
    config = RealConfig(steps=3, lr=1e-2, max_length=256)
    tokenizer = AutoTokenizer.from_pretrained(bare)
    run(options, config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    base = AutoModelForCausalLM.from_pretrained(bare)
    base.resize_token_embeddings(len(tokenizer))
    theirs = peft_logits(
        base, tmp_path / "out", torch.arange(len(tokenizer))[None, -64:]
    )
    # Ours once more, from the beginning
    ours = begin(Setup(**{**vars(options), "out": tempfile.mkdtemp()}), config)
    for _ in ours.steps(0, {}):
        pass
    logits = (
        ours.trained["model"]
        .inner(input_ids=torch.arange(len(tokenizer))[None, -64:])
        .logits
    )
    torch.testing.assert_close(theirs, logits, rtol=0, atol=1e-5)
    assert tokenizer.chat_template and len(tokenizer) == 384 + 2


@pytest.mark.parametrize("chat", [True, False])
def test_the_lines_that_the_command_prints_load_each_stages_result(chat, tmp_path):
    sft = str(tmp_path / "sft")
    stages = {
        sft: (folder(chat=chat), "sft"),
        str(tmp_path / "dpo"): (sft, "dpo"),
        str(tmp_path / "reward"): (sft, "reward"),
    }
    rows = dict(sft=datasets.conversations()[:2]) | dict.fromkeys(
        ("dpo", "reward"), datasets.preferences()[:2]
    )
    for out, (model, stage) in stages.items():
        data = data_file(tmp_path / f"{stage}.jsonl", rows[stage])
        session = begin(
            Setup(model, data, out, rank=2, device="cpu"), RealConfig(stage=stage)
        )
        for parameter in session.trained.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
        save_result(Path(out), session, model)
        tokenizer = AutoTokenizer.from_pretrained(out)
        lines = loading(argparse.Namespace(stage=stage, rank=2, model=model, out=out))
        assert sum("resize" in line for line in lines) == (not chat)
        assert sum("merge_and_unload" in line for line in lines) == (stage != "sft")
        names = {
            kind.__name__: kind
            for kind in (
                AutoModelForCausalLM,
                AutoModelForSequenceClassification,
                peft.PeftModel,
            )
        }
        exec("\n".join(lines), names)
        kept = open_model(out, tokenizer, stage == "reward", torch.float32)
        kept.config.pad_token_id = names["model"].config.pad_token_id = 0
        with torch.no_grad():
            theirs, ours = (
                each.eval()(input_ids=TOKENS[:1] + len(tokenizer) - 60).logits
                for each in (names["model"], kept)
            )
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)


def test_an_adapter_that_is_no_plain_lora_or_does_not_fit_is_refused(tmp_path):
    base, inner, config = adapted("llama")
    save_adapter(tmp_path, inner, config, folder())
    with pytest.raises(ModelError, match="does not fit"):
        merge_adapter(AutoModelForCausalLM.from_pretrained(folder("gpt2")), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(
        path.read_text().replace('"lora_dropout"', '"use_qalora": true, "lora_dropout"')
    )
    with pytest.raises(ModelError, match="use_qalora = true, which is not understood"):
        merge_adapter(base, tmp_path)


def test_growing_is_transformers_resizing_but_for_the_new_rows():
    model, twin = (
        AutoModelForCausalLM.from_pretrained(folder("gpt2")) for _ in range(2)
    )
    grow(model, range(400))
    twin.resize_token_embeddings(400, mean_resizing=False)
    torch.testing.assert_close(
        model(TOKENS).logits[..., :384], twin(TOKENS).logits[..., :384], rtol=0, atol=0
    )
    rows = model.get_input_embeddings().weight
    torch.testing.assert_close(
        rows[384:], rows[:384].mean(0).expand(16, -1), rtol=0, atol=0
    )
    assert model.lm_head.weight is rows and model.config.vocab_size == 400


# GPT-2's weights in the book's transformer


@pytest.mark.parametrize("n_layer, n_head, width", [(1, 1, 8), (3, 2, 24), (2, 6, 48)])
def test_the_books_gpt_with_gpt2s_weights_gives_transformers_logits(
    n_layer, n_head, width, tmp_path
):
    config = GPT2Config(
        vocab_size=97,
        n_positions=32,
        n_embd=width,
        n_layer=n_layer,
        n_head=n_head,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(n_layer)
    peer = GPT2LMHeadModel(config).eval().double()
    with torch.no_grad():
        for parameter in peer.parameters():  # biases and gains, too, away from 0 and 1
            parameter += 0.2 * torch.randn(parameter.shape, dtype=torch.float64)
    peer.save_pretrained(tmp_path)
    ours, tokens = load_gpt2(tmp_path, torch.float64), torch.randint(97, (2, 32))
    torch.testing.assert_close(ours(tokens), peer(tokens).logits, rtol=0, atol=1e-10)
    assert ours.head.weight is ours.embedding.weight
    assert sum(p.numel() for p in ours.parameters()) == sum(
        p.numel() for p in peer.parameters()
    )


def test_a_folder_without_gpt2_in_it_is_refused(tmp_path):
    with pytest.raises(ModelError, match="has no config.json"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").write_text(Path(folder(), "config.json").read_text())
    with pytest.raises(ModelError, match="holds a 'llama' model: give a GPT-2"):
        load_gpt2(tmp_path)
    (tmp_path / "config.json").write_text(
        Path(folder("gpt2"), "config.json").read_text()
    )
    with pytest.raises(ModelError, match="has no model.safetensors"):
        load_gpt2(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(
        Path(folder(), "model.safetensors").read_bytes()
    )
    with pytest.raises(ModelError, match="lacks .*: it is no GPT-2"):
        load_gpt2(tmp_path)


def test_wrapping_takes_nothing_away_and_adds_nothing():
    model = AutoModelForCausalLM.from_pretrained(folder("qwen2"))
    assert torch.equal(LanguageModel(model)(TOKENS), model(TOKENS).logits)
