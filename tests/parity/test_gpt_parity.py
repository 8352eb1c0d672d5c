"""The transformer, its cache and sampling: ours, and GPT-2 and Persimmon."""

import copy
from dataclasses import replace

import pytest
import torch
from parity.oracles import (
    DTYPES,
    GPT2,
    as_gpt2,
    as_persimmon,
    as_persimmon_names,
    body_gradients,
    near,
    peer_gradients,
    policy_of,
    same_gradients,
    seeded,
    texts,
)
from tiny import PAD, normal
from transformers import DynamicCache
from transformers.models.gptj.modeling_gptj import (
    apply_rotary_pos_emb,
    create_sinusoidal_positions,
)

from posttrain.gpt import GPTConfig, KVCache, attention_maps, rotate, rotation_table
from posttrain.lab.pretraining_trials import ladder
from posttrain.sampling import generate, left_pad, visible

SHAPE = dict(vocab_size=69, context=64, n_layer=2, n_head=2, width=16)
# Every model of the ladder from GPT-2's block to this book's, made small
RUNGS = {name: replace(config.model, **SHAPE) for name, config in ladder().items()}
WITH_ROPE = [name for name, config in RUNGS.items() if config.rope]


def pair_of(config, dtype, seed=0):
    """Our model and transformers' with the same weights, theirs in float64."""
    model = policy_of(seed, dtype, config)
    twin = copy.deepcopy(model).double()
    return model, as_persimmon(twin).eval() if config.rope else as_gpt2(twin).eval()


def weight_gradients(model, peer):
    """Both models' gradients by transformers' names, but for what ours has not."""
    if not model.config.rope:
        return body_gradients(model), peer_gradients(peer.transformer)
    ours = {name: parameter.grad for name, parameter in model.named_parameters()}
    ours = as_persimmon_names(ours, model.config)
    return ours, {
        name: parameter.grad
        for name, parameter in peer.named_parameters()
        if name in ours
    }


def test_the_ladder_ends_at_the_books_model_and_all_but_its_first_rung_have_rope():
    assert RUNGS["GPT-2 block, AdamW"] == GPT2
    assert RUNGS["+ Muon"] == GPTConfig(**SHAPE)
    assert len({*RUNGS.values()}) == 6 and len(WITH_ROPE) == len(RUNGS) - 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("B, T", [(1, 1), (3, 17), (2, 64)])
@pytest.mark.parametrize("rung", RUNGS)
def test_logits_and_gradients_are_those_of_transformers_gpt2_and_persimmon(
    rung, B, T, dtype
):
    model, peer = pair_of(RUNGS[rung], dtype)
    tokens = torch.randint(69, (B, T), generator=seeded(T))
    logits, theirs = model(tokens), peer(tokens).logits
    near(logits, theirs, dtype)
    weights = normal(B, T, 69) / (B * T)
    (logits * weights.to(dtype)).sum().backward()
    (theirs * weights).sum().backward()
    same_gradients(*weight_gradients(model, peer), dtype)


@pytest.mark.parametrize(
    "config", [GPT2, GPTConfig(**SHAPE)], ids=["GPT-2", "this book's"]
)
def test_large_weights_leave_the_logits_those_of_transformers(config):
    # In float64 alone: with such weights, rounding to float32 changes both libraries'
    # logits by more than 1e-5
    model = policy_of(3, torch.float64, config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= 3
    peer = as_persimmon(model) if config.rope else as_gpt2(model)
    tokens = torch.randint(69, (2, 30), generator=seeded(1))
    logits = model(tokens)
    assert logits.abs().max() > 30
    near(logits, peer.eval()(tokens).logits, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rung", ["GPT-2 block, AdamW", "+ Muon"])
def test_prompts_padded_on_the_left_get_the_logits_that_transformers_gives_them(
    rung, dtype
):
    model, peer = pair_of(RUNGS[rung], dtype)
    prompts, _ = texts(1)
    tokens, mask = left_pad(prompts)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    ours = model(tokens, positions, visible(mask))
    theirs = peer(tokens, attention_mask=mask.long(), position_ids=positions).logits
    near(ours[mask], theirs[mask], dtype)
    assert not mask.all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rung", ["GPT-2 block, AdamW", "+ Muon"])
def test_tokens_read_through_the_cache_get_the_logits_of_transformers_cache(
    rung, dtype
):
    model, peer = pair_of(RUNGS[rung], dtype)
    tokens = torch.randint(69, (3, 12), generator=seeded(2))
    cache, theirs = (
        KVCache(model.config, 3, 12, dtype),
        DynamicCache(config=peer.config),
    )
    with torch.no_grad():
        for start, end in [(0, 5), *((t, t + 1) for t in range(5, 12))]:
            ours = model(tokens[:, start:end], cache=cache)
            near(
                ours,
                peer(
                    tokens[:, start:end], past_key_values=theirs, use_cache=True
                ).logits,
                dtype,
            )
    assert cache.length == theirs.get_seq_length() == 12


@pytest.mark.parametrize("rung", ["GPT-2 block, AdamW", "+ Muon"])
def test_greedy_answers_to_prompts_of_unlike_lengths_are_transformers_own(rung):
    model, peer = pair_of(RUNGS[rung], torch.float64, seed=3)
    prompts = [prompt for seed in range(3) for prompt in texts(seed)[0]]
    # Stop at a token that the first answer has in its middle
    stop = generate(model, prompts, 10, temperature=0.0).tokens[0, 4].item()
    ours = generate(model, prompts, 10, temperature=0.0, stop=stop)
    tokens, mask = left_pad(prompts)
    theirs = peer.generate(
        tokens,
        attention_mask=mask.long(),
        max_new_tokens=10,
        do_sample=False,
        eos_token_id=stop,
        pad_token_id=PAD,
        return_dict_in_generate=True,
        output_logits=True,
    )
    answers = theirs.sequences[:, tokens.size(1) :]
    assert torch.equal(ours.tokens.masked_fill(~ours.mask, PAD), answers)
    logprobs = (
        torch.stack(theirs.logits, dim=1)
        .log_softmax(-1)
        .gather(-1, answers[..., None])
        .squeeze(-1)
    )
    # To which theirs are rounded
    near(ours.logprobs.float(), logprobs * ours.mask, torch.float32)
    assert (
        0 < (answers == stop).any(-1).sum() < len(prompts)
        and len({*ours.mask.sum(-1).tolist()}) > 1
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_maps_are_those_of_transformers_gpt2(dtype):
    model, peer = pair_of(GPT2, dtype)
    peer.set_attn_implementation("eager")
    tokens = torch.randint(69, (2, 9), generator=seeded(3))
    # Its eager attention keeps the softmax in float32
    theirs = torch.stack(peer(tokens, output_attentions=True).attentions)
    torch.testing.assert_close(
        attention_maps(model, tokens).double(), theirs.double(), rtol=0, atol=1e-6
    )


def test_rotations_are_those_of_gpt_j_which_turns_neighbouring_features_too():
    x = normal(2, 50, 3, 8).float()
    sine, cosine = create_sinusoidal_positions(50, 8).chunk(
        2, dim=-1
    )  # (T, hs / 2) each
    theirs = apply_rotary_pos_emb(x, sine.expand(2, -1, -1), cosine.expand(2, -1, -1))
    near(rotate(x, rotation_table(50, 8)), theirs, torch.float32)
