"""What TRL and transformers compute, in this package's shapes, compared with ours.

Theirs is always worked out in float64, so that a difference is an error of ours. Where
ours is in float32, theirs starts from the same rounded numbers.
"""

import contextlib
import copy
import importlib.util
import textwrap
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import tokenizers
import torch
import transformers
from tiny import END, PAD, TOKENIZER, judge, moved, seeded
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from posttrain.gpt import GPTConfig
from posttrain.tokenizer import SPECIAL_TOKENS

DTYPES = (torch.float64, torch.float32)
# Relative above 1, absolute below
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 1e-5,
}
VOCABULARY = 69
GPT2 = GPTConfig.gpt2(vocab_size=VOCABULARY, context=64, n_layer=2, n_head=2, width=16)


# Comparing


def near(ours, theirs, dtype):
    """Assert that our numbers have this dtype and are near the library's, not NaN."""
    assert ours.dtype == dtype, ours.dtype
    theirs = torch.as_tensor(theirs, dtype=torch.float64).detach()
    ours = ours.detach().double()
    torch.testing.assert_close(
        ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype]
    )


def agree(ours, theirs, inputs, dtype):
    """Assert that two functions have the same values and gradients; return ours.

    Each returns one tensor or several. The gradients are of a random weighting of all
    their numbers.
    """
    rounded = [x.to(dtype) for x in inputs]
    mine = [x.clone().requires_grad_() for x in rounded]
    others = [x.double().clone().requires_grad_() for x in rounded]
    values, generator = several(ours(*mine)), seeded(1)
    weights = [
        torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in values
    ]
    with in_float64():
        peers = several(theirs(*others))
        expected = gradients(peers, weights, others)
    assert len(values) == len(peers)
    for value, peer in zip(values, peers):
        near(value, peer, dtype)
    for one, other in zip(gradients(values, weights, mine), expected):
        near(one, other, dtype)
    return values if len(values) > 1 else values[0]


def several(x):
    return x if isinstance(x, tuple) else (x,)


def gradients(values, weights, inputs):
    """Gradients of the weighted sum of values at inputs, 0 where one has no part."""
    parts = [
        (x * w.to(x.dtype)).sum() for x, w in zip(values, weights) if x.requires_grad
    ]
    assert parts, "nothing has a gradient"
    found = torch.autograd.grad(sum(parts), inputs, allow_unused=True)
    return [
        torch.zeros_like(x) if grad is None else grad for x, grad in zip(inputs, found)
    ]


def same_gradients(ours, theirs, dtype):
    """Assert that two models' weights have the same gradients, not 0 everywhere."""
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    for name, gradient in ours.items():
        near(gradient, theirs[name], dtype)
    assert sum(gradient.abs().sum() for gradient in ours.values()) > 1e-3


# Running parts of the libraries


def excerpt(module, first, last):
    """The lines of a library's module, from the line that begins `first` to `last`.

    The module is read and not imported: some need packages that have no part in the
    formula.
    """
    lines = (
        Path(importlib.util.find_spec(module).origin)
        .read_text(encoding="utf-8")
        .splitlines()
    )
    start = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(
        i
        for i, line in enumerate(lines)
        if i >= start and line.strip().startswith(last)
    )
    return compile(
        textwrap.dedent("\n".join(lines[start : end + 1])),
        f"<{module}, from {first!r}>",
        "exec",
    )


def run(part, **names):
    """Execute an excerpt with these names set; return all names it leaves."""
    space = {"torch": torch} | names
    exec(part, space)
    return SimpleNamespace(
        **{name: value for name, value in space.items() if name.isidentifier()}
    )


@contextlib.contextmanager
def in_float64():
    """Keep the libraries in float64: their .float(), and their new numbers."""
    torch.set_default_dtype(torch.float64)
    try:
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            yield
    finally:
        torch.set_default_dtype(torch.float32)


def always(logits):
    """A model that gives these logits, whatever it is asked."""
    return lambda _: logits


