"""What the processes of a group do in the tests: `launch` imports these functions in
each of them.
"""

import copy
import os
import time

import torch
import torch.distributed as dist
from tiny import CONFIG, PAD, moved, seeded, weights

from posttrain.batches import add_gradients
from posttrain.chat import IGNORE
from posttrain.lab.patches import making
from posttrain.scale import distributed, ring
from posttrain.sft import conversation_parts


def ring_sums(sizes):
    """By size: this process's numbers, and what our all-reduce and PyTorch's make of
    them.
    """
    found = {}
    for size in sizes:
        x = torch.randn(size, 3, generator=seeded(dist.get_rank()), dtype=torch.float64)
        before, ours, theirs = x.clone(), ring.ring_all_reduce(x), x.clone()
        dist.all_reduce(theirs)
        assert torch.equal(x, before)
        found[size] = (x, ours, theirs)
    return found


def count_bytes(size):
    """The numbers that this process sends in one all-reduce of `size` numbers."""
    sent, plain = [], dist.isend
    ring.dist.isend = lambda tensor, to: (
        sent.append(tensor.numel()) or plain(tensor, to)
    )
    try:
        ring.ring_all_reduce(torch.ones(size))
    finally:
        ring.dist.isend = plain
    return sum(sent)


def dealt(n):
    """This process's rows of n, and all rows gathered again."""
    own = distributed.mine(list(range(n)))
    return own, distributed.gather(own)


def sft_runs(examples, text, configs, settings):
    """By setting's name: every step's losses, and the whole weights at the end; in
    float64.
    """
    found = {}
    for name, (config, options) in settings.items():
        model = moved(config=CONFIG)
        losses = list(
            distributed.distributed_sft(
                model, examples, text, configs[config], PAD, **options
            )
        )
        found[name] = losses, distributed.whole_weights(model)
    return found


def dpo_runs(pairs, configs, settings):
    """As `sft_runs`, for DPO; the policy starts away from the reference."""
    found = {}
    for name, (config, options) in settings.items():
        policy, reference = moved(1), moved(0)
        before = weights(reference)
        run = distributed.distributed_dpo(
            policy, reference, pairs, configs[config], **options
        )
        losses = list(run)
        found[name] = losses, distributed.whole_weights(policy)
        assert all(
            torch.equal(before[key], value)
            for key, value in reference.state_dict().items()
        )
    return found


def wrong_gradients(examples, size, engine):
    """`gradients` where each process divides by its own graded tokens."""
    with making("mean of means"):
        return gradients(examples, size, engine)


def gradients(examples, size, engine):
    """The gradient of one batch's SFT loss, as this process has it after the backward
    passes.
    """
    model, crew = moved(), distributed.Together(engine)
    shared = distributed.share_model(model, engine)
    add_gradients(shared, conversation_parts(examples, size, PAD, crew), crew)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    if engine == "fsdp":
        found = {name: slices.full_tensor() for name, slices in found.items()}
    return {name: gradient.clone() for name, gradient in found.items()}


def samples(prompts, new, stop, options):
    """What `sharded_samples` gives this process, as lists."""
    found = distributed.sharded_samples(moved(), prompts, new, stop=stop, **options)
    return found.tokens.tolist(), found.mask.tolist(), found.logprobs.tolist()


def saved(folder, engine):
    """Write a model's whole weights, from each process's slices."""
    from pathlib import Path

    model = moved()
    distributed.share_model(model, engine)
    distributed.save_whole(model, Path(folder) / f"{engine}.safetensors")


def slices():
    """How many numbers of a sharded model, and of its optimiser's state, this process
    holds.
    """
    model, text = moved(), torch.zeros(0)
    config = distributed.SFTConfig(steps=1, replay=0)
    examples = [([1, 2, 3], [IGNORE, 2, 3])] * 4
    list(
        distributed.distributed_sft(
            model, examples, text, config, PAD, engine="fsdp", muon=False
        )
    )
    return sum(parameter.to_local().numel() for parameter in model.parameters())


def broken_loss(engine):
    """What a NaN in one process's weights does to all."""
    model, config = moved(), distributed.SFTConfig(steps=2, replay=0)
    if dist.get_rank() == 1:
        with torch.no_grad():
            model.head.weight.fill_(float("nan"))
    examples = [([1, 2, 3], [IGNORE, 2, 3]), ([1, 2, 3, 4], [IGNORE, 2, 3, 4])] * 2
    run = distributed.distributed_sft(
        model, examples, torch.zeros(0), config, PAD, engine=engine
    )
    try:
        next(run)
    except ValueError as error:
        return str(error)
    return "no error"


def crash(folder):
    """Process 1 fails; the others wait for it in a sum."""
    with open(os.path.join(folder, str(dist.get_rank())), "w") as file:
        file.write(str(os.getpid()))
    dist.barrier()
    if dist.get_rank() == 1:
        raise RuntimeError("planted in process 1")
    dist.all_reduce(torch.ones(1))


def crash_late(folder):
    """Work for ever, having said who one is."""
    with open(os.path.join(folder, str(dist.get_rank())), "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)


def stay_away():
    """Process 1 never comes to the sum, in longer than the others wait."""
    if dist.get_rank() == 1:
        time.sleep(30)
    dist.all_reduce(torch.ones(1))


def everything(jobs):
    """Several of the above in one group: starting one takes seconds."""
    return {
        name: globals()[function](*copy.deepcopy(arguments))
        for name, (function, arguments) in jobs.items()
    }
