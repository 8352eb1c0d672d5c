"""Adapters as peft writes them: the same logits when merged, or refused by name."""

import copy
import dataclasses
import functools
import json
import warnings

import pytest

pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from real_models import folder  # noqa: E402

from posttrain.real.adapter import merge_adapter, train_rows  # noqa: E402
from posttrain.real.model import ModelError, library, load_model  # noqa: E402
from posttrain.real.peft_settings import (  # noqa: E402
    ALLOWED,
    READ,
    TOLD,
    adapter_settings,
)
from posttrain.real.run import base_of  # noqa: E402
from posttrain.real.tiny import tiny_config  # noqa: E402

TOKENS = torch.arange(60).view(3, 20)
LINEAR = {  # what has adapters where a case says nothing
    "llama": ["q_proj", "v_proj", "down_proj"],
    "qwen2": ["q_proj", "k_proj", "o_proj"],
    "gpt2": ["c_attn", "c_proj"],
    "untied": ["q_proj", "up_proj"],
}


@functools.cache
def kept(kind, scores=False):
    """A tiny model of a kind, the same each time; "untied" has a head of its own."""
    if kind != "untied":
        return load_model(folder(kind), scores)
    config = tiny_config("llama", 384)
    config.tie_word_embeddings = False
    torch.manual_seed(1)
    return library().AutoModelForCausalLM.from_config(config)


def base(kind, scores=False):
    model = copy.deepcopy(kept(kind, scores))
    model.config.pad_token_id = 0
    return model.eval()


def saved(path, kind, scores=False, **options):
    """An adapter that peft has made and filed, all its numbers away from where they
    began.
    """
    options.setdefault("target_modules", LINEAR[kind])
    options = dict(r=3, lora_alpha=5, task_type="CAUSAL_LM") | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base(kind, scores), peft.LoraConfig(**options))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad or "lora_" in name:
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(path)
    return path


def by_peft(path, kind, scores=False):
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(base(kind, scores), str(path)).eval()
        return model(input_ids=TOKENS + 1).logits


@torch.no_grad()
def by_us(path, kind, scores=False):
    return merge_adapter(base(kind, scores), path)(input_ids=TOKENS + 1).logits


UNDERSTOOD = {
    "plain": dict(),
    "rslora": dict(use_rslora=True),
    "patterns": dict(
        rank_pattern={"layers.0.self_attn.q_proj": 5, "down_proj": 2},
        alpha_pattern={r"layers\.1\..*": 11, "^model.layers.0.self_attn.v_proj": 2},
    ),
    "patterns and rslora": dict(use_rslora=True, rank_pattern={".*q_proj": 7}),
    "dora": dict(use_dora=True),
    "dora and rslora": dict(
        use_dora=True, use_rslora=True, alpha_pattern={"q_proj": 9}
    ),
    "all biases": dict(bias="all"),
    "layers' biases": dict(bias="lora_only"),
    "one layer": dict(layers_to_transform=1),
    "some layers": dict(layers_to_transform=[0], layers_pattern="layers"),
    "excluded": dict(exclude_modules=["down_proj", "model.layers.0.self_attn.q_proj"]),
    "excluded by expression": dict(exclude_modules=r".*layers\.0.*"),
    "an expression": dict(target_modules=r".*\.1\..*(q_proj|up_proj)"),
    "all linear": dict(target_modules="all-linear"),
    "full names": dict(target_modules=["model.layers.1.mlp.up_proj"]),
    "dropout": dict(lora_dropout=0.5),
    "gaussian": dict(init_lora_weights="gaussian"),
    "no init": dict(init_lora_weights=False),
    "orthogonal": dict(init_lora_weights="orthogonal", r=4),
    "mica": dict(init_lora_weights="mica"),
    "eva": dict(init_lora_weights="eva"),
    "norms, whole": dict(modules_to_save=["norm"]),
    "a layer, whole": dict(modules_to_save=["layers.1.mlp"]),
    "some tokens": dict(trainable_token_indices=[3, 17, 5]),
    "some tokens by table": dict(trainable_token_indices={"embed_tokens": [8, 2]}),
}


