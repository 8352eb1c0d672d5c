"""The transformer: Karpathy's GPT, with the changes made to its block since GPT-2 as
switches.

Left out, because nothing in the book needs it: dropout, multi-query attention, a
sliding window, weight decay groups, compilation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT, and which changes since GPT-2 it uses: all, unless told
    otherwise.
    """

    vocab_size: int = 65  # V
    context: int = 256  # the longest sequence, in tokens
    n_layer: int = 4
    n_head: int = 2  # nh; the head size hs is width / n_head
    width: int = 128  # C, the features of one token in the residual stream
    rope: bool = True  # rotary positions instead of a learned table of positions
    qk_norm: bool = True  # queries and keys of one length
    relu2: bool = True  # squared ReLU instead of GELU
    # No biases, no norm gains, a head of its own instead of the embedding's
    bare: bool = True
    # Blocks start as the identity, the head as the uniform distribution
    zero_init: bool = True

    def __post_init__(self):
        if self.width % self.n_head or (self.width // self.n_head) % 2:
            raise ValueError(
                f"width {self.width} must split into {self.n_head} heads of an even "
                "size"
            )
        if self.zero_init and not self.bare:
            raise ValueError(
                "zero_init needs bare=True: a head tied to the embedding cannot start "
                "at zero"
            )

    @classmethod
    def gpt2(cls, **changes) -> GPTConfig:
        """The block of GPT-2 (Radford et al. 2019): none of the changes."""
        return cls(
            **{
                **dict(
                    rope=False, qk_norm=False, relu2=False, bare=False, zero_init=False
                ),
                **changes,
            }
        )


def norm(x: Tensor) -> Tensor:
    """Shift and scale each token's features to mean 0 and variance 1.

    LayerNorm (Ba et al. 2016) without gain and bias.
    """
    return F.layer_norm(x, (x.size(-1),))


class Norm(nn.Module):
    """`norm` as a module, to stand where GPT-2 has `nn.LayerNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        return norm(x)


def rotation_table(context: int, head_size: int, base: float = 10_000.0) -> Tensor:
    """RoPE's rotations for each position t and feature pair j: the angle t * theta_j.

    theta_j = base ** (-2 j / hs). Returns cosine and sine, (context, hs/2, 2). Source:
    Su et al. 2021, equation 15.
    """
    theta = base ** (
        -torch.arange(0, head_size, 2, dtype=torch.float64) / head_size
    )  # (hs/2,)
    angles = torch.outer(
        torch.arange(context, dtype=torch.float64), theta
    )  # (context, hs/2)
    return torch.stack(
        [angles.cos(), angles.sin()], dim=-1
    ).float()  # (context, hs/2, 2)


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn each pair of neighbouring features by its position's angle.

    x: (..., T, heads, hs); rotation: (..., T, hs/2, 2).
    Two features are one complex number, so a turn is one product.
    """
    pairs = torch.view_as_complex(x.unflatten(-1, (-1, 2)))  # (..., T, heads, hs/2)
    turned = pairs * torch.view_as_complex(rotation).unsqueeze(
        -2
    )  # (..., T, heads, hs/2)
    return torch.view_as_real(turned).flatten(-2)  # (..., T, heads, hs)


class ReluSquared(torch.autograd.Function):
    """max(x, 0)^2 (So et al. 2021).

    Its derivative 2 max(x, 0) is written out: one tensor kept, and gone over once.
    """

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        h = x.clamp_min(0)
        ctx.save_for_backward(h)
        return h * h

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (h,) = ctx.saved_tensors
        return (grad * h).mul_(2)


class KVCache:
    """The keys and values of the tokens read so far, so that a new one costs one
    token's work.

    Room for `length` tokens is set aside at once: per layer, keys and values of shape
    (B, nh, length, hs). They are written in place, so there is no gradient through a
    cache: use it under `torch.no_grad()`.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        length: int,
        dtype: torch.dtype = torch.float32,
    ):
        shape = (
            config.n_layer,
            2,
            batch_size,
            config.n_head,
            length,
            config.width // config.n_head,
        )
        self.keys_values = torch.empty(shape, dtype=dtype)
        self.length = 0  # tokens read so far, the same in every layer

    def extend(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's new keys and values (B, nh, T, hs); return all its so
        far.
        """
        end = self.length + k.size(2)
        keys, values = self.keys_values[layer, 0], self.keys_values[layer, 1]
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]

    def keep(self, rows: Tensor) -> None:
        """Forget all sequences but some: rows, a mask (B,) or their indices."""
        self.keys_values = self.keys_values[:, :, rows]


class Attention(nn.Module):
    """Causal self-attention over `n_head` heads (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.n_head, self.qk_norm = layer, config.n_head, config.qk_norm
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=not config.bare)
        self.out = nn.Linear(config.width, config.width, bias=not config.bare)

    def queries_keys_values(
        self, x: Tensor, rotation: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project (B, T, C) to queries, keys and values, (B, nh, T, hs) each."""
        qkv = self.qkv(x).unflatten(-1, (3 * self.n_head, -1))  # (B, T, 3 nh, hs)
        qk, v = qkv.split([2 * self.n_head, self.n_head], dim=2)
        # Give queries and keys one length, then turn them by their position
        if self.qk_norm:
            qk = norm(qk)
        if rotation is not None:
            qk = rotate(qk, rotation)
        q, k = qk.transpose(1, 2).chunk(2, dim=1)  # (B, nh, T, hs)
        return q, k, v.transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None,
        allowed: Tensor | None,
        cache: KVCache | None,
    ) -> Tensor:
        q, k, v = self.queries_keys_values(x, rotation)
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)  # (B, nh, S, hs)
        # Mix the values of the tokens that each token may look at
        causal = allowed is None and q.size(2) > 1
        y = F.scaled_dot_product_attention(
            q, k, v, attn_mask=allowed, is_causal=causal
        )  # (B, nh, T, hs)
        return self.out(y.transpose(1, 2).flatten(2))  # (B, T, C)


