"""SFT, DPO and rollouts over several processes: the book's losses, each process with its rows.

`torchrun --standalone --nproc-per-node 2 -m posttrain.scale.distributed sft` trains the book's model.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from posttrain.batches import epochs
from posttrain.chat import IGNORE, collate, grow_vocabulary
from posttrain.data import corpus, datasets
from posttrain.dpo import DPOConfig, check_config, pair_logprobs, pair_loss
from posttrain.gpt import GPT
from posttrain.optim import set_rates
from posttrain.preference_pairs import Pair, encode_pairs
from posttrain.pretrain import (
    PretrainConfig,
    build_optimizers,
    next_token_loss,
    random_batch,
)
from posttrain.sampling import Samples, generate
from posttrain.scale.launch import joined
from posttrain.scale.ring import average_gradients
from posttrain.sft import SFTConfig, count_graded, encode_conversations, sft_loss
from posttrain.stages import base_model, encode_split, sft_model
from posttrain.tokenizer import CharTokenizer

try:
    from torch.distributed.fsdp import FSDPModule, fully_shard
except ImportError:  # before PyTorch 2.6
    FSDPModule = fully_shard = None

ENGINES = ("ring", "ddp", "fsdp")
# DDP's switch for sending buffers round before each pass; RoPE's table is the same everywhere
DDP_SWITCHES = inspect.signature(nn.parallel.DistributedDataParallel).parameters
BUFFERS = next(s for s in ("forward_sync_buffers", "broadcast_buffers") if s in DDP_SWITCHES)


@dataclass(frozen=True)
class Part:
    """What one process has to do for one term of a step's loss."""

    name: str  # terms of one name are added up and reported
    weight: float
    loss: Callable[[nn.Module], Tensor]  # summed over the processes, it is the whole batch's


def mine(rows: Sequence) -> Sequence:
    """This process's rows: every N-th, from its rank on. No row belongs to two."""
    return rows[dist.get_rank() :: dist.get_world_size()]


def total(number: float | Tensor) -> float:
    """The sum of a number over all processes."""
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    number = torch.as_tensor(number, dtype=torch.float64, device=device).detach().clone()
    dist.all_reduce(number)
    return number.item()