# Where kinds differ: turned matrices and biases, tied tables, a score
OF_KINDS = {
    ("gpt2", "dora"): dict(use_dora=True),
    ("gpt2", "all biases, dora"): dict(bias="all", use_dora=True),
    ("gpt2", "layers' biases"): dict(bias="lora_only"),
    ("gpt2", "bias of B"): dict(lora_bias=True, use_rslora=True),
    ("gpt2", "one layer"): dict(layers_to_transform=[1], layers_pattern=["h"]),
    ("gpt2", "some tokens"): dict(trainable_token_indices=[3, 17]),
    ("gpt2", "embedding, whole"): dict(modules_to_save=["wte"]),
    ("gpt2", "score"): dict(task_type="SEQ_CLS"),
    ("qwen2", "all biases"): dict(bias="all"),
    ("qwen2", "head, whole"): dict(modules_to_save=["lm_head"]),
    ("qwen2", "both tables, whole"): dict(modules_to_save=["lm_head", "embed_tokens"]),
    ("qwen2", "tokens of both"): dict(
        trainable_token_indices={"embed_tokens": [3, 4], "lm_head": [3, 4]}
    ),
    ("qwen2", "score"): dict(task_type="SEQ_CLS", target_modules="all-linear"),
    ("qwen2", "score, embedding"): dict(
        task_type="SEQ_CLS", target_modules=["q_proj", "embed_tokens"]
    ),
    ("untied", "embedding"): dict(target_modules=["q_proj", "embed_tokens"]),
    ("untied", "embedding, dora"): dict(target_modules=["embed_tokens"], use_dora=True),
    ("untied", "head"): dict(target_modules=["q_proj", "lm_head"]),
    ("untied", "tokens of the head"): dict(trainable_token_indices={"lm_head": [3, 4]}),
    ("untied", "other tokens"): dict(
        trainable_token_indices={"embed_tokens": [3, 4], "lm_head": [3, 5]}
    ),
}
CASES = {("llama", case): options for case, options in UNDERSTOOD.items()} | OF_KINDS


@pytest.mark.parametrize("kind, case", CASES)
def test_what_is_understood_gives_pefts_logits(kind, case, tmp_path):
    scores = "score" in case
    path = saved(tmp_path, kind, scores, **CASES[kind, case])
    theirs = by_peft(path, kind, scores)
    before = base(kind, scores)(input_ids=TOKENS + 1).logits
    assert (theirs - before).abs().max() > 1e-3
    torch.testing.assert_close(by_us(path, kind, scores), theirs, rtol=0, atol=2e-5)


REFUSED = {
    "init_lora_weights": (
        "pissa",
        "pissa_niter_4",
        "olora",
        "corda",
        "lora_ga",
        "loftq",
    ),
    "alora_invocation_tokens": ([3, 4],),
    "arrow_config": (dict(top_k=2),),
    "bias": ("some",),
    "ensure_weight_tying": (True,),
    "kasa_config": (dict(beta=0.1),),
    "layer_replication": ([[0, 2], [1, 2]],),
    "megatron_config": (dict(hidden_size=4),),
    "monteclora_config": (dict(num_samples=4),),
    "peft_type": ("BOFT",),
    "revision": ("v2",),
    "target_parameters": (["mlp.experts.gate_up_proj"],),
    "task_type": ("SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"),
    "use_bdlora": (dict(nblocks=2),),
    "use_qalora": (True,),
    "velora_config": (dict(num_groups=2),),
}


