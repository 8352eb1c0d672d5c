"""Which ways are compared, and that all of them train, however fast."""

import torch.distributed as dist

from posttrain.scale import throughput
from posttrain.scale.throughput import WAYS


def found_by(rank_zero, others):
    assert [set(seconds) for seconds in rank_zero] == [set(WAYS)] * len(rank_zero)
    assert [set(seconds) for seconds in others] == [{WAYS[2]}] * len(others)
    assert all(value > 0 for seconds in rank_zero for value in seconds.values())


def impatient(width):
    """What a process notes where all have taken too long after the first round."""
    throughput.PATIENCE = 1e-9
    plain, calls = throughput.total, []
    throughput.total = lambda seconds: (
        plain(seconds) if calls.append(1) or len(calls) > 1 else [0.0]
    )
    return throughput.compare_ways(width, 2, 8, 1, 3), dist.get_world_size()


def test_each_round_has_all_ways_and_the_first_is_left_out(monkeypatch):
    launch, launched = throughput.launch, []

    def noted(*arguments, **options):
        launched.extend(launch(*arguments, **options))
        return launched

    monkeypatch.setattr(throughput, "launch", noted)
    speeds = throughput.throughput((16,), rows=2, length=8, steps=1, rounds=2)
    assert set(speeds[16]) == set(WAYS) and speeds[16][WAYS[0]] == 1.0
    rank_zero, other = (found[16] for found in launched)
    assert len(rank_zero) == len(other) == 2
    found_by(rank_zero, other)


def test_where_it_takes_too_long_the_first_round_is_the_only_one():
    (noted, n), (others, _) = throughput.launch(impatient, 2, 16)
    assert n == 2 and len(noted) == len(others) == 1
    found_by(noted, others)
