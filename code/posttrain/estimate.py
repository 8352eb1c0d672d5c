"""What a run on many GPUs takes: arithmetic, hours, memory per GPU, traffic, money."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """What the estimates need to know of a transformer."""

    name: str
    parameters: float  # P
    layers: int
    width: int  # C
    vocabulary: int  # V


LLAMA_8B = Shape("Llama-3.1-8B", 8_030_261_248, 32, 4096, 128_256)

# Bytes per parameter, in mixed precision with Adam (Rajbhandari et al. 2020, section 3.1)
WEIGHTS, GRADIENTS, OPTIMIZER = 2.0, 2.0, 12.0  # the last: a float32 copy, and two moments
NF4 = 4.127 / 8  # bytes of a weight in QLoRA's code (Dettmers et al. 2023, section 3)


@dataclass(frozen=True)
class Run:
    """One run of SFT or DPO. What a GPU does and costs are assumptions: set your own.

    method: "full", "lora" or "qlora". tokens: those of one pass over the data, both answers of
    a pair counted with their prompts.
    """

    shape: Shape = LLAMA_8B
    stage: str = "sft"  # or "dpo"
    method: str = "full"
    tokens: float = 1e9  # D
    passes: int = 2  # over the data
    recompute: bool = True  # activations are computed again in the backward pass
    adapters: float = 0.005  # their parameters, as a share of the model's
    gpus: int = 8
    zero: int = 3  # cut up are: 0 nothing (DDP), 1 optimiser, 2 gradients too, 3 weights too
    sequences: int = 1  # on a GPU at a time
    length: int = 4096  # tokens of a sequence
    peak: float = 989e12  # FLOP/s of an H100 (SXM) in bfloat16, without sparsity
    utilisation: float = 0.4  # the share of it that is reached, recomputation counted
    memory: float = 80e9  # bytes of a GPU
    price: float = 2.5  # of an hour of one GPU


def flops_per_token(run: Run) -> float:
    """Operations per token and step: 2 P a forward pass, 4 P a backward pass.

    With frozen weights the backward pass has no weight gradients, and takes 2 P. Recomputation
    is a second forward pass, and DPO's reference another one. Attention's own products, which
    grow with the length, are left out. Source: Kaplan et al. 2020, section 2.1.
    """
    backward = 4 if run.method == "full" else 2
    passes = 2 + backward + (2 if run.recompute else 0)
    if run.stage == "dpo":
        passes += 2
    return passes * run.shape.parameters


def gpu_hours(run: Run) -> float:
    """Hours of one GPU for all passes over the data, at the assumed utilisation."""
    flops = flops_per_token(run) * run.tokens * run.passes
    return flops / (run.peak * run.utilisation) / 3600


def mfu(run: Run) -> float:
    """Model FLOPs utilisation: the utilisation without what is computed a second time.

    Source: Chowdhery et al. 2022, appendix B.
    """
    once = flops_per_token(replace(run, recompute=False))
    return run.utilisation * once / flops_per_token(run)


def sharded_bytes(parameters: float, gpus: int, zero: int) -> float:
    """Bytes on each GPU for weights, gradients and Adam, by the ZeRO stage (0 for none).

    Source: Rajbhandari et al. 2020, figure 1.
    """
    if zero not in (0, 1, 2, 3) or gpus < 1:
        raise ValueError(f"ZeRO stage {zero} on {gpus} GPUs: use 0 to 3, and at least one GPU")
    weights = WEIGHTS / (gpus if zero >= 3 else 1)
    gradients = GRADIENTS / (gpus if zero >= 2 else 1)
    optimizer = OPTIMIZER / (gpus if zero >= 1 else 1)
    return parameters * (weights + gradients + optimizer)


def state_bytes(run: Run) -> float:
    """Bytes on each GPU for all that outlives a step, the frozen weights included.

    DPO's reference is a frozen copy of the weights, or, with adapters, the model without them.
    """
    P, n = run.shape.parameters, run.gpus
    if run.method == "full":
        frozen = WEIGHTS * P if run.stage == "dpo" else 0.0
        trained = sharded_bytes(P, n, run.zero)
    else:
        frozen = (NF4 if run.method == "qlora" else WEIGHTS) * P
        trained = sharded_bytes(run.adapters * P, n, run.zero)
    return trained + frozen / (n if run.zero >= 3 else 1)


def activation_bytes(run: Run) -> float:
    """Bytes on each GPU between the forward and the backward pass, roughly.

    34 C per token and layer in 16 bits, where attention keeps no scores; with recomputation
    2 C, and one layer whole. Logits: their float32 copy and its gradient. DPO reads two
    answers per pair. Source: Korthikanti et al. 2023, section 4, for GPT-2's block.
    """
    shape = run.shape
    tokens = run.sequences * run.length * (2 if run.stage == "dpo" else 1)
    layer = 34 * shape.width * tokens
    layers = shape.layers * 2 * shape.width * tokens + layer
    return (layers if run.recompute else shape.layers * layer) + 8 * shape.vocabulary * tokens


def gathered_bytes(run: Run) -> float:
    """Bytes of the layers that ZeRO-3 has put together at a time: this one, and the next."""
    bytes_each = NF4 if run.method == "qlora" else WEIGHTS
    per_layer = run.shape.parameters / run.shape.layers * bytes_each
    return 2 * per_layer if run.zero == 3 and run.gpus > 1 else 0.0


def gpu_bytes(run: Run) -> float:
    """Bytes on each GPU: the lasting state, gathered layers, activations. Without the rest.

    The rest: the CUDA context, the allocator's gaps, buffers of the communication.
    """
    return state_bytes(run) + gathered_bytes(run) + activation_bytes(run)


def all_reduce_bytes(size: float, gpus: int) -> float:
    """What each GPU sends in a ring all-reduce of `size` bytes."""
    return 2 * (gpus - 1) / gpus * size


def break_even_tokens(
    flops_per_second: float, bytes_per_second: float, transfers: float = 2.0
) -> float:
    """Tokens per GPU and step from which the arithmetic takes longer than the communication.

    The arithmetic takes 6 P t / F seconds. The communication takes 2 P bytes (of 16 bits each)
    `transfers` times: twice for an all-reduce, three times for FSDP's gathers and scatter. P
    cancels.
    """
    return transfers * 2 * flops_per_second / (6 * bytes_per_second)


def estimate(run: Run) -> dict[str, float]:
    """`flops`, `gpu_hours`, `hours` by the clock, `price`, `gigabytes` per GPU, and `fits`.

    It fits where 10% more than that is there, for the rest.
    """
    hours, size = gpu_hours(run), gpu_bytes(run)
    return dict(
        flops=flops_per_token(run) * run.tokens * run.passes,
        gpu_hours=hours, hours=hours / run.gpus, price=hours * run.price,
        gigabytes=size / 1e9, fits=1.1 * size <= run.memory,
    )  # fmt: skip
