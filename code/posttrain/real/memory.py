"""What training a model takes in memory, computed from its configuration alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import nn

from posttrain.lora.adapters import linear_kinds, shape_of
from posttrain.lora.nf4 import named_layers
from posttrain.real.adapter import targets_of
from posttrain.real.model import build_empty

NF4_BITS = (
    4 + 8 / 64 + 32 / (64 * 256)
)  # per weight: the code, and both levels of scales
# Float32: the logits, their shifted copy, its log-softmax (or its gradient)
LOGIT_COPIES = 3
# The first matrix of an MLP of two; where there is a gate beside it, the MLP has three
WIDENING = {"c_fc", "fc1", "fc_in", "dense_h_to_4h", "up_proj"}


@dataclass(frozen=True)
class Counted:
    """How many numbers a model of any kind has, counted on the model itself."""

    matrices: tuple[tuple[str, int, int], ...]  # of all blocks: name, inputs, outputs
    head: int  # in a head that is not the embedding
    rest: int  # in all but matrices and head
    norms: int  # normalised numbers of a token, in all blocks

    @property
    def packed(self) -> int:
        """The numbers in the matrices."""
        return sum(n_in * n_out for _, n_in, n_out in self.matrices)

    def total(self, tied: bool) -> int:
        """All numbers, without a head of its own where that is tied."""
        return self.packed + self.rest + (0 if tied else self.head)


@dataclass(frozen=True)
class Architecture:
    """The numbers of a configuration that decide how large a model is."""

    vocab_size: int  # V
    width: int  # C
    n_layer: int
    n_head: int  # nh
    n_kv_head: (
        int  # heads that have keys and values of their own (grouped-query attention)
    )
    mlp_width: int  # F
    positions: int = 0  # rows of a learned table of positions; 0 for rotary ones
    head_size: int = 0  # hs; 0 for width / n_head
    # An MLP of three matrices, and RMSNorm; else GPT-2's two, and LayerNorm
    gated: bool = True
    tied: bool = True  # the head is the embedding
    qkv_bias: bool = False
    # What `architecture_of` has found; None where all follows from the numbers above
    counted: Counted | None = field(default=None, compare=False, repr=False)

    @property
    def queries(self) -> int:
        """The width of all heads' queries together."""
        return self.n_head * (self.head_size or self.width // self.n_head)

    @property
    def normed(self) -> int:
        """The normalised numbers of a token in one block: two norms, or as counted."""
        counted = self.counted.norms // self.n_layer if self.counted else 0
        return max(2 * self.width, counted)

    @property
    def keys(self) -> int:
        """The width of all heads' keys together, and of their values."""
        return self.n_kv_head * (self.head_size or self.width // self.n_head)


# As in each model's published config.json
KNOWN = {
    "GPT-2": Architecture(50257, 768, 12, 12, 12, 3072, positions=1024, gated=False),
    "SmolLM2-135M": Architecture(49152, 576, 30, 9, 3, 1536),
    "SmolLM2-360M": Architecture(49152, 960, 32, 15, 5, 2560),
    "Qwen2.5-0.5B": Architecture(151936, 896, 24, 14, 2, 4864, qkv_bias=True),
    "Llama-3.2-1B": Architecture(128256, 2048, 16, 32, 8, 8192),
    "SmolLM2-1.7B": Architecture(49152, 2048, 24, 32, 32, 8192),
    "Llama-3.1-8B": Architecture(128256, 4096, 32, 32, 8, 14336, tied=False),
}


def architecture_of(config) -> Architecture:
    """The architecture that a transformers configuration describes, of any kind.

    How many numbers there are is counted on the model, built without any. Raises
    ModelError for what is no causal language model.
    """
    model, text = build_empty(config), config.get_text_config()
    vocab_size, width = model.get_input_embeddings().weight.shape
    n_head = getattr(text, "num_attention_heads", None) or 1
    n_kv_head = getattr(text, "num_key_value_heads", None) or n_head
    counted = count(model, n_head, n_kv_head)
    names = {name.rpartition(".")[2] for name, _, _ in counted.matrices}
    shape = Architecture(
        vocab_size,
        width,
        text.num_hidden_layers,
        n_head,
        n_kv_head,
        mlp_width=0,
        positions=text.n_positions if config.model_type == "gpt2" else 0,
        head_size=getattr(text, "head_dim", None) or 0,
        gated=any("gate" in name for name in names) or not names & WIDENING,
        tied=counted.head == 0,
        qkv_bias=config.model_type == "qwen2",
        counted=counted,
    )
    return replace(shape, mlp_width=mlp_width_of(text, shape))


def count(model: nn.Module, n_head: int, n_kv_head: int) -> Counted:
    """Count a model's numbers. Its matrices are those that get adapters."""
    layers = named_layers(model, linear_kinds(model), targets_of(model))
    found = []
    for name, layer in layers:
        n_out, n_in = shape_of(layer)
        found.append((name, n_in, n_out))
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    own = 0 if head is None or head.weight is table.weight else head.weight.numel()
    total = sum(p.numel() for p in model.parameters())
    packed = sum(n_in * n_out for _, n_in, n_out in found)
    norms = normed_by(model, table.weight.size(1), n_head, n_kv_head)
    return Counted(tuple(found), own, total - packed - own, norms)


def normed_by(model: nn.Module, width: int, n_head: int, n_kv_head: int) -> int:
    """The numbers of a token that a model's norms normalise, but for the last norm's.

    A norm that is narrower than the residual stream is applied to each head.
    """
    total = -width
    for name, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if "Norm" in type(module).__name__ and weight is not None:
            heads = n_kv_head if "k_" in name.rpartition(".")[2] else n_head
            whole = len(weight) >= n_kv_head * (width // n_head)
            total += len(weight) * (1 if whole else heads)
    return total


def mlp_width_of(text, shape: Architecture) -> int:
    """The inner width of a block's MLP: as configured, or what its matrices leave.

    text: the configuration of the language model.
    """
    width = getattr(text, "intermediate_size", None)
    if isinstance(width, int):
        return width
    attention = 2 * shape.width * (shape.queries + shape.keys)
    left = block_matrix_parameters(shape) / shape.n_layer - attention
    return max(0, round(left / shape.width / (3 if shape.gated else 2)))


def matrices(shape: Architecture) -> dict[str, tuple[int, int]]:
    """The matrices of one block: inputs and outputs, by transformers' names."""
    C, Q, K, F = shape.width, shape.queries, shape.keys, shape.mlp_width
    if not shape.gated:
        mlp = {"c_fc": (C, F), "mlp.c_proj": (F, C)}
        return {"c_attn": (C, 3 * C), "attn.c_proj": (C, C)} | mlp
    return dict(
        q_proj=(C, Q),
        k_proj=(C, K),
        v_proj=(C, K),
        o_proj=(Q, C),
        gate_proj=(C, F),
        up_proj=(C, F),
        down_proj=(F, C),
    )


def block_matrix_parameters(shape: Architecture) -> int:
    """The numbers in the matrices of all blocks: what adapters sit on, and NF4
    packs.
    """
    if shape.counted:
        return shape.counted.packed
    return shape.n_layer * sum(m * n for m, n in matrices(shape).values())


def parameters(shape: Architecture) -> int:
    """How many numbers a model has, a tied head counted once."""
    if shape.counted:
        return shape.counted.total(shape.tied)
    C, tables = (
        shape.width,
        shape.vocab_size * (1 if shape.tied else 2) + shape.positions,
    )
    biases = sum(n for _, n in matrices(shape).values()) if not shape.gated else 0
    biases += shape.qkv_bias * (shape.queries + 2 * shape.keys)
    norm = C if shape.gated else 2 * C  # a gain, and GPT-2's bias
    vectors = shape.n_layer * (biases + 2 * norm) + norm
    return tables * C + block_matrix_parameters(shape) + vectors


def adapter_parameters(
    shape: Architecture, rank: int, targets: tuple[str, ...] = ()
) -> int:
    """The numbers in adapters of a rank on the matrices named, or on all of the
    blocks'.
    """
    block = [(name, m, n) for name, (m, n) in matrices(shape).items()]
    every = shape.counted.matrices if shape.counted else shape.n_layer * block
    return rank * sum(
        m + n for name, m, n in every if not targets or name.split(".")[-1] in targets
    )


@dataclass(frozen=True)
class Setting:
    """How a model is trained, as far as memory depends on it."""

    batch_size: int = 1  # B, rows of one forward pass
    length: int = 1024  # T, tokens of a row
    rank: int = 8  # of the adapters; 0 to train all weights
    targets: tuple[str, ...] = ()  # the matrices that have adapters; none named: all
    nf4: bool = False  # the blocks' matrices packed in four bits
    weight_bytes: int = 4  # of a weight: 4, or 2 in bfloat16
    bf16: bool = False  # products in bfloat16
    checkpointing: bool = False


def activation_bytes(shape: Architecture, setting: Setting, blocks: int) -> int:
    """What so many blocks keep of a forward pass for the way back."""
    C, tokens = shape.width, setting.batch_size * setting.length
    size = (
        2 if setting.bf16 or setting.weight_bytes == 2 else 4
    )  # of a product's result
    stream = setting.weight_bytes  # of the residual stream
    # Two norms: their input, and where they are trained the scaled input; then the
    # output, once, or cast to bfloat16 for each of the matrices that read it
    normed = shape.gated and not setting.rank
    norms = shape.normed * ((4 if shape.gated else stream) + normed * stream)
    norms += C * size * ((5 if shape.gated else 2) if setting.bf16 else 2)
    # Further norms, of queries and keys or behind a matrix: the output once
    norms += (shape.normed - 2 * C) * size
    # Of the adapters what is between A and B, and their own cast of the mixed values
    inner = setting.rank * len(matrices(shape)) * size
    inner += shape.queries * size if setting.rank and setting.bf16 else 0
    # Queries, keys, values and the mixed values; then what the MLP's products need
    attention = 2 * (shape.queries + shape.keys) * size
    mlp = (4 if shape.gated else 5) * shape.mlp_width * size
    return tokens * blocks * (norms + attention + mlp + inner)


def memory(shape: Architecture, setting: Setting) -> dict[str, int]:
    """The bytes that training takes, by what they hold; `total` is their sum.

    The parts are not all largest at one moment, so the total is a little more than the
    peak. The logits are those of every token: fewer are computed where fewer are
    graded.
    """
    n, packed = parameters(shape), block_matrix_parameters(shape) if setting.nf4 else 0
    trained = n
    if setting.rank:
        trained = adapter_parameters(shape, setting.rank, setting.targets)
    gradient = 4 if setting.rank else setting.weight_bytes
    # Keep all blocks' activations, or the input of each and one block's at a time
    tokens, stream = setting.batch_size * setting.length, setting.weight_bytes
    blocks = 1 if setting.checkpointing else shape.n_layer
    kept = activation_bytes(shape, setting, blocks)
    # All weights are cast to bfloat16, and with checkpointing the head's casts stay
    cast = n
    if setting.checkpointing:
        cast = shape.vocab_size * shape.width
        kept += shape.n_layer * tokens * shape.width * stream
    parts = dict(
        weights=round((n - packed) * setting.weight_bytes + packed * NF4_BITS / 8),
        casts=2 * cast if setting.bf16 and not setting.rank else 0,
        adapters=4 * trained if setting.rank else 0,
        gradients=trained * gradient,
        adam=2 * trained * gradient,
        activations=kept,
        logits=LOGIT_COPIES * 4 * tokens * shape.vocab_size,
    )
    return parts | dict(total=sum(parts.values()))


def stage_memory(stage: str, shape: Architecture, setting: Setting) -> dict[str, int]:
    """`memory` at a stage of `real`, with the other models that it holds.

    "reward" has a score instead of logits. "dpo" has a reference where all weights are
    trained (else it is the policy, its adapters off), and so has "ppo", which holds a
    value model that is trained as the policy is, and a judge that is not.
    """
    # A scoring model has no head, as if that were the embedding
    policy = memory(shape, setting)
    scoring = memory(replace(shape, tied=True), setting) | dict(logits=0)
    parts, others = (scoring if stage == "reward" else policy), 0
    if stage == "ppo":
        parts = {name: policy[name] + scoring[name] for name in policy}
        others = scoring["weights"] + scoring["adapters"]
    if stage in ("dpo", "ppo") and not setting.rank:
        others += policy["weights"]
    parts = parts | dict(other_models=others, total=0)
    return parts | dict(total=sum(parts.values()))


MEASURED_RANK = 16
MEASURED_ON = "NVIDIA H100 80GB, PyTorch 2.11, transformers 5.17"


def measured() -> list[dict]:
    """What `benchmarks/real_gpu.py` has measured: a case each, with its peak in GB."""
    path = Path(__file__).parents[1] / "data" / "real_gpu.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def setting_of(case: dict) -> Setting:
    """The setting of a case of `benchmarks/real_gpu.py`.

    `how` is "full32" (weights in float32, products in bfloat16), "full16", "lora" or
    "qlora"; `micro` counts conversations, or pairs of two rows each.
    """
    how, rows = case["how"], 2 if case["stage"] == "dpo" else 1
    return Setting(
        batch_size=rows * case["micro"],
        length=case["length"],
        rank=MEASURED_RANK if "lora" in how else 0,
        nf4=how == "qlora",
        weight_bytes=4 if how == "full32" else 2,
        bf16=how != "full16",
        checkpointing=case["checkpointing"],
    )


def cache_bytes(
    shape: Architecture, batch_size: int, length: int, size: int = 2
) -> int:
    """The keys and values that writing so many tokens for each of a batch's rows
    keeps.
    """
    return 2 * shape.n_layer * shape.keys * batch_size * length * size


def describe(parts: dict[str, int]) -> str:
    """A line for a terminal: the total, and what it is made of, in GB (10^9 bytes) or
    MB.
    """
    unit, name = (1e9, "GB") if parts["total"] >= 1e9 else (1e6, "MB")
    shown = ", ".join(
        f"{part} {size / unit:.2f}"
        for part, size in parts.items()
        if size and part != "total"
    )
    return f"{parts['total'] / unit:.2f} {name} ({shown})"
