"""Memory from a configuration: published totals, and what autograd keeps."""

from dataclasses import replace

import pytest

pytest.importorskip("transformers")
import torch  # noqa: E402
from torch import nn  # noqa: E402

from posttrain.lora.nf4 import NF4Linear, bits_per_weight  # noqa: E402
from posttrain.real.adapter import adapt, targets_of  # noqa: E402
from posttrain.real.memory import (  # noqa: E402
    KNOWN,
    NF4_BITS,
    Architecture,
    Setting,
    activation_bytes,
    adapter_parameters,
    architecture_of,
    cache_bytes,
    describe,
    memory,
    parameters,
    stage_memory,
)
from posttrain.real.model import LanguageModel, ModelError, library  # noqa: E402
from posttrain.real.tiny import tiny_config  # noqa: E402

KINDS = ("llama", "qwen2", "gpt2")


def built(kind, layers=2, dtype=torch.float32, **changes):
    config = tiny_config(kind, 300, layers)
    for name in ("attn_pdrop", "embd_pdrop", "resid_pdrop"):
        setattr(config, name, 0.0)
    for name, value in changes.items():
        setattr(config, name, value)
    return library().AutoModelForCausalLM.from_config(config, dtype=dtype)


@pytest.mark.parametrize(
    "name, total",
    {
        "GPT-2": 124_439_808,
        "SmolLM2-135M": 134_515_008,
        "SmolLM2-360M": 361_821_120,
        "Qwen2.5-0.5B": 494_032_768,
        "Llama-3.2-1B": 1_235_814_400,
        "SmolLM2-1.7B": 1_711_376_384,
        "Llama-3.1-8B": 8_030_261_248,
    }.items(),
)
def test_parameters_are_the_published_totals(name, total):
    assert parameters(KNOWN[name]) == total


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", (True, False))
def test_parameters_and_adapters_are_those_that_a_model_has(kind, tied):
    model = built(kind, layers=3, tie_word_embeddings=tied)
    shape = architecture_of(model.config)
    assert parameters(shape) == sum(p.numel() for p in model.parameters())
    adapt(model, 5, 16.0, torch.Generator())
    assert adapter_parameters(shape, 5) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


SMALL = dict(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=256,
    bos_token_id=0,
    eos_token_id=0,
    pad_token_id=0,
)
OTHERS = {  # a kind's configuration in transformers, and what it has of its own
    "Qwen3": dict(head_dim=24),
    "Gemma": dict(head_dim=32),
    "Gemma2": dict(head_dim=32),
    "Gemma3Text": dict(head_dim=16),
    "Phi": dict(),
    "Phi3": dict(),
    "Olmo": dict(),
    "Olmo2": dict(tie_word_embeddings=True),
    "SmolLM3": dict(),
    "Mistral": dict(),
    "Starcoder2": dict(),
    "StableLm": dict(),
    "Granite": dict(),
    "Qwen3Moe": dict(num_experts=4, moe_intermediate_size=32),
    "Llama": dict(attention_bias=True, mlp_bias=True, head_dim=8),
}


def other(kind, **changes):
    options = SMALL | OTHERS[kind] | changes
    return getattr(library(), f"{kind}Config")(**options)


@pytest.mark.parametrize("kind", OTHERS)
def test_a_model_of_any_kind_is_counted_without_being_made(kind):
    config = other(kind)
    shape = architecture_of(config)
    model = library().AutoModelForCausalLM.from_config(config)
    total = sum(p.numel() for p in model.parameters())
    full = memory(shape, Setting(2, 10, rank=0))
    assert parameters(shape) == total and full["weights"] == 4 * total
    scoring = stage_memory("reward", shape, Setting(2, 10, rank=0))["weights"] / 4
    head = model.get_output_embeddings().weight
    own = head is not model.get_input_embeddings().weight
    assert scoring == total - (head.numel() if own else 0)
    targets = targets_of(model)
    adapt(model, 5, 16.0, torch.Generator())
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert adapter_parameters(shape, 5) == trained > 0
    # Four bits are for the matrices that get adapters
    packed = memory(shape, Setting(2, 10, rank=5, nf4=True))["weights"]
    matrices = sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets and hasattr(module, "weight")
    )
    assert packed == round(4 * (total - matrices) + matrices * NF4_BITS / 8)


@pytest.mark.parametrize("kind", ["Qwen3", "Gemma3Text", "Phi", "Phi3", "Olmo2"])
def test_what_other_kinds_keep_is_computed_within_a_fifth(kind):
    def make(layers):
        config = other(kind, num_hidden_layers=layers)
        for name in vars(config):
            if name.endswith(("pdrop", "dropout")):
                setattr(config, name, 0.0)
        return library().AutoModelForCausalLM.from_config(config)

    one = kept_of(make(3), 4, False) - kept_of(make(2), 4, False)
    setting = Setting(3, 37, rank=4)
    shape = architecture_of(other(kind))
    assert activation_bytes(shape, setting, 1) == pytest.approx(one, rel=0.2)


def test_known_kinds_are_what_their_published_numbers_say():
    auto = library()
    gpt2 = auto.GPT2Config()
    qwen = auto.Qwen2Config(
        vocab_size=151936,
        hidden_size=896,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        intermediate_size=4864,
        tie_word_embeddings=True,
    )
    for name, config in (("GPT-2", gpt2), ("Qwen2.5-0.5B", qwen)):
        shape, setting = architecture_of(config), Setting(2, 512, rank=8, nf4=True)
        assert shape == KNOWN[name]
        for stage in ("sft", "reward", "dpo", "ppo"):
            for each in (setting, replace(setting, nf4=False, rank=0, bf16=True)):
                theirs = stage_memory(stage, KNOWN[name], each)
                assert stage_memory(stage, shape, each) == theirs


