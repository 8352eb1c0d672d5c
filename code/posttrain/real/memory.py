"""What training a model takes in memory, computed from its configuration alone."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from posttrain.real.model import ModelError

NF4_BITS = (
    4 + 8 / 64 + 32 / (64 * 256)
)  # per weight: the code, and both levels of scales
# Float32: the logits, their shifted copy, its log-softmax (or its gradient)
LOGIT_COPIES = 3


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

    @property
    def queries(self) -> int:
        """The width of all heads' queries together."""
        return self.n_head * (self.head_size or self.width // self.n_head)

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
    """The architecture that a transformers configuration describes.

    Raises ModelError for a kind of model that this module does not know.
    """
    if config.model_type == "gpt2":
        mlp = config.n_inner or 4 * config.n_embd
        return Architecture(
            config.vocab_size,
            config.n_embd,
            config.n_layer,
            config.n_head,
            config.n_head,
            mlp,
            positions=config.n_positions,
            gated=False,
            tied=config.tie_word_embeddings,
        )
    if config.model_type not in ("llama", "qwen2", "mistral"):
        raise ModelError(
            f"the memory of a {config.model_type!r} model is not known: gpt2, llama, "
            "qwen2 and "
            "mistral are"
        )
    return Architecture(
        config.vocab_size,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.intermediate_size,
        head_size=getattr(config, "head_dim", None) or 0,
        tied=config.tie_word_embeddings,
        qkv_bias=config.model_type == "qwen2",
    )


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
    return shape.n_layer * sum(m * n for m, n in matrices(shape).values())


def parameters(shape: Architecture) -> int:
    """How many numbers a model has, a tied head counted once."""
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
    named = {
        name: size
        for name, size in matrices(shape).items()
        if not targets or name.split(".")[-1] in targets
    }
    return shape.n_layer * rank * sum(m + n for m, n in named.values())


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
    norms = 2 * C * ((4 if shape.gated else stream) + normed * stream)
    norms += C * size * ((5 if shape.gated else 2) if setting.bf16 else 2)
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
    peak.
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
