"""What a run on many GPUs takes: arithmetic, hours, memory per GPU, traffic, money."""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrain.real.memory import KNOWN, Architecture, Setting, memory, parameters

# Bytes per parameter, in mixed precision with Adam (Rajbhandari et al. 2020, section
# 3.1). The last: a float32 copy, and two moments. Training in float32 takes the same
# 16, as 4 + 4 + 8
WEIGHTS, GRADIENTS, OPTIMIZER = 2.0, 2.0, 12.0


@dataclass(frozen=True)
class Run:
    """One run of SFT or DPO. What a GPU does and costs are assumptions: set your own.

    method: "full", "lora" or "qlora". tokens: those of one pass over the data, both
    answers of a pair counted with their prompts.
    """

    shape: Architecture = KNOWN["Llama-3.1-8B"]
    stage: str = "sft"  # or "dpo"
    method: str = "full"
    tokens: float = 1e9  # D
    passes: int = 2  # over the data
    recompute: bool = True  # activations are computed again in the backward pass
    rank: int = 16  # of the adapters, which sit on all matrices of the blocks
    gpus: int = 8
    # Cut up are: 0 nothing (DDP), 1 optimiser, 2 gradients too, 3 weights too
    zero: int = 3
    sequences: int = 1  # on a GPU at a time
    length: int = 4096  # tokens of a sequence
    peak: float = 989e12  # FLOP/s of an H100 (SXM) in bfloat16, without sparsity
    utilisation: float = 0.4  # the share that tuned code reaches, recomputation counted
    memory: float = 80e9  # bytes of a GPU
    price: float = 2.5  # of an hour of one GPU


def flops_per_token(run: Run) -> float:
    """Operations per token and step: 2 P a forward pass, 4 P a backward pass.

    With frozen weights the backward pass has no weight gradients, and takes 2 P.
    Recomputation is a second forward pass, and DPO's reference another one. Left out
    are attention's own products, which grow with the length, and the adapters', which
    are few. Source: Kaplan et al. 2020, section 2.1.
    """
    backward = 4 if run.method == "full" else 2
    passes = 2 + backward + (2 if run.recompute else 0)
    if run.stage == "dpo":
        passes += 2
    return passes * parameters(run.shape)


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


def slice_of(part: str, gpus: int, zero: int) -> float:
    """The share of a part of memory that each GPU holds, by the ZeRO stage (0 for
    none).

    Each stage cuts up one thing more; what is not named here, every GPU has whole.
    Raises ValueError for another stage, and without a GPU. Source: Rajbhandari et al.
    2020, section 5.
    """
    if zero not in (0, 1, 2, 3) or gpus < 1:
        raise ValueError(
            f"ZeRO stage {zero} on {gpus} GPUs: use 0 to 3, and at least one GPU"
        )
    cut_from = dict(adam=1, gradients=2, weights=3, adapters=3, reference=3)
    return 1 / gpus if zero >= cut_from.get(part, 4) else 1.0


def sharded_bytes(parameters: float, gpus: int, zero: int) -> float:
    """Bytes on each GPU for weights, gradients and Adam, by the ZeRO stage (0 for
    none).

    Raises ValueError as `slice_of` does. Source: Rajbhandari et al. 2020, figure 1.
    """
    weights = WEIGHTS * slice_of("weights", gpus, zero)
    gradients = GRADIENTS * slice_of("gradients", gpus, zero)
    optimizer = OPTIMIZER * slice_of("adam", gpus, zero)
    return parameters * (weights + gradients + optimizer)


def setting_for(run: Run) -> Setting:
    """How one GPU of the run trains: weights and products in 16 bits, a pair as two
    rows.
    """
    adapted = run.method != "full"
    return Setting(
        batch_size=run.sequences * (2 if run.stage == "dpo" else 1),
        length=run.length,
        rank=run.rank if adapted else 0,
        nf4=run.method == "qlora",
        weight_bytes=2,
        bf16=adapted,
        checkpointing=run.recompute,
    )


def gathered_bytes(run: Run) -> float:
    """Bytes of the weights that ZeRO-3 has put together at a time; 0 where none are cut
    up.

    This block and the next; and what is outside the blocks, embedding and head, which
    FSDP keeps until the backward pass is done.
    """
    if run.zero < 3 or run.gpus == 1:
        return 0.0
    two_blocks = replace(run.shape, n_layer=min(2, run.shape.n_layer))
    return float(memory(two_blocks, setting_for(run))["weights"])


def gpu_bytes(run: Run) -> dict[str, float]:
    """Bytes on each GPU by what they hold, of which ZeRO cuts up some; `total` is their
    sum.

    What one GPU holds is `memory`'s count, where adapters are float32. If all weights
    are trained, that is a run in 16 bits throughout, and Adam's moments are 4 bytes per
    parameter; mixed precision has 12 in their place, and 16 in all, as in
    `sharded_bytes`. DPO then has a frozen copy of the weights as `reference`; with
    adapters it is the model without them. Left out: the CUDA context, the allocator's
    gaps, gradients that wait to be summed.
    """
    parts: dict[str, float] = dict(memory(run.shape, setting_for(run)))
    del parts["total"]
    if run.method == "full":
        parts["adam"] = OPTIMIZER * parameters(run.shape)
        parts["reference"] = parts["weights"] if run.stage == "dpo" else 0.0
    parts = {
        part: size * slice_of(part, run.gpus, run.zero) for part, size in parts.items()
    }
    parts["gathered"] = gathered_bytes(run)
    return parts | dict(total=sum(parts.values()))


def all_reduce_bytes(size: float, gpus: int) -> float:
    """What each GPU sends in a ring all-reduce of `size` bytes."""
    return 2 * (gpus - 1) / gpus * size


def break_even_tokens(
    flops_per_second: float, bytes_per_second: float, transfers: float = 2.0
) -> float:
    """Tokens per GPU and step from which the arithmetic takes longer than the
    communication.

    The arithmetic takes 6 P t / F seconds. The communication takes 2 P bytes (of 16
    bits each) `transfers` times: twice for an all-reduce, three times for FSDP's
    gathers and scatter. P cancels.
    """
    return transfers * 2 * flops_per_second / (6 * bytes_per_second)


def estimate(run: Run) -> dict[str, float]:
    """`flops`, `gpu_hours`, `hours` by the clock, `price`, `gigabytes` per GPU, and
    `fits`.

    It fits where 10% more than that is there, for the rest.
    """
    hours, size = gpu_hours(run), gpu_bytes(run)["total"]
    return dict(
        flops=flops_per_token(run) * run.tokens * run.passes,
        gpu_hours=hours,
        hours=hours / run.gpus,
        price=hours * run.price,
        gigabytes=size / 1e9,
        fits=1.1 * size <= run.memory,
    )
