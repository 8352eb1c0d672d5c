"""Memory from a configuration: published totals, and what autograd keeps."""

import pytest

pytest.importorskip("transformers")
import torch  # noqa: E402
from torch import nn  # noqa: E402

from posttrain.lora.nf4 import NF4Linear, bits_per_weight  # noqa: E402
from posttrain.real.adapter import adapt  # noqa: E402
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
    with pytest.raises(ModelError, match="a 't5' model cannot be built"):
        architecture_of(library().T5Config())