class MLP(nn.Module):
    """Two linear layers with a nonlinearity between, applied to every token by
    itself.
    """

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.relu2 = config.relu2
        self.up = nn.Linear(config.width, 4 * config.width, bias=not config.bare)
        self.down = nn.Linear(4 * config.width, config.width, bias=not config.bare)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)  # (B, T, 4C)
        h = ReluSquared.apply(h) if self.relu2 else F.gelu(h, approximate="tanh")
        return self.down(h)  # (B, T, C)


class Block(nn.Module):
    """Attention, then MLP, each reading a normed copy of the residual stream, adding to
    it.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.attention_norm = Norm() if config.bare else nn.LayerNorm(config.width)
        self.attention = Attention(config, layer)
        self.mlp_norm = Norm() if config.bare else nn.LayerNorm(config.width)
        self.mlp = MLP(config)

    def forward(
        self,
        x: Tensor,
        rotation: Tensor | None,
        allowed: Tensor | None,
        cache: KVCache | None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotation, allowed, cache)
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A decoder-only transformer: tokens in, a distribution over the next token out."""

    def __init__(self, config: GPTConfig, generator: torch.Generator | None = None):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        if config.rope:
            table = rotation_table(config.context, config.width // config.n_head)
            self.register_buffer("rotation", table, persistent=False)
        else:
            self.position_embedding = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(
            Block(config, layer) for layer in range(config.n_layer)
        )
        self.final_norm = Norm() if config.bare else nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        initialise(self, generator)

    def hidden(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        allowed: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return the final hidden states (B, T, C) of tokens (B, T).

        positions: (T,) or (B, T), counted on from the cache's length unless given.
        allowed: (B, 1, T, S), True where a token may look; causal unless given.
        Padding on the left needs both (`sampling.left_pad`); padding on the right needs
        neither, since no real token looks to its right.
        Raises ValueError when the sequence is longer than the context.
        """
        start = 0 if cache is None else cache.length
        end = start + tokens.size(1)
        if end > self.config.context:
            raise ValueError(
                f"{end} tokens do not fit into the context of {self.config.context}: "
                "shorten the text"
            )
        if start and tokens.size(1) > 1 and allowed is None:
            raise ValueError(
                "several tokens after a filled cache need an explicit `allowed` mask"
            )
        positions = torch.arange(start, end) if positions is None else positions
        # Embed the tokens
        x = self.embedding(tokens)  # (B, T, C)
        x = norm(x) if self.config.bare else x
        rotation = self.rotation[positions] if self.config.rope else None
        if not self.config.rope:
            x = x + self.position_embedding(positions)
        # Let every block read and write the residual stream
        for block in self.blocks:
            x = block(x, rotation, allowed, cache)
        if cache is not None:
            cache.length = end
        return self.final_norm(x)  # (B, T, C)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        allowed: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Return the logits (B, T, V) of the token that follows each of tokens (B, T).

        Arguments as in `hidden`.
        """
        return self.head(self.hidden(tokens, positions, allowed, cache))  # (B, T, V)


@torch.no_grad()
def initialise(model: GPT, generator: torch.Generator | None = None) -> None:
    """Fill a new model's weights with normals.

    GPT-2's small ones, or, where `bare`, ones that keep the variance of their input.
    """
    config = model.config
    for name, parameter in model.named_parameters():
        writes_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
        if parameter.dim() < 2:
            continue  # LayerNorm starts at gain 1 and bias 0; biases are handled below
        if config.bare:
            std = 1.0 if "embedding" in name else parameter.size(1) ** -0.5
        else:
            std = 0.02 * (2 * config.n_layer) ** -0.5 if writes_residual else 0.02
        parameter.normal_(std=std, generator=generator)
        if config.zero_init and (writes_residual or name == "head.weight"):
            parameter.zero_()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            module.bias.zero_()
    if not config.bare:
        model.head.weight = model.embedding.weight


def count_parameters(model: nn.Module) -> int:
    """The number of trained numbers in a model, a tied weight counted once."""
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def attention_maps(model: GPT, tokens: Tensor) -> Tensor:
    """How much each token looks at each earlier one: (n_layer, B, nh, T, T), rows sum
    to 1.
    """
    maps, T = [], tokens.size(1)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)

    def record(attention, inputs):
        q, k, _ = attention.queries_keys_values(*inputs[:2])
        scores = q @ k.mT / q.size(-1) ** 0.5  # (B, nh, T, T)
        maps.append(scores.masked_fill(future, -torch.inf).softmax(-1))

    # Watch each attention's input during one forward pass
    hooks = [
        block.attention.register_forward_pre_hook(record) for block in model.blocks
    ]
    model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(maps)
