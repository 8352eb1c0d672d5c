"""Jobs of several kinds in one queue."""

import math
import operator

import pytest

from posttrain import workers
from posttrain.jobs import call
from posttrain.workers import run_groups


@pytest.fixture(autouse=True)
def none_kept():
    workers.kept.stop()
    yield
    workers.kept.stop()


def test_each_job_of_a_queue_is_done_by_the_function_that_it_names(monkeypatch):
    monkeypatch.setattr(workers, "available_cores", lambda: 2)
    queue = dict(product=[(math.factorial, 5), (operator.mul, 6, 7)], none=[], power=[(pow, 2, 10)])
    assert run_groups(call, queue) == dict(product=[120, 42], none=[], power=[1024])


def test_a_jobs_error_is_its_functions_own():
    with pytest.raises(ZeroDivisionError):
        call(operator.truediv, 1, 0)
    assert call(dict) == {}