def test_adapters_on_some_matrices_only():
    shape = KNOWN["Llama-3.2-1B"]
    assert adapter_parameters(shape, 8, ("q_proj", "v_proj")) == 16 * 8 * (
        2048 + 2048 + 2048 + 512
    )
    assert adapter_parameters(KNOWN["GPT-2"], 1, ("c_proj",)) == 12 * (
        768 + 768 + 3072 + 768
    )


def kept(kind, layers, rank, bf16, weight_bytes):
    """The bytes that autograd keeps of one pass through the blocks, without weights."""
    model = built(kind, layers, torch.float32 if weight_bytes == 4 else torch.bfloat16)
    return kept_of(model, rank, bf16)


def kept_of(model, rank, bf16):
    if rank:
        adapt(model, rank, 16.0, torch.Generator())
    wrapped, found = LanguageModel(model, bf16=bf16), {}
    owned = {
        p.untyped_storage().data_ptr() for p in (*model.parameters(), *model.buffers())
    }
    shapes = {tuple(sorted(p.shape)) for p in model.parameters()}

    def note(tensor):
        storage = tensor.untyped_storage()
        cast = (
            bf16 and tensor.is_leaf is False and tuple(sorted(tensor.shape)) in shapes
        )
        if storage.data_ptr() not in owned and not cast:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        wrapped.precision(),
    ):
        hidden = model.base_model(
            input_ids=torch.zeros(3, 37, dtype=torch.long), use_cache=False
        )
    del hidden
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "rank, bf16, weight_bytes",
    [(0, False, 4), (4, False, 4), (0, False, 2), (0, True, 4), (4, True, 2)],
)
def test_a_block_keeps_what_is_computed_within_5_percent(
    kind, rank, bf16, weight_bytes
):
    if kind != "gpt2" and torch.__version__ < (2, 5):
        pytest.skip(
            "this PyTorch's attention cannot share keys: transformers keeps one copy "
            "for each query head"
        )
    one = kept(kind, 3, rank, bf16, weight_bytes) - kept(
        kind, 2, rank, bf16, weight_bytes
    )
    shape = architecture_of(tiny_config(kind, 300))
    setting = Setting(3, 37, rank=rank, weight_bytes=weight_bytes, bf16=bf16)
    assert activation_bytes(shape, setting, 1) == pytest.approx(one, rel=0.05)


def test_the_parts_of_a_run_by_hand():
    shape = Architecture(
        vocab_size=100, width=8, n_layer=2, n_head=2, n_kv_head=1, mlp_width=16
    )
    matrices = 2 * (8 * 8 * 2 + 8 * 4 * 2 + 3 * 8 * 16)
    total = 100 * 8 + matrices + 2 * 2 * 8 + 8
    assert parameters(shape) == total
    full = memory(shape, Setting(2, 10, rank=0))
    assert (full["weights"], full["gradients"], full["adam"]) == (
        4 * total,
        4 * total,
        8 * total,
    )
    assert full["logits"] == 3 * 4 * 20 * 100 and full["adapters"] == 0
    packed = memory(shape, Setting(2, 10, rank=2, nf4=True, weight_bytes=2))
    assert packed["weights"] == round(2 * (total - matrices) + matrices * NF4_BITS / 8)
    adapters = 2 * 2 * ((8 + 8) * 2 + (8 + 4) * 2 + 3 * (8 + 16))
    assert [packed[name] for name in ("adapters", "gradients", "adam")] == [
        4 * adapters,
        4 * adapters,
        8 * adapters,
    ]
    assert all(
        parts["total"] == sum(parts.values()) - parts["total"]
        for parts in (full, packed)
    )


def test_checkpointing_keeps_each_blocks_input_and_one_block():
    shape = KNOWN["SmolLM2-135M"]
    plain, saved = (
        memory(shape, Setting(4, 100, bf16=True, weight_bytes=2, checkpointing=c))
        for c in (False, True)
    )
    assert saved["activations"] == plain["activations"] // 30 + 30 * 400 * 576 * 2
    assert {**plain, "activations": 0, "total": 0} == {
        **saved,
        "activations": 0,
        "total": 0,
    }


def test_nf4s_bits_are_those_of_a_packed_layer():
    assert bits_per_weight(NF4Linear(nn.Linear(512, 512))) == pytest.approx(
        NF4_BITS, abs=1e-3
    )


def test_the_cache_is_what_transformers_keeps():
    model = built("llama")
    cache = model(
        input_ids=torch.zeros(3, 11, dtype=torch.long), use_cache=True
    ).past_key_values
    held = sum(
        part.numel() * 4
        for layer in cache.layers
        for part in (layer.keys, layer.values)
    )
    assert cache_bytes(architecture_of(model.config), 3, 11, size=4) == held


def test_a_line_for_people_and_an_unknown_kind_of_model():
    assert (
        describe(dict(weights=2_500_000_000, adapters=0, total=2_500_000_000))
        == "2.50 GB (weights 2.50)"
    )
    assert (
        describe(dict(weights=2_500_000, total=2_500_000)) == "2.50 MB (weights 2.50)"
    )
    with pytest.raises(ModelError, match="'bert' model reads in both directions"):
        architecture_of(library().BertConfig())
