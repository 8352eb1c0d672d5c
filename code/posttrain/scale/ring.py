"""All-reduce from scratch: every process ends with the sum of all, by talking to
neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn


def exchange(outgoing: Tensor, incoming: Tensor) -> None:
    """Send to the next process of the ring, and receive from the one before, at
    once.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    # Begin to send before waiting to receive, or all would wait for each other
    sending = dist.isend(outgoing, (rank + 1) % size)
    dist.recv(incoming, (rank - 1) % size)
    sending.wait()


def reduce_scatter(chunks: list[Tensor]) -> Tensor:
    """Sum the chunks over the processes; each gets one whole sum, that of chunk rank +
    1.

    chunks: one per process, of equal sizes, changed in place. In N - 1 turns every
    chunk goes round the ring but one step, and whoever it passes adds its own.
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    received = torch.empty_like(chunks[0])
    for turn in range(size - 1):
        exchange(chunks[(rank - turn) % size], received)
        chunks[(rank - turn - 1) % size] += received
    return chunks[(rank + 1) % size]


def all_gather(chunks: list[Tensor]) -> None:
    """Pass the finished sums round the ring, until every process has all of them."""
    rank, size = dist.get_rank(), dist.get_world_size()
    for turn in range(size - 1):
        exchange(chunks[(rank + 1 - turn) % size], chunks[(rank - turn) % size])


def ring_all_reduce(x: Tensor) -> Tensor:
    """The sum of x over all processes, a new tensor of its shape.

    Each process sends 2 (N - 1) / N times the size of x, however many they are. Source:
    Patarasuk & Yuan 2009; Sergeev & Del Balso 2018 brought it to deep learning.
    """
    size = dist.get_world_size()
    # Cut into one chunk per process, the last filled up with zeros
    flat = x.new_zeros(-(-x.numel() // size) * size)
    flat[: x.numel()] = x.flatten()
    chunks = list(flat.chunk(size))
    reduce_scatter(chunks)
    all_gather(chunks)
    return flat[: x.numel()].view_as(x)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes: DDP, without its
    overlap.
    """
    with_gradient = [
        parameter for parameter in parameters if parameter.grad is not None
    ]
    flat = torch.cat([parameter.grad.flatten() for parameter in with_gradient])
    flat = ring_all_reduce(flat) / dist.get_world_size()
    sizes = [parameter.numel() for parameter in with_gradient]
    for parameter, mean in zip(with_gradient, flat.split(sizes)):
        parameter.grad = mean.view_as(parameter)