def gather(rows: list) -> list:
    """All processes' rows, in the order they had before `mine` dealt them out."""
    everyone: list[list] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everyone, rows)
    n = sum(map(len, everyone))
    return [everyone[i % len(everyone)][i // len(everyone)] for i in range(n)]


def share_model(model: GPT, engine: str) -> nn.Module:
    """The model as the engine wants it called: itself, in DDP, or cut up by FSDP in place.

    Raises ValueError for another engine, and for "fsdp" where PyTorch has no `fully_shard`.
    """
    if engine not in ENGINES:
        raise ValueError(f"{engine!r} is no engine: use one of {', '.join(ENGINES)}")
    if engine == "ddp":
        return nn.parallel.DistributedDataParallel(model, **{BUFFERS: False})
    if engine == "fsdp":
        if fully_shard is None:
            raise ValueError(f"PyTorch {torch.__version__} has no fully_shard: use 'ddp'")
        # A block's weights are gathered when it is called, and dropped when it is done
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
    return model


@contextlib.contextmanager
def synchronised(shared: nn.Module, last: bool) -> Iterator[None]:
    """Within the block, backward passes add up here, and talk to the others in the last one."""
    if FSDPModule is not None and isinstance(shared, FSDPModule):
        shared.set_requires_gradient_sync(last)
    silent = isinstance(shared, nn.parallel.DistributedDataParallel) and not last
    with shared.no_sync() if silent else contextlib.nullcontext():
        yield


def follow(
    model: GPT, engine: str, optimizer_rates: PretrainConfig, steps: int,
    batches: Iterator[list[Part]],
) -> Iterator[dict[str, float]]:
    """Train the model in place, all processes in step; yield each term's loss before the step.

    A term's loss is that of the whole batch, the same on every process. The rates fall in a
    straight line to 0. Raises ValueError, everywhere, for a loss that is not a number.
    """
    # Flush denormals, as in pre-training
    torch.set_flush_denormal(True)
    if engine == "fsdp" and optimizer_rates.muon:
        raise ValueError(
            "Muon needs whole matrices and FSDP has slices: use AdamW (muon=False)"
        )
    shared = share_model(model, engine)
    optimizers = build_optimizers(model, optimizer_rates)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    peaks = [group["lr"] for group in groups]
    for step, parts in enumerate(batches):
        set_rates(groups, peaks, 1 - step / steps)
        noted: dict[str, Tensor | float] = {}
        for part in parts:
            with synchronised(shared, last=part is parts[-1]):
                loss = part.loss(shared)
                # Undo the engine's division by N: the losses add up, and so must the gradients
                (dist.get_world_size() * part.weight * loss).backward()
            noted[part.name] = noted.get(part.name, 0.0) + loss.detach()
        if engine == "ring":
            average_gradients(model.parameters())
        losses = {name: total(loss) for name, loss in noted.items()}
        if not np.isfinite(list(losses.values())).all():
            raise ValueError(f"the loss of step {step} is {losses}: lower the rate")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        yield losses


def conversation_parts(
    name: str, weight: float, examples: list, size: int, pad: int, device: torch.device,
    whole_batch: bool = True,
) -> list[Part]:
    """The SFT loss of a batch, of which this process reads its rows, `size` at a time.

    The sum over them is divided by the graded tokens of the *whole batch*; without whole_batch
    by this process's own, times N: the mean of means, which is a mistake.
    """
    own = mine(examples)
    # Read one row without its labels where there are fewer rows than processes
    tokens, labels = collate(own or examples[:1], pad)  # (B / N, T)
    labels = labels if own else torch.full_like(labels, IGNORE)
    n_graded = count_graded(labels)
    n_graded = total(n_graded) if whole_batch else max(n_graded, 1) * dist.get_world_size()
    tokens, labels = tokens.to(device), labels.to(device)
    # Take as many turns as the process with the most rows: all talk in the last
    turns = max(1, -(-len(examples) // (dist.get_world_size() * size)))
    rows = zip(tokens.tensor_split(turns), labels.tensor_split(turns))
    return [Part(name, weight, sft_part(*some, n_graded)) for some in rows]


def sft_part(tokens: Tensor, labels: Tensor, n_graded: float) -> Callable:
    """The SFT loss of some rows as a function of the model; without rows, 0 of one token."""
    if not len(tokens):
        tokens, labels = tokens.new_zeros(1, 2), labels.new_full((1, 2), IGNORE)
    return lambda model: sft_loss(model(tokens), labels, n_graded)


def sft_batches(
    examples: list, text: Tensor, config: SFTConfig, pad: int, device: torch.device,
    whole_batch: bool = True,
) -> Iterator[list[Part]]:
    """What this process does in each step of SFT; all draw the same batches, as one would."""
    generator = torch.Generator().manual_seed(config.seed)
    batches = epochs(len(examples), config.batch_size, generator)
    for _ in range(config.steps):
        rows, size = [examples[i] for i in next(batches)], config.micro_batch_size
        parts = conversation_parts("sft", 1.0, rows, size, pad, device, whole_batch)
        if config.replay:
            excerpt = random_batch(text, config.replay, config.replay_length, generator)
            parts.append(replay_part(excerpt, config.replay_weight, device))
        yield parts


def replay_part(
    excerpt: tuple[Tensor, Tensor], weight: float, device: torch.device
) -> Part:
    """The loss of some pre-training text, of which this process reads its excerpts."""
    own = mine(excerpt[0]), mine(excerpt[1])
    share = len(own[0]) / len(excerpt[0])
    inputs, targets = (x.to(device) for x in (own if share else [x[:1] for x in excerpt]))
    return Part("replay", weight, lambda model: share * next_token_loss(model, inputs, targets))


def distributed_sft(
    model: GPT, examples: list, text: Tensor, config: SFTConfig, pad: int,
    engine: str = "ddp", muon: bool = True, whole_batch: bool = True,
) -> Iterator[dict[str, float]]:
    """`sft_steps` over all processes of the group: the same batches, losses and weights.

    Yields each step's losses, `sft` and `replay`. Arguments as there; the model is on the
    device to work on. Errors as in `follow`.
    """
    device = model.head.weight.device
    rates = PretrainConfig(
        muon=muon, muon_lr=config.muon_lr, adamw_lr=config.adamw_lr, weight_decay=0.0
    )
    batches = sft_batches(examples, text, config, pad, device, whole_batch)
    return follow(model, engine, rates, config.steps, batches)


def pair_part(
    pairs: list[Pair], reference_logprobs: Tensor, config: DPOConfig, device: torch.device
) -> Part:
    """The preference loss of a batch, of which this process reads its pairs."""
    own = mine(range(len(pairs)))
    share, rows = len(own) / len(pairs), list(own) or [0]
    asked = reference_logprobs[:, rows].to(device)  # (2, B / N)
    batch = [pairs[i] for i in rows]

    def loss(model: nn.Module) -> Tensor:
        with device:
            return share * pair_loss(model, None, batch, asked, config)[0]

    return Part("dpo", 1.0, loss)


def dpo_batches(
    reference_logprobs: Tensor, pairs: list[Pair], config: DPOConfig, conversations: Sequence,
    device: torch.device,
) -> Iterator[list[Part]]:
    """What this process does in each step of DPO; all draw the same batches, as one would."""
    pad, generator = CharTokenizer().pad, torch.Generator().manual_seed(config.seed)
    batches = epochs(len(pairs), min(config.batch_size, len(pairs)), generator)
    replayed = epochs(len(conversations), config.replay, generator)
    for _ in range(config.steps):
        rows = next(batches)
        batch, asked = [pairs[i] for i in rows], reference_logprobs[:, rows]  # (2, B)
        parts = [pair_part(batch, asked, config, device)]
        if config.replay and conversations:
            some = [conversations[i] for i in next(replayed)]
            weight, size = config.replay_weight, config.replay
            parts += conversation_parts("replay", weight, some, size, pad, device)
        yield parts


def distributed_dpo(
    policy: GPT, reference: GPT, pairs: list[Pair], config: DPOConfig,
    conversations: Sequence[tuple[list[int], list[int]]] = (),
    engine: str = "ddp", muon: bool = True,
) -> Iterator[dict[str, float]]:
    """`dpo_steps` over all processes of the group: the same batches, losses and weights.

    Yields each step's losses, `dpo` and `replay`. Raises ValueError as `dpo_steps` does, and
    for KTO, whose baseline is of the whole batch.
    """
    check_config(config)
    if config.loss == "kto":
        raise ValueError(
            "KTO's baseline needs the whole batch in one process: use another loss"
        )
    device = policy.head.weight.device
    # Ask the reference once, each process about its pairs
    own = mine(pairs)
    with device:
        known = list(pair_logprobs(reference, own, CharTokenizer().pad).cpu().T) if own else []
    known = torch.stack(gather(known), dim=1)  # (2, N)
    rates = PretrainConfig(
        muon=muon, muon_lr=config.muon_lr, adamw_lr=config.adamw_lr, weight_decay=0.0
    )
    batches = dpo_batches(known, pairs, config, conversations, device)
    return follow(policy, engine, rates, config.steps, batches)


def stream(seed: int, index: int) -> torch.Generator:
    """A generator of its own for each pair of numbers.

    PyTorch's generator on the CPU reads 32 bits of a seed, so the two are hashed into these.
    """
    hashed = np.random.SeedSequence((seed, index)).generate_state(1)[0]
    return torch.Generator().manual_seed(int(hashed))


def sharded_samples(
    model: GPT, prompts: list[list[int]], max_new_tokens: int, *, seed: int,
    temperature: float = 1.0, stop: int | None = None, chunk: int = 4,
) -> Samples:
    """`generate` for all prompts, each process answering some; all get all answers.

    Prompts go in chunks of a fixed size, each with a generator of its own, so that the answers
    depend on the seed and the chunk's size, and not on the number of processes. On the CPU.
    """
    chunks = [(i, prompts[i : i + chunk]) for i in range(0, len(prompts), chunk)]
    done = []
    for i, some in mine(chunks):
        samples = generate(
            model, some, max_new_tokens,
            generator=stream(seed, i), temperature=temperature, stop=stop,
        )  # fmt: skip
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
        return {name: value.detach().cpu() for name, value in model.state_dict().items()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(model, options=options)


def save_whole(model: GPT, path: Path) -> None:
    """Write the complete weights, as a single process loads them; whole or not at all."""
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
    parser.add_argument("--adamw", action="store_true", help="AdamW for all weights, no Muon")
    parser.add_argument("--steps", type=int, help="fewer or more than the book's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="a file for the weights, .safetensors")
    options = parser.parse_args(arguments)
    if options.engine == "fsdp" and not options.adamw:
        parser.error("Muon needs whole matrices and FSDP has slices: add --adamw")
    if options.out and not options.out.parent.is_dir():
        parser.error(f"there is no folder {options.out.parent}")
    return options


def start(options: argparse.Namespace, device: torch.device) -> tuple[GPT, Iterator]:
    """The model of the book that a run starts from, and the run."""
    text, tokenizer = corpus.load(), CharTokenizer()
    chosen = dict(seed=options.seed) | (dict(steps=options.steps) if options.steps else {})
    how = dict(engine=options.engine, muon=not options.adamw)
    conversations = datasets.conversations()
    if options.stage == "sft":
        model = grow_vocabulary(base_model(text)[0], tokenizer.vocab_size).to(device)
        examples = encode_conversations(conversations, tokenizer, model.config.context)
        tokens, config = encode_split(text)[0], SFTConfig(**chosen)
        return model, distributed_sft(model, examples, tokens, config, tokenizer.pad, **how)
    reference = sft_model(text, SFTConfig(seed=options.seed))[0].to(device)
    policy = GPT(replace(reference.config)).to(device)
    policy.load_state_dict(reference.state_dict())
    examples = encode_conversations(conversations, tokenizer, policy.config.context)
    pairs = encode_pairs(datasets.preferences(), tokenizer, policy.config.context)
    run = distributed_dpo(policy, reference, pairs, DPOConfig(**chosen), examples, **how)
    return policy, run


def main(arguments: list[str] | None = None) -> int:
    """Train the book's model as one of several processes; return the exit status."""
    options = parse(arguments)
    try:
        with joined() as device:
            model, run = start(options, device)
            for step, losses in enumerate(run, start=1):
                if dist.get_rank() == 0:
                    told = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
                    print(f"step {step}: {told}", flush=True)
            if options.out:
                save_whole(model, options.out)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
