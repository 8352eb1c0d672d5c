"""SFT, DPO and rollouts over several processes: the book's losses, each process with
its rows.

`torchrun --standalone --nproc-per-node 2 -m posttrain.scale.distributed sft` trains the
book's model.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain.batches import Part, follow
from posttrain.chat import grow_vocabulary
from posttrain.data import corpus, datasets
from posttrain.dpo import DPOConfig, dpo_batches
from posttrain.gpt import GPT
from posttrain.optim import Descent, linear_fall
from posttrain.preference_pairs import Pair, encode_pairs
from posttrain.pretrain import PretrainConfig, build_optimizers
from posttrain.sampling import Samples, generate
from posttrain.scale.launch import joined
from posttrain.scale.ring import average_gradients
from posttrain.sft import SFTConfig, encode_conversations, sft_batches
from posttrain.stages import base_model, encode_split, sft_model
from posttrain.tokenizer import CharTokenizer

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard
except ImportError:  # before PyTorch 2.6
    FSDPModule = fully_shard = None

ENGINES = ("ring", "ddp", "fsdp")
# DDP's switch for sending buffers round before each pass; RoPE's table is the same
# everywhere
DDP_SWITCHES = inspect.signature(nn.parallel.DistributedDataParallel).parameters
BUFFERS = next(
    s for s in ("forward_sync_buffers", "broadcast_buffers") if s in DDP_SWITCHES
)


def mine(rows: Sequence) -> Sequence:
    """This process's rows: every N-th, from its rank on. No row belongs to two."""
    return rows[dist.get_rank() :: dist.get_world_size()]