class Speaker(torch.nn.Module):
    """Stands in for a library's model: `function` of the token ids gives the logits."""

    is_gradient_checkpointing = False

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, input_ids=None, **_):
        return SimpleNamespace(logits=self.function(input_ids))


def stub(model, **settings):
    """Stands in for a trainer, of which a loss reads only the settings and metrics."""
    alone = SimpleNamespace(
        device=torch.device("cpu"),
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        unwrap_model=lambda x: x,
    )
    return SimpleNamespace(
        model=model,
        accelerator=alone,
        aux_loss_enabled=False,
        _total_train_tokens=0,
        _metrics={"train": defaultdict(list)},
        **settings,
    )


# Batches


def texts(seed, most=9):
    """Prompts and responses of random tokens; the first response is one token long."""
    generator = seeded(seed)

    def number(low, high):
        return int(torch.randint(low, high + 1, (), generator=generator))

    def ids(n):
        return torch.randint(PAD, (n,), generator=generator).tolist()

    B = number(2, 6)
    prompts = [ids(number(1, 7)) for _ in range(B)]
    responses = [ids(1)] + [ids(number(2, most - 1)) + [END] for _ in range(B - 1)]
    return prompts, responses


def pairs_of_texts(seed):
    """(prompt, chosen, rejected): in the first pair an answer is one token long."""
    prompts, chosen = texts(seed)
    _, rejected = texts(seed + 100)
    rejected = [answer for answer in rejected * len(prompts) if len(answer) > 1][
        : len(prompts)
    ]
    return list(zip(prompts, chosen, rejected))


def flush(values, actions):
    """Each row's numbers under the mask, moved left: (B, A, ...) to (B, R, ...)."""
    return pad_sequence(
        [row[kept] for row, kept in zip(values, actions)], batch_first=True
    )


def outside(values, actions):
    """The numbers where the mask is False."""
    return values.detach()[~actions]


# Models


def policy_of(seed, dtype, config=GPT2):
    return moved(seed, dtype, config)


def scorer_of(seed, dtype, config=GPT2):
    return judge(seed, dtype, config)


def as_gpt2_names(tensors):
    """Weights or gradients of a GPTConfig.gpt2() by transformers' names and layout."""
    theirs = dict(
        embedding="wte",
        position_embedding="wpe",
        blocks="h",
        final_norm="ln_f",
        attention_norm="ln_1",
        attention="attn",
        qkv="c_attn",
        out="c_proj",
        mlp_norm="ln_2",
        up="c_fc",
        down="c_proj",
    )
    renamed = {}
    for name, tensor in tensors.items():
        name = ".".join(theirs.get(part, part) for part in name.split("."))
        renamed[name] = tensor.mT if "c_" in name and tensor.dim() == 2 else tensor
    renamed.pop("head.weight", None)  # it is the embedding
    return renamed


def gpt2_config(config):
    return transformers.GPT2Config(
        vocab_size=config.vocab_size,
        n_positions=config.context,
        n_embd=config.width,
        n_layer=config.n_layer,
        n_head=config.n_head,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        num_labels=1,
        eos_token_id=END,
        pad_token_id=PAD,
        bos_token_id=None,
    )


def as_gpt2(model):
    """transformers' GPT-2 with the weights of ours."""
    peer = transformers.GPT2LMHeadModel(gpt2_config(model.config)).to(
        model.head.weight.dtype
    )
    peer.transformer.load_state_dict(as_gpt2_names(model.state_dict()))
    return peer


def as_scoring_gpt2(model):
    """transformers' GPT-2 with one number per token, and our weights.

    Our head has a bias and theirs none, so theirs is given one. Zero and unit of the
    scores are left out.
    """
    dtype = model.head.weight.dtype
    peer = transformers.GPT2ForSequenceClassification(
        gpt2_config(model.body.config)
    ).to(dtype)
    peer.transformer.load_state_dict(as_gpt2_names(model.body.state_dict()))
    peer.score = copy.deepcopy(model.head)
    return peer


