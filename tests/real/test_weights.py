"""A model's folder: every weight used and none missing, or the names are given."""

import json

import pytest

pytest.importorskip("transformers")
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
from real_models import folder  # noqa: E402

from posttrain.real.gpt2_weights import load_gpt2  # noqa: E402
from posttrain.real.model import (  # noqa: E402
    ModelError,
    library,
    load_config,
    load_model,
    some_of,
)

TOKENS = torch.arange(40).view(2, 20)


def changed(path, kind="llama", change=None, add=None, bare=False, **config):
    """A tiny model's folder with other names, or more tensors, or another
    configuration.
    """
    files = {"model.safetensors", "config.json"}
    for file in files:
        data = (folder(kind) + "/" + file,)
        (path / file).write_bytes(open(data[0], "rb").read())
    state = safetensors.torch.load_file(path / "model.safetensors")
    state = {(change or str)(name): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if name} | (add or {})
    state = {name: value.contiguous() for name, value in state.items()}
    if bare:
        (path / "model.safetensors").unlink()
        torch.save(state, path / "pytorch_model.bin")
    else:
        safetensors.torch.save_file(
            state, path / "model.safetensors", metadata=dict(format="pt")
        )
    said = json.loads((path / "config.json").read_text(encoding="utf-8")) | config
    (path / "config.json").write_text(json.dumps(said), encoding="utf-8")
    return str(path)


def without(*ends):
    return lambda name: "" if name.endswith(ends) else name


def prefixed(prefix):
    return lambda name: prefix + name


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "base_model.model."])
def test_a_wrappers_prefix_leaves_no_random_model(prefix, bare, tmp_path):
    path = changed(tmp_path, change=prefixed(prefix), bare=bare)
    with pytest.raises(ModelError) as error:
        load_model(path)
    said = str(error.value)
    assert "it lacks lm_head.weight, model.embed_tokens.weight, " in said
    assert f"no place for {prefix}model.embed_tokens.weight, " in said
    assert said.count("\n") == 0 and "and 18 more" in said and "a prefix" in said