def test_every_entry_that_peft_knows_is_understood_or_refused():
    """A field that a later peft adds has to be thought about."""
    fields = {field.name for field in dataclasses.fields(peft.LoraConfig)}
    assert fields == {*TOLD, *READ, *ALLOWED} and set(REFUSED) == set(ALLOWED)
    # Each that is read has a case above
    tried = {name for options in CASES.values() for name in options}
    assert {*READ} - tried == {"lora_alpha", "r"} - tried


def rewritten(path, **changes):
    """The settings in a folder, with changes; None takes an entry out."""
    file = path / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8")) | changes
    file.write_text(json.dumps(settings), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("plain"), "llama")


def copied(plain, path):
    for file in plain.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize(
    "name, value",
    [(name, value) for name, values in REFUSED.items() for value in values]
    + [
        ("merge_weights", True),
        ("of_a_later_peft", dict(a=1)),
        ("later_switch", False),
    ],
)
def test_what_is_not_understood_is_refused_by_name_and_value(
    name, value, plain, tmp_path
):
    path = rewritten(copied(plain, tmp_path), **{name: value})
    with pytest.raises(ModelError) as error:
        merge_adapter(base("llama"), path)
    assert f"has {name} = {json.dumps(value)}, which is not" in str(error.value)


def test_other_kinds_of_adapters_are_refused(plain, tmp_path):
    path = copied(plain, tmp_path)
    for kind in {each.value for each in peft.PeftType} - {"LORA"}:
        rewritten(path, peft_type=kind, a_setting_of_its_own=1)
        with pytest.raises(ModelError, match=f'peft_type = "{kind}", which is not'):
            merge_adapter(base("llama"), path)
    with pytest.raises(ModelError, match="does not say its peft_type: write it into"):
        named = dict(peft_type=None, a_setting_of_its_own=None)
        merge_adapter(base("llama"), rewritten(path, **named))


@pytest.mark.parametrize(
    "kind, options, message",
    [
        ("llama", dict(lora_bias=True), "q_proj no bias"),
        ("llama", dict(target_modules=["embed_tokens"]), "uses in two places"),
        ("gpt2", dict(target_modules=["lm_head", "c_attn"]), "lm_head, whose weight"),
        ("gpt2", dict(trainable_token_indices={"lm_head": [3]}), "uses in two places"),
    ],
)
def test_what_cannot_be_one_weight_is_refused(kind, options, message, tmp_path):
    path = saved(tmp_path, kind, **options)
    with pytest.raises(ModelError, match=message):
        merge_adapter(base(kind), path)


@pytest.mark.parametrize("what", ["one more", "one less", "size", "rank", "cut"])
def test_a_file_that_does_not_fit_its_settings_is_refused(what, plain, tmp_path):
    path, message = copied(plain, tmp_path), "does not fit: "
    file, first = path / "adapter_model.safetensors", "base_model.model.model.layers.0."
    state = safetensors.torch.load_file(file)
    if what == "one more":
        state[f"{first}mlp.up_proj.lora_A.weight"] = torch.zeros(3, 64)
        message += "neither its settings nor the model .*layers.0.mlp.up_proj.lora_A"
    elif what == "one less":
        del state[f"{first}mlp.down_proj.lora_B.weight"]
        message += ".* ask for model.layers.0.mlp.down_proj.lora_B.weight"
    elif what == "size":
        state[f"{first}self_attn.q_proj.lora_B.weight"] = torch.zeros(32, 3)
        message += "model.layers.0.self_attn.q_proj has 32 .* and 64 in the model"
    elif what == "rank":
        rewritten(path, r=4)
        message += ".* has a matrix A of 3 x 64 and the rank 4 in the settings"
    safetensors.torch.save_file(state, file)
    if what == "cut":
        file.write_bytes(file.read_bytes()[:-99])
        message = "cannot be read"
    with pytest.raises(ModelError, match=message):
        merge_adapter(base("llama"), path)


