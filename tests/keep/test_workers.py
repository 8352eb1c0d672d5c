"""Jobs in other processes: order, errors, one thread each, and how long they live."""

import math
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

from posttrain.keep import code, workers
from posttrain.keep.workers import available_cores, call, run_all, run_alone, run_groups


@pytest.fixture(autouse=True)
def none_kept():
    """No processes from another test, and none left behind."""
    workers.kept.stop()
    yield
    workers.kept.stop()
    assert not multiprocessing.active_children()


@pytest.fixture
def cores(monkeypatch):
    return lambda n: monkeypatch.setattr(workers, "available_cores", lambda: n)


def running():
    return {child.pid for child in multiprocessing.active_children()}


def test_results_come_in_the_order_of_the_jobs_whatever_is_done_first(cores):
    cores(2)
    seen, n_workers = [], []

    def progress(done, total):
        n_workers.append(len(multiprocessing.active_children()))
        for future in done:
            seen.append((future.result(), total))
            yield future

    jobs = [(40_000,), *[(n,) for n in range(7, 0, -1)]]
    results = [math.factorial(n) for (n,) in jobs]
    assert run_all(math.factorial, iter(jobs), progress) == results
    assert n_workers == [2]
    # Progress is told of each as it ends, in whatever order
    assert sorted(seen) == sorted((result, 8) for result in results)


def test_jobs_run_with_one_thread_in_another_process(monkeypatch, cores):
    # What a worker would take, left to itself
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    threads, found = torch.get_num_threads(), []

    def progress(done, total):
        found.extend(multiprocessing.active_children())
        return done

    try:
        torch.set_num_threads(2)
        cores(1)
        assert run_all(torch.get_num_threads, [()] * 3, progress) == [1] * 3
    finally:
        torch.set_num_threads(threads)
    assert len(found) == 1 and found[0].pid != os.getpid()


@pytest.mark.parametrize("n_cores, n_jobs, most", [(50, 2, 2), (2, 3, 2), (1, 3, 1)])
def test_there_are_no_more_processes_than_cores_and_jobs(cores, n_cores, n_jobs, most):
    cores(n_cores)
    assert run_all(math.factorial, [(4,)] * n_jobs) == [24] * n_jobs
    assert 1 <= len(running()) <= most


def test_the_processes_stay_for_the_next_call(cores):
    cores(1)
    (first,) = run_all(os.getpid, [()])
    assert run_all(os.getpid, [()] * 3) == [first] * 3 and running() == {first} != {
        os.getpid()
    }
    workers.kept.stop()
    assert not running()
    assert run_all(os.getpid, [()]) != [first]


def test_a_change_of_the_settings_reaches_the_processes(cores, monkeypatch, tmp_path):
    cores(1)
    (first,) = run_all(os.getpid, [()])
    monkeypatch.setenv("POSTTRAIN_STAGES", str(tmp_path))
    assert run_all(os.getenv, [("POSTTRAIN_STAGES",)]) == [str(tmp_path)]
    assert len(running()) == 1 and first not in running()
    monkeypatch.chdir(tmp_path)
    assert run_all(os.getcwd, [()]) == [os.path.realpath(tmp_path)]
    cores(2)
    run_all(time.sleep, [(0.5,), (0.5,)])
    assert len(running()) == 2


def test_one_function_can_have_a_process_of_its_own_that_ends_with_it(cores):
    cores(1)
    (kept,) = run_all(os.getpid, [()])
    one = run_alone(os.getpid)
    assert len({one, kept, os.getpid()}) == 3 and running() == {kept}
    assert run_alone(divmod, 7, 2) == (3, 1)
    with pytest.raises(TypeError, match="integer"):
        run_alone(time.sleep, "long")
    assert running() == {kept}


def test_groups_get_their_own_results_back_though_all_run_side_by_side(monkeypatch):
    together = []

    def run(function, jobs, progress):
        together.append((jobs, progress))
        return [function(*job) for job in jobs]

    monkeypatch.setattr(workers, "run_all", run)
    groups = dict(b=[(3, 1), (2, 2)], none=[], a=[(5, 0)])
    assert run_groups(divmod_or_zero, groups, print) == dict(b=[3, 1], none=[], a=[0])
    assert list(run_groups(divmod_or_zero, groups)) == ["b", "none", "a"]
    assert together[0] == ([(3, 1), (2, 2), (5, 0)], print)


