"""Independent runs side by side: one single-threaded process per core.

A run of a model this small leaves a second core half idle, and two runs that share two cores
disturb each other. One process per core, each with one thread, is faster for many seeds, and
its numbers do not depend on how many there are.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed

import torch


def available_cores() -> int:
    """The cores this process may use, which can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def prepare_worker() -> None:
    """Keep PyTorch to one thread, and end this process should its parent die."""
    torch.set_num_threads(1)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    """Wait for the parent's end, and exit."""
    multiprocessing.parent_process().join()
    os._exit(1)


def run_all(
    function: Callable, jobs: Iterable[tuple], progress: Callable = lambda done, total: done
) -> list:
    """[function(*job) for job in jobs], computed by single-threaded processes.

    function and jobs must be importable and picklable. Should one job fail, those not yet begun
    are dropped and its error is raised here.
    """
    jobs = list(jobs)
    if not jobs:
        return []
    # Start fresh processes: a forked one would inherit PyTorch's threads in an unknown state
    context = multiprocessing.get_context("spawn")
    n_workers = min(available_cores(), len(jobs))
    pool = ProcessPoolExecutor(n_workers, mp_context=context, initializer=prepare_worker)
    try:
        waiting = [pool.submit(function, *job) for job in jobs]
        for future in progress(as_completed(waiting), total=len(jobs)):
            future.result()
        return [future.result() for future in waiting]
    finally:
        pool.shutdown(cancel_futures=True)


def run_groups(
    function: Callable, groups: dict, progress: Callable = lambda done, total: done
) -> dict:
    """{name: [function(*job) for job in group]}, the jobs of all groups side by side."""
    jobs = [job for group in groups.values() for job in group]
    results = iter(run_all(function, jobs, progress))
    return {name: [next(results) for _ in group] for name, group in groups.items()}
