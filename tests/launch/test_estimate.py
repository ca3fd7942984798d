"""The time that several runs take and have left, beside sums by hand."""

from types import SimpleNamespace

import pytest

from launch.planning import estimate


@pytest.mark.parametrize(
    ("seconds", "after", "devices", "expected"),
    [
        ({}, {}, 2, 0.0),
        ({"a": 3.0, "b": 4.0, "c": 5.0}, {}, 1, 12.0),
        ({"a": 3.0, "b": 4.0, "c": 5.0}, {}, 2, 7.0),  # c alone; b, then a
        ({"a": 3.0, "b": 4.0, "c": 5.0}, {}, 9, 5.0),
        ({"a": 3.0, "b": 4.0, "c": 5.0}, {"b": "a", "c": "b"}, 9, 12.0),
        ({"a": 3.0, "b": 4.0, "c": 5.0}, {"b": "a", "c": "a"}, 2, 8.0),
        ({"b": 4.0}, {"b": "a"}, 2, 4.0),  # its seed is there already
    ],
)
def test_makespan_is_the_longest_way_through(seconds, after, devices, expected):
    assert estimate.makespan(seconds, after, devices) == expected


def job(name, after=None):
    stand_in = SimpleNamespace(run=SimpleNamespace(id=name), seeding=after)
    stand_in.missing_tests = list
    stand_in.run.trained = False
    stand_in.training_macs, stand_in.data = 1, SimpleNamespace(test=0)
    return stand_in


@pytest.fixture
def clock():
    return SimpleNamespace(now=0.0)


def test_time_left_is_corrected_by_what_was_seen(clock):
    a = job("a")
    jobs = [a, job("b", a), job("c"), job("d")]
    remaining = estimate.Remaining(jobs, dict.fromkeys("abcd", 10.0), 2, lambda: clock.now)
    assert remaining.seconds() == 20
    remaining.begin("a")
    remaining.begin("c")
    clock.now = 5.0
    assert remaining.seconds() == 15  # nothing is known yet: it goes on as expected
    remaining.tell("a", 25.0)  # 30 s in all, thrice what was expected
    remaining.tell("c", 25.0)
    assert remaining.seconds() == 25 + 30
    clock.now = 10.0
    assert remaining.seconds() == 20 + 30
    clock.now = 30.0
    remaining.end("a", finished=True)
    remaining.end("c", finished=False)
    assert remaining.seconds() == 30  # b and d side by side
    remaining.begin("b")
    remaining.end("d", finished=False)
    remaining.tell("b", 7.0)
    assert remaining.seconds() == 7
    remaining.end("b", finished=True)
    assert remaining.seconds() == 0