def divmod_or_zero(a, b):
    return a // b if b else 0


def test_no_jobs_start_nothing(monkeypatch):
    monkeypatch.setattr(workers, "start_workers", None)
    assert run_all(math.factorial, []) == run_all(math.factorial, iter([])) == []


def test_a_jobs_error_is_raised_and_the_jobs_not_yet_begun_are_dropped(cores):
    cores(1)
    begun = time.monotonic()
    with pytest.raises(TypeError, match="integer"):
        run_all(time.sleep, [(0,), ("long",), *[(1.0,)] * 60])
    assert time.monotonic() - begun < 40
    assert not running() and run_all(math.factorial, [(3,)]) == [6]


@pytest.mark.parametrize("affinity", [True, False])
def test_the_cores_are_those_this_process_may_use(monkeypatch, affinity):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    if affinity:
        monkeypatch.setattr(
            os, "sched_getaffinity", lambda pid: {1, 5, 6}, raising=False
        )
        assert available_cores() == 3
    else:
        monkeypatch.delattr(os, "sched_getaffinity", raising=False)
        assert available_cores() == 8
        monkeypatch.setattr(os, "cpu_count", lambda: None)
        assert available_cores() == 1


PARENT = textwrap.dedent("""
    import multiprocessing, signal, sys, time
    sys.path.insert(0, {code!r})
    from posttrain.keep import workers
    workers.available_cores = lambda: 1

    def progress(done, total):
        for future in done:
            children = multiprocessing.active_children()
            print(*[child.pid for child in children], flush=True)
            yield future

    if __name__ == "__main__":
        # Undo what a background process may have been told: to ignore interruptions
        signal.signal(signal.SIGINT, signal.default_int_handler)
        workers.run_all(time.sleep, [(0.0,), (300.0,)], progress)
""")


def alive(pid):
    """Whether a process runs: not gone, and not a zombie that nobody has buried."""
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat") as status:
            return status.read().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not os.path.exists("/proc/self/stat")


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_workers_end_when_their_parent_is_killed():
    script = PARENT.format(code=str(code.PACKAGE.parent))
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    try:
        assert len(pids) == 1 and all(map(alive, pids))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        until = time.monotonic() + 15
        while any(map(alive, pids)) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(map(alive, pids))
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
        for pid in filter(alive, pids):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_an_interruption_ends_parent_and_workers_at_once_with_one_traceback():
    script = PARENT.format(code=str(code.PACKAGE.parent))
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    parent = subprocess.Popen(
        [sys.executable, "-c", script], start_new_session=True, **pipes
    )
    try:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 1 and all(map(alive, pids))
        # As a terminal does, and a notebook that is shut down
        os.killpg(parent.pid, signal.SIGINT)
        # It takes a second, but a machine may stand still
        _, said = parent.communicate(timeout=120)
        assert parent.returncode != 0 and not any(map(alive, pids))
        assert said.count("Traceback") == 1 and said.rstrip().endswith(
            "KeyboardInterrupt"
        )
    finally:
        os.killpg(parent.pid, signal.SIGKILL) if parent.poll() is None else None


@pytest.mark.skipif(os.name != "posix", reason="POSIX signals")
def test_workers_without_a_job_outlive_an_interruption(cores):
    cores(1)
    (pid,) = run_all(os.getpid, [()])
    os.kill(pid, signal.SIGINT)
    time.sleep(0.2)
    assert run_all(os.getpid, [()]) == [pid]


def test_each_job_of_a_queue_is_done_by_the_function_that_it_names(cores):
    cores(2)
    queue = dict(
        product=[(math.factorial, 5), (operator.mul, 6, 7)],
        none=[],
        power=[(pow, 2, 10)],
    )
    assert run_groups(call, queue) == dict(product=[120, 42], none=[], power=[1024])


def test_a_jobs_error_is_its_functions_own():
    with pytest.raises(ZeroDivisionError):
        call(operator.truediv, 1, 0)
    assert call(dict) == {}