def total(numbers: list[float]) -> list[float]:
    """Each number's sum over all processes."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    sums = torch.tensor(numbers, dtype=torch.float64, device=device)
    dist.all_reduce(sums)
    return sums.tolist()


def gather(rows: list) -> list:
    """All processes' rows, in the order they had before `mine` dealt them out."""
    everyone: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, rows)
    n = sum(map(len, everyone))
    return [everyone[i % len(everyone)][i // len(everyone)] for i in range(n)]


def share_model(model: GPT, engine: str) -> nn.Module:
    """The model as the engine wants it called: itself, in DDP, or cut up by FSDP in
    place.

    Raises ValueError for another engine, and for "fsdp" where PyTorch has no
    `fully_shard`.
    """
    if engine not in ENGINES:
        raise ValueError(f"{engine!r} is no engine: use one of {', '.join(ENGINES)}")
    if engine == "ddp":
        return nn.parallel.DistributedDataParallel(model, **{BUFFERS: False})
    if engine == "fsdp":
        if fully_shard is None:
            raise ValueError(
                f"PyTorch {torch.__version__} has no fully_shard: use 'ddp'"
            )
        # A block's weights are gathered when it is called, and dropped when it is done
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    return model


class Together:
    """This process as one of all that train a model: the crew of `batches.follow`."""

    def __init__(self, engine: str):
        self.engine, self.rank, self.size = (
            engine,
            dist.get_rank(),
            dist.get_world_size(),
        )

    @contextlib.contextmanager
    def turn(self, shared: nn.Module, last: bool) -> Iterator[None]:
        """Let a backward pass add its gradients up here, and talk to the others in the
        last.
        """
        if FSDPModule is not None and isinstance(shared, FSDPModule):
            shared.set_requires_gradient_sync(last)
        silent = isinstance(shared, nn.parallel.DistributedDataParallel) and not last
        with shared.no_sync() if silent else contextlib.nullcontext():
            yield

    def share(self, shared: nn.Module) -> None:
        """Average the gradients over the processes, where the engine has not done
        so.
        """
        if self.engine == "ring":
            average_gradients(shared.parameters())

    def total(self, numbers: list[float]) -> list[float]:
        """Each number's sum over all processes."""
        return total(numbers)


def follow_together(
    model: GPT,
    batches: Iterator[list[Part]],
    build: Callable[[GPT], list[torch.optim.Optimizer]],
    steps: int,
    crew: Together,
) -> Iterator[dict[str, float]]:
    """Train the model in place, all processes in step.

    build: the optimisers of the model as the engine has it. Yields each step's numbers,
    those of the whole batch. Raises ValueError, everywhere, for a loss that is not a
    number, and for what the engine cannot do.
    """
    shared = share_model(model, crew.engine)
    return follow(shared, batches, Descent(build(model), linear_fall(steps)), crew)


def distributed_sft(
    model: GPT,
    examples: list,
    text: Tensor,
    config: SFTConfig,
    pad: int,
    engine: str = "ddp",
    muon: bool = True,
) -> Iterator[dict[str, float]]:
    """`sft_steps` over all processes of the group: the same batches, losses and
    weights.

    Arguments as there; the model is on the device to work on. Raises as
    `follow_together`, and for Muon with FSDP.
    """
    if engine == "fsdp" and muon:
        raise ValueError(
            "Muon needs whole matrices and FSDP has slices: use AdamW (muon=False)"
        )
    rates = PretrainConfig(muon=muon, muon_lr=config.muon_lr, adamw_lr=config.adamw_lr)
    build, crew = partial(build_optimizers, config=rates), Together(engine)
    batches = sft_batches(examples, text, config, pad, crew)
    return follow_together(model, batches, build, config.steps, crew)


def distributed_dpo(
    policy: GPT,
    reference: GPT,
    pairs: list[Pair],
    config: DPOConfig,
    engine: str = "ddp",
) -> Iterator[dict[str, float]]:
    """`dpo_steps` over all processes of the group: the same batches, losses and
    weights.

    Each process asks the reference about its own pairs. Raises as `follow_together`,
    and for KTO, whose baseline is of the whole batch.
    """
    if config.loss == "kto":
        raise ValueError(
            "KTO's baseline needs the whole batch in one process: use another loss"
        )
    crew = Together(engine)
    batches = dpo_batches(reference, pairs, config, CharTokenizer().pad, crew)

    def build(model: GPT) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(model.parameters(), lr=config.lr)]

    return follow_together(policy, batches, build, config.steps, crew)


def stream(seed: int, index: int) -> torch.Generator:
    """A generator of its own for each pair of numbers.

    PyTorch's generator on the CPU reads 32 bits of a seed, so the two are hashed into
    these.
    """
    hashed = np.random.SeedSequence((seed, index)).generate_state(1)[0]
    return torch.Generator().manual_seed(int(hashed))


def sharded_samples(
    model: GPT,
    prompts: list[list[int]],
    max_new_tokens: int,
    *,
    seed: int,
    temperature: float = 1.0,
    stop: int | None = None,
    chunk: int = 4,
) -> Samples:
    """`generate` for all prompts, each process answering some; all get all answers.

    Prompts go in chunks of a fixed size, each with a generator of its own, so that the
    answers depend on the seed and the chunk's size, and not on the number of processes.
    On the CPU.
    """
    chunks = [(i, prompts[i : i + chunk]) for i in range(0, len(prompts), chunk)]
    done = []
    for i, some in mine(chunks):
        samples = generate(
            model,
            some,
            max_new_tokens,
            generator=stream(seed, i),
            temperature=temperature,
            stop=stop,
        )
        done.append((samples.tokens, samples.mask, samples.logprobs))
    columns = zip(*gather(done))
    return Samples(*(stack_rows(rows) for rows in columns))


def stack_rows(parts: Sequence[Tensor]) -> Tensor:
    """(b, n) of several widths as one (B, N), zeros on the right."""
    width = max(part.size(1) for part in parts)
    padded = [nn.functional.pad(part, (0, width - part.size(1))) for part in parts]
    return torch.cat(padded)


def whole_weights(model: GPT) -> dict[str, Tensor]:
    """The complete weights, on process 0; with FSDP empty on the others.

    Every process has to call this: with FSDP each holds a slice.
    """
    if FSDPModule is None or not isinstance(model, FSDPModule):
        return {
            name: value.detach().cpu() for name, value in model.state_dict().items()
        }
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def save_whole(model: GPT, path: Path) -> None:
    """Write the complete weights, as a single process loads them; whole or not at
    all.
    """
    weights = whole_weights(model)
    if dist.get_rank() == 0:
        unfinished = path.with_name(path.name + ".unfinished")
        safetensors.torch.save_file(weights, unfinished)
        unfinished.replace(path)
    dist.barrier()


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(
        "torchrun ... -m posttrain.scale.distributed", description=__doc__
    )
    parser.add_argument("stage", choices=("sft", "dpo"))
    parser.add_argument("--engine", choices=ENGINES, default="ddp")
    parser.add_argument(
        "--adamw", action="store_true", help="sft: AdamW for all weights, no Muon"
    )
    parser.add_argument("--steps", type=int, help="fewer or more than the book's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a file for the weights, .safetensors")
    options = parser.parse_args(arguments)
    if options.stage == "dpo" and options.adamw:
        parser.error("--adamw is for sft: DPO trains with Adam in any case")
    if options.stage == "sft" and options.engine == "fsdp" and not options.adamw:
        parser.error("Muon needs whole matrices and FSDP has slices: add --adamw")
    if options.out and not options.out.parent.is_dir():
        parser.error(f"there is no folder {options.out.parent}")
    return options


def start(options: argparse.Namespace, device: torch.device) -> tuple[GPT, Iterator]:
    """The model of the book that a run starts from, and the run."""
    text, tokenizer = corpus.load(), CharTokenizer()
    chosen = dict(seed=options.seed) | (
        dict(steps=options.steps) if options.steps else {}
    )
    if options.stage == "sft":
        model = grow_vocabulary(base_model(text)[0], tokenizer.vocab_size).to(device)
        rows = datasets.conversations()
        examples = encode_conversations(rows, tokenizer, model.config.context)
        tokens, config = encode_split(text)[0], SFTConfig(**chosen)
        how = dict(engine=options.engine, muon=not options.adamw)
        return model, distributed_sft(
            model, examples, tokens, config, tokenizer.pad, **how
        )
    reference = sft_model(text, SFTConfig(seed=options.seed))[0].to(device)
    policy = GPT(replace(reference.config)).to(device)
    policy.load_state_dict(reference.state_dict())
    pairs = encode_pairs(datasets.preferences(), tokenizer, policy.config.context)
    config = DPOConfig(**chosen)
    return policy, distributed_dpo(policy, reference, pairs, config, options.engine)


def main(arguments: list[str] | None = None) -> int:
    """Train the book's model as one of several processes; return the exit status."""
    options = parse(arguments)
    try:
        with joined() as device:
            model, run = start(options, device)
            for step, losses in enumerate(run, start=1):
                if dist.get_rank() == 0:
                    told = ", ".join(
                        f"{name} {loss:.4f}" for name, loss in losses.items()
                    )
                    print(f"step {step}: {told}", flush=True)
            if options.out:
                save_whole(model, options.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
