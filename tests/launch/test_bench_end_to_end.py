"""`bench end_to_end`: what is taken from a training's progress, and that nothing is left behind."""

import tempfile
from dataclasses import replace

import pytest

from experiments.config import ConfigError
from launch.bench import measure_end_to_end as bench
from launch.bench import timing
from launch.bench.frame import BenchError, Report
from launch.bench.measure_end_to_end import Limit, Pair
from launch.bench.ratios import Ratio
from launch.bench.timing import Series, Timing, series


def lasted(seconds: float, images: int = 1, free: float = 2.0) -> Timing:
    steps = None if images == 1 else images
    return Timing(images, seconds, 2 * seconds, 2, free, steps)


def of(*bursts) -> Series:
    return series(bursts)


def test_checkpoint_costs_what_its_step_takes_more():
    spent = dict.fromkeys(range(80, 301), 0.001) | {100: 0.501, 200: 0.021, 300: 0.031}
    assert bench.saves(spent, 100) == pytest.approx([0.5, 0.02, 0.03])


def test_limit_is_met_by_the_median_where_that_is_trusted():
    limit = Limit("a", "seconds of a", 2.0, (1.0, 2.0, 9.0))
    assert (limit.met, limit.to_json()["measured"]) == (True, 2.0)
    assert replace(limit, at_most=1.9).met is False
    record = replace(limit, doubt="its repeats are 9 times apart").to_json()
    assert (record["met"], record["measured"]) == (None, None)
    assert record["not_trusted"] == "its repeats are 9 times apart"


def made(free: float = 2.0) -> dict[str, Series]:
    early, late = ({499: t, 500: t + 0.4, 501: t} for t in (1e-3, 2e-3))
    pairs = [Pair(early, late, 2.0, lasted(3.0, 9)), Pair(early, late, 1.0, lasted(3.0, 9, free))]
    return {
        "help": of(lasted(0.2), lasted(0.25)),
        "starts": of((lasted(9.0), lasted(4.0)), (lasted(9.0), lasted(4.0))),
        "loop": of(lasted(4.0, 10), lasted(5.0, 10, free)),
        "bare": of(lasted(2.0, 10), lasted(2.5, 10)),
        "pairs": of(*pairs),
    }


def judged(measured: dict[str, Series]) -> tuple:
    """The limits, the ratio, and what the page shows."""
    limits, item = bench.targets(measured)
    parts = bench.report(measured, limits, item, {"repeats": 2, "steps": 50, "longest": 10_000})
    return limits, item, Report("CPU", {}, parts).markdown()


def test_ratios_are_those_of_one_repeat_and_images_a_second_the_other_way_round():
    limits, item, shown = judged(made())
    assert {limit.name: (limit.each, limit.met) for limit in limits} == {
        "help_seconds": ((0.2, 0.25), True),
        "first_step_empty": ((9.0, 9.0), False),
        "first_step_filled": ((4.0, 4.0), True),
        "step_growth": ((2.0, 1.0), False),
    }
    assert (item.measured, item.met) == (Ratio((0.5, 0.5)), False)
    line = "| seconds to the first step, empty cache | at most 5 | 9.00 | 9.00 | 9.00 | NO |"
    assert line in shown
    assert "| 10,000 | 2,000 | 135,333 | 400,000 |" in shown


def test_what_was_starved_has_no_ratio_and_no_verdict():
    limits, item, shown = judged(made(free=1.0))
    assert [limit.met for limit in limits] == [True, False, True, None]
    assert (item.met, str(item.measured)) == (None, "not trusted")
    line = "| a step's time, last over first | at most 1.1 | not trusted | 1.00 | 2.00 |  |"
    assert line in shown
    assert "| training loop over its bare step | at least 0.95 | not trusted |  |  |  |" in shown
    assert "| 10,000 | not trusted |  |  |" in shown
    assert "- the loop: not trusted: other programs or the host left it 1.00 of 2 cores" in shown


def test_training_of_the_tiny_net_is_timed_after_its_first_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.chdir(tmp_path)
    steps = {**bench.TINY, "train.steps": str(bench.WARM_STEPS + 1 + 7)}
    burst = bench.loop_timing(None, {**steps, "train.steps_per_dispatch": "1"})
    assert (burst.images, burst.steps) == (7, 7)
    assert timing.timed(bench.bare_step(None, steps), 1, steps=6).steps == 6
    assert list(tmp_path.iterdir()) == []


def test_two_trainings_go_on_in_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # where trainings lie
    monkeypatch.setattr(bench, "SAVED_EVERY", 3)
    monkeypatch.setattr(bench, "WINDOW", 4)
    monkeypatch.setattr(bench, "TURN", 2)
    monkeypatch.setattr(bench, "EARLY", 3)
    pair = bench.paired(9)
    assert sorted(pair.early) == [5, 6, 7, 8]
    assert sorted(pair.late) == [11, 12, 13, 14]
    assert len(bench.saves(pair.late, 3)) == 1
    assert pair.growth > 0
    assert pair.timing.steps == 8
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "error", "named"),
    [({"train.steps": "3"}, BenchError, "no more steps"), ({"seed": "none"}, ConfigError, "seed")],
)
def test_training_that_does_not_go_on_is_told(overrides, error, named):
    with (
        pytest.raises(error, match=named),
        bench.Stepped(None, {**bench.TINY, **overrides}) as training,
    ):
        training.go(9)


def test_program_that_makes_no_step_is_told_with_its_last_words(tmp_path):
    with pytest.raises(BenchError, match=r"no step in .*: cnn-depth: error: .*nonsense"):
        bench.first_step_timing(tmp_path, "--set", "nonsense=1")


@pytest.mark.slow
def test_first_step_is_seen_and_the_program_ended(tmp_path):
    assert bench.first_step_timing(tmp_path).seconds > 0
    assert list(tmp_path.glob("cnn-depth/xla/*"))