def body_gradients(model):
    """Gradients of a GPTConfig.gpt2() by transformers' names."""
    return as_gpt2_names(
        {name: parameter.grad for name, parameter in model.named_parameters()}
    )


def peer_gradients(module):
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def as_persimmon_names(tensors, config):
    """Weights or gradients of a GPT with RoPE by the names of transformers' Persimmon.

    Theirs keeps a head's query, key and value together, and turns feature j with
    feature j + hs / 2 where ours turns neighbours.
    """
    theirs = dict(
        blocks="layers",
        attention="self_attn",
        attention_norm="input_layernorm",
        mlp_norm="post_attention_layernorm",
        qkv="query_key_value",
        out="dense",
        up="dense_h_to_4h",
        down="dense_4h_to_h",
        final_norm="final_layernorm",
        embedding="embed_tokens.0",
    )
    nh, hs = config.n_head, config.width // config.n_head
    order = torch.cat([torch.arange(0, hs, 2), torch.arange(1, hs, 2)])
    renamed = {}
    for name, tensor in tensors.items():
        parts = [theirs.get(part, part) for part in name.split(".")]
        if "qkv" in name:
            q, k, v = tensor.view(3, nh, hs, -1)
            tensor = torch.stack([q[:, order], k[:, order], v], dim=1).reshape(
                tensor.shape
            )
        name = ".".join(parts)
        renamed["lm_head.weight" if name == "head.weight" else "model." + name] = tensor
    return renamed


def as_persimmon(model):
    """transformers' Persimmon with the weights of our GPT with RoPE: the same function.

    It norms the embedding only where ours is bare; its biases and gains stay 0 and 1
    there. It rounds angles to float32 before it takes their cosine, and is given our
    table instead, which rounds after it.
    """
    config, dtype = model.config, model.head.weight.dtype
    shape = transformers.PersimmonConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.width,
        intermediate_size=4 * config.width,
        num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head,
        max_position_embeddings=config.context,
        hidden_act="relu2" if config.relu2 else "gelu_new",
        qk_layernorm=config.qk_norm,
        rope_parameters=dict(
            rope_type="default", rope_theta=10_000.0, partial_rotary_factor=1.0
        ),
    )
    peer = transformers.PersimmonForCausalLM(shape)
    embedding = peer.model.embed_tokens
    after = (
        nn.LayerNorm(config.width, elementwise_affine=False)
        if config.bare
        else nn.Identity()
    )
    peer.model.embed_tokens = nn.Sequential(embedding, after)
    if not config.bare:
        peer.lm_head.weight = embedding.weight
    peer.to(dtype)
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            parameter.fill_(float("layernorm.weight" in name))
    missing, unexpected = peer.load_state_dict(
        as_persimmon_names(model.state_dict(), config), strict=False
    )
    assert not unexpected and all(
        "bias" in name or "layernorm" in name for name in missing
    )

    def table(_, position_ids):
        cosine, sine = (
            model.rotation[position_ids].to(dtype).unbind(-1)
        )  # (B, T, hs / 2)
        return torch.cat([cosine, cosine], -1), torch.cat([sine, sine], -1)

    peer.model.rotary_emb.forward = table
    return peer


# A tokenizer


CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role == 'user' %}<|user|>{{ message.content }}"
    "{% else %}<|assistant|>{% generation %}{{ message.content }}<|end|>{% "
    "endgeneration %}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def chat_tokenizer():
    """Our tokenizer and chat format as a tokenizer of transformers'."""
    words = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(TOKENIZER.ids, unk_token="<|pad|>")
    )
    words.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(r"[\s\S]"), "isolated"
    )
    words.add_special_tokens(
        [tokenizers.AddedToken(name, special=True) for name in SPECIAL_TOKENS]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|end|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
    )


def unnormalised(model):
    """A reward model whose scores are as they came from training."""
    model.shift.zero_()
    model.scale.fill_(1.0)
    return model
