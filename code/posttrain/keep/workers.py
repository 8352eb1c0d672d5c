"""Independent runs side by side: one single-threaded process per core.

A run of a model this small leaves a second core half idle, and two runs that share two
cores disturb each other. One process per core, each with one thread, is faster for many
seeds, and its numbers do not depend on how many there are.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
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
    # Leave an interruption to the parent, which ends its workers if they have something
    # to do
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=leave_with_parent, daemon=True).start()


def leave_with_parent() -> None:
    """Wait for the parent's end, and exit."""
    multiprocessing.parent_process().join()
    os._exit(1)


def start_workers(n: int) -> ProcessPoolExecutor:
    """n processes that wait for jobs."""
    # Start fresh processes: a forked one would inherit PyTorch's threads in an unknown
    # state
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(n, mp_context=context, initializer=prepare_worker)


class Workers:
    """The processes that `run_all` keeps for its next call: starting one takes
    seconds.
    """

    def __init__(self):
        self.pool: ProcessPoolExecutor | None = None
        self.started_for: tuple = ()

    def get(self) -> ProcessPoolExecutor:
        """As many processes as there are cores, new ones where the settings have
        changed.

        A process that is already running would not see another environment or folder.
        """
        wanted = (available_cores(), dict(os.environ), os.getcwd())
        if self.pool is None or self.started_for != wanted:
            self.stop()
            self.pool, self.started_for = start_workers(wanted[0]), wanted
        return self.pool

    def stop(self, at_once: bool = False) -> None:
        """Drop the jobs not begun, wait for the others or break them off, end the
        processes.
        """
        pool, self.pool = self.pool, None
        if pool is None:
            return
        for child in multiprocessing.active_children() if at_once else ():
            child.terminate()
        pool.shutdown(cancel_futures=True)


kept = Workers()


def run_all(
    function: Callable,
    jobs: Iterable[tuple],
    progress: Callable = lambda done, total: done,
) -> list:
    """[function(*job) for job in jobs], computed by single-threaded processes.

    function and jobs must be importable and picklable. Should one job fail, those not
    yet begun are dropped and its error is raised here; an interruption breaks off all.
    The processes stay for the next call; they do not see changes made to the package
    since they started.
    """
    jobs = list(jobs)
    if not jobs:
        return []
    try:
        pool = kept.get()
        waiting = [pool.submit(function, *job) for job in jobs]
        for future in progress(as_completed(waiting), total=len(jobs)):
            future.result()
        return [future.result() for future in waiting]
    except BaseException as error:
        kept.stop(at_once=isinstance(error, KeyboardInterrupt))
        raise


def run_alone(function: Callable, *job):
    """function(*job), computed by a new single-threaded process that ends with it."""
    with start_workers(1) as pool:
        return pool.submit(function, *job).result()


def call(function: Callable, *arguments):
    """function(*arguments): with it, `run_groups` takes jobs of different functions."""
    return function(*arguments)


def run_groups(
    function: Callable, groups: dict, progress: Callable = lambda done, total: done
) -> dict:
    """{name: [function(*job) for job in group]}, the jobs of all groups side by
    side.
    """
    jobs = [job for group in groups.values() for job in group]
    results = iter(run_all(function, jobs, progress))
    return {name: [next(results) for _ in group] for name, group in groups.items()}
