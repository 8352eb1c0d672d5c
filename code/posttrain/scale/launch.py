"""Processes that work together: started by PyTorch's torchrun, on this machine
alone.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist


class LaunchError(RuntimeError):
    """A group of processes has failed, or has taken too long."""


@contextlib.contextmanager
def joined(seconds: float = 600.0) -> Iterator[torch.device]:
    """Within the block this process is one of torchrun's group; gives the device to
    work on.

    NCCL where there are GPUs, gloo otherwise. seconds: how long any process waits for
    the others before it gives up. Raises ValueError outside torchrun.
    """
    if "RANK" not in os.environ:
        raise ValueError(
            "this process belongs to no group: start it with torchrun --standalone "
            "--nproc-per-node 2 -m posttrain.scale.distributed ..."
        )
    gpus = torch.cuda.is_available() and dist.is_nccl_available()
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if gpus else "cpu")
    if gpus:
        torch.cuda.set_device(device)
    dist.init_process_group(
        "nccl" if gpus else "gloo", timeout=timedelta(seconds=seconds)
    )
    try:
        yield device
        # Wait for the others, but not after an error: they may never come
        dist.barrier()
    finally:
        dist.destroy_process_group()


def launch(
    function: Callable, processes: int, *arguments, seconds: float = 300.0
) -> list:
    """[function(*arguments) of process 0, of process 1, ...], run side by side as one
    group.

    function and arguments must be importable and picklable. Every process has one
    thread. Raises LaunchError, with the end of what was printed, where one fails or all
    take too long; none is left behind.
    """
    with tempfile.TemporaryDirectory() as folder:
        job = dict(
            module=function.__module__, name=function.__qualname__, arguments=arguments
        )
        Path(folder, "job.pickle").write_bytes(
            pickle.dumps(job | dict(seconds=seconds))
        )
        torchrun(processes, ["-m", "posttrain.scale.launch", folder], seconds)
        results = [
            Path(folder, f"{rank}.pickle").read_bytes() for rank in range(processes)
        ]
    return [pickle.loads(result) for result in results]


def torchrun(processes: int, program: list[str], seconds: float = 300.0) -> str:
    """Run a program as a group on this machine, offline; return what it printed.

    program: what follows torchrun's own options. Raises as `launch` does.
    """
    if processes < 1:
        raise ValueError(f"{processes} processes were asked for: use at least one")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
        *program,
    ]
    started = subprocess.Popen(
        command,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )
    try:
        printed, _ = started.communicate(timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise LaunchError(
            f"the group was not done after {seconds:g} seconds"
        ) from error
    finally:
        end(started)
    if started.returncode:
        said = "\n".join(printed.splitlines()[-60:])
        raise LaunchError(
            f"the group ended with exit code {started.returncode}:\n{said}"
        )
    return printed


def environment() -> dict[str, str]:
    """What the processes are told: where the code is, one thread each, no network."""
    lone = {"win32": {"USE_LIBUV": "0"}, "darwin": {"GLOO_SOCKET_IFNAME": "lo0"}}
    path = os.pathsep.join(filter(None, sys.path))
    talk = lone.get(sys.platform, {"GLOO_SOCKET_IFNAME": "lo"})
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **talk}


def end(started: subprocess.Popen) -> None:
    """See that torchrun and its processes are gone."""
    if started.poll() is None:
        # torchrun passes the request on to its processes, and kills those that take 30
        # seconds
        started.send_signal(signal.SIGTERM)
        try:
            started.wait(45)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
    started.stdout.close()


def main(folder: Path) -> None:
    """One process of a group that `launch` has started: do its part, and leave the
    result.
    """
    torch.set_num_threads(1)
    job = pickle.loads((folder / "job.pickle").read_bytes())
    function = importlib.import_module(job["module"])
    for name in job["name"].split("."):
        function = getattr(function, name)
    with joined(job["seconds"]):
        result = function(*job["arguments"])
        (folder / f"{dist.get_rank()}.pickle").write_bytes(pickle.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