@pytest.mark.parametrize(
    "kind, options, message",
    [
        (
            "llama",
            dict(change=without("layers.1.self_attn.q_proj.weight")),
            "it lacks model.layers.1.self_attn.q_proj.weight: give",
        ),
        (
            "gpt2",
            dict(change=without("h.0.attn.c_attn.bias")),
            "it lacks transformer.h",
        ),
        ("llama", dict(num_hidden_layers=1), "no place for model.layers.1.input_layer"),
        ("llama", dict(num_hidden_layers=3), "it lacks model.layers.2.input_layernorm"),
        ("llama", dict(tie_word_embeddings=False), "it lacks lm_head.weight"),
        (
            "llama",
            dict(intermediate_size=96),
            r"size is model.layers.0.mlp.down_proj.weight \(64 x 128 in the file, 64",
        ),
        ("gpt2", dict(vocab_size=400), r"wte.weight \(384 x 64 in the file, 400 x 64"),
        ("qwen2", dict(add={"v_head.weight": torch.ones(1, 64)}), "for v_head.weight"),
        ("llama", dict(add={"score.weight": torch.ones(1, 64)}), "for score.weight"),
        (
            "llama",
            dict(add={"model.layers.0.self_attn.q_proj.bias": torch.ones(64)}),
            "no place for model.layers.0.self_attn.q_proj.bias",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(kind, options, message, tmp_path):
    with pytest.raises(ModelError, match=message):
        load_model(changed(tmp_path, kind, **options))


def test_the_parts_of_a_model_in_several_files_are_one_model(tmp_path):
    model = load_model(folder())
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert torch.equal(load_model(str(tmp_path))(TOKENS).logits, model(TOKENS).logits)
    index = tmp_path / "model.safetensors.index.json"
    said = json.loads(index.read_text(encoding="utf-8"))
    file = tmp_path / said["weight_map"]["model.layers.1.mlp.up_proj.weight"]
    state = safetensors.torch.load_file(file)
    del state["model.layers.1.mlp.up_proj.weight"]
    safetensors.torch.save_file(state, file, metadata=dict(format="pt"))
    with pytest.raises(ModelError, match="it lacks model.layers.1.mlp.up_proj.weight"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "kind, options",
    [
        ("llama", dict(change=lambda name: name.removeprefix("model."))),
        ("gpt2", dict(change=lambda name: name.removeprefix("transformer."))),
        (
            "llama",
            dict(
                add={"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)},
                bare=True,
            ),
        ),
        (
            "gpt2",
            dict(
                add={
                    "transformer.h.0.attn.bias": torch.ones(1, 1, 256, 256),
                    "transformer.h.0.attn.masked_bias": torch.tensor(-1e4),
                }
            ),
        ),
    ],
)
def test_what_older_files_hold_beside_the_weights_is_left_out(kind, options, tmp_path):
    model = load_model(changed(tmp_path, kind, **options))
    assert torch.equal(model(TOKENS).logits, load_model(folder(kind))(TOKENS).logits)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_scoring_model_comes_from_a_language_model_with_its_head_or_without(
    kind, tmp_path
):
    plain = load_model(folder(kind), scores=True)
    head = {"lm_head.weight": torch.randn(384, 64)}
    path = changed(tmp_path, kind, add=head, tie_word_embeddings=False)
    headed = load_model(path, scores=True)
    ours, theirs = (
        each.base_model(TOKENS).last_hidden_state for each in (plain, headed)
    )
    assert torch.equal(ours, theirs) and headed.score.weight.shape == (1, 64)


def test_a_head_that_has_another_name_in_files_is_known(tmp_path):
    config = library().GPTNeoXConfig(
        vocab_size=50,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    model = library().AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    scoring, tokens = load_model(str(tmp_path), scores=True), torch.arange(9)[None]
    ours, theirs = (each.base_model(tokens)[0] for each in (scoring, model.eval()))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_a_reward_model_needs_its_score(tmp_path):
    model = load_model(folder(), scores=True)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path), scores=True)
    assert torch.equal(again.score.weight, model.score.weight)
    file = tmp_path / "model.safetensors"
    state = safetensors.torch.load_file(file)
    del state["score.weight"]
    safetensors.torch.save_file(state, file, metadata=dict(format="pt"))
    with pytest.raises(ModelError, match="it lacks score.weight"):
        load_model(str(tmp_path), scores=True)


def test_a_head_beside_the_embedding_is_used_though_the_configuration_ties_them(
    tmp_path,
):
    head = {"lm_head.weight": torch.randn(384, 64)}
    model = load_model(changed(tmp_path, add=head))
    torch.testing.assert_close(model.lm_head.weight, head["lm_head.weight"])
    model.resize_token_embeddings(390, mean_resizing=False)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    assert not model.config.tie_word_embeddings


def test_a_model_that_reads_in_both_directions_is_refused(tmp_path):
    library().BertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="'bert' model reads in both directions"):
        load_config(str(tmp_path))


def test_dropout_is_off_in_a_configuration_within_a_configuration(tmp_path):
    config = library().Gemma3Config()
    config.text_config.attention_dropout = 0.1
    config.save_pretrained(tmp_path)
    assert load_config(str(tmp_path)).text_config.attention_dropout == 0


def test_a_few_of_many_names():
    assert some_of({"b", "a"}) == "a, b" and some_of("dcba") == "a, b, c and 1 more"


@pytest.mark.parametrize(
    "config, message",
    [
        (dict(n_layer=1), "has no place for h.1.attn.c_attn.bias, .* and 9 more"),
        (dict(n_layer=3), "lacks blocks.2.attention.out.bias"),
        (dict(vocab_size=400), "has in another size embedding.weight, head.weight"),
    ],
)
def test_gpt2_in_the_books_transformer_uses_every_weight_too(config, message, tmp_path):
    with pytest.raises(ModelError, match=f"{message}.*: it is no GPT-2 with this"):
        load_gpt2(changed(tmp_path, "gpt2", **config))