def test_the_older_file_of_an_adapter_and_bfloat16_are_read(plain, tmp_path):
    path = copied(plain, tmp_path)
    file = path / "adapter_model.safetensors"
    state = {
        name: v.bfloat16() for name, v in safetensors.torch.load_file(file).items()
    }
    file.unlink()
    with pytest.raises(ModelError, match="has no adapter_model.safetensors"):
        merge_adapter(base("llama"), path)
    torch.save(state, path / "adapter_model.bin")
    theirs = by_peft(path, "llama")
    torch.testing.assert_close(by_us(path, "llama"), theirs, rtol=0, atol=2e-5)


def test_tables_that_were_grown_for_new_tokens_come_from_the_adapters_file(tmp_path):
    def grown():
        model = base("llama")
        model.resize_token_embeddings(390, mean_resizing=False)
        return model.eval()

    model = grown()
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.1
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    trained = peft.get_peft_model(model, config).eval()
    trained.save_pretrained(tmp_path, save_embedding_layers=True)
    ours = merge_adapter(grown(), tmp_path)(input_ids=TOKENS).logits
    theirs = trained(input_ids=TOKENS).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    with pytest.raises(ModelError, match="has 390 x 64 numbers .* and 384 x 64 in"):
        merge_adapter(base("llama"), tmp_path)


def test_a_scoring_model_needs_no_head_and_a_language_model_no_score(tmp_path):
    """An adapter with a trained head serves as the reward model's beginning."""
    path = saved(tmp_path / "a", "untied", target_modules=["q_proj", "lm_head"])
    model = base("untied")
    model.save_pretrained(tmp_path / "model")
    scoring = merge_adapter(load_model(str(tmp_path / "model"), scores=True), path)
    theirs = merge_adapter(model, path).model(input_ids=TOKENS).last_hidden_state
    ours = scoring.model(input_ids=TOKENS).last_hidden_state
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)
    path = saved(tmp_path / "b", "llama", scores=True, task_type="SEQ_CLS")
    with pytest.raises(ModelError, match="have a place for score.weight"):
        merge_adapter(base("llama"), path)


def test_after_a_head_of_its_own_the_model_stays_untied(tmp_path):
    path = saved(tmp_path / "adapter", "qwen2", modules_to_save=["lm_head"])
    model = merge_adapter(base("qwen2"), path)
    assert not model.config.tie_word_embeddings
    model.save_pretrained(tmp_path / "whole")
    again = load_model(str(tmp_path / "whole"))
    assert again.lm_head.weight is not again.get_input_embeddings().weight
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize(
    "name, message",
    [
        (None, "names no base model: name its folder"),
        ("/no/such/folder", "stands on /no/such/folder, where there is no such folder"),
        ("itself", "stands on itself: name the model"),
    ],
)
def test_an_adapter_without_its_base_is_refused(name, message, plain, tmp_path):
    name = str(tmp_path) if name == "itself" else name
    path = rewritten(copied(plain, tmp_path), base_model_name_or_path=name)
    with pytest.raises(ModelError, match=message):
        base_of(str(path))


def test_settings_that_are_no_json_are_refused(tmp_path):
    for text in ('{"r": 8', "[1, 2]"):
        (tmp_path / "adapter_config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match="adapter_config.json .*: copy it again"):
            adapter_settings(tmp_path)


def test_a_table_that_scales_its_rows_scales_what_is_added_to_them():
    """Gemma's embedding does: what is trained is what is saved."""
    config = library().Gemma3TextConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
    )
    model = library().AutoModelForCausalLM.from_config(config).eval()
    train_rows(model, [7, 9])
    table, tokens = model.get_input_embeddings(), torch.tensor([[7, 8, 9]])
    with torch.no_grad():
        table.adapter.rows += 0.1
        trained = model(tokens).logits
        table.adapter.on = False
        table.weight[[7, 9]] += 0.1
        torch.testing.assert_close(model(tokens).logits, trained, rtol=0, atol=1e-5)
