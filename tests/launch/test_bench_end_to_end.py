"""`bench end_to_end`: what is taken from a training's progress, and that nothing is left behind."""

import pytest

from launch import cli
from launch.bench import measure_end_to_end as bench
from launch.bench.figures import Ratio
from launch.bench.measure_end_to_end import Found, Limit, Loop


def steady(steps: int, seconds: float, **slow: float) -> Loop:
    """A loop whose step `s` takes `seconds`, and as much more as `slow['s<step>']` says."""
    now, heard = 10.0, []
    for step in range(1, steps + 1):
        heard.append((step, now))
        now += seconds + slow.get(f"s{step}", 0.0)
    return Loop(tuple(heard))


def test_step_takes_the_time_between_what_is_heard():
    assert Loop(((1, 5.0), (11, 7.0))).seconds_a_step() == pytest.approx(0.2)
    assert steady(9, 0.5, s1=4.0).seconds_a_step() == pytest.approx(1.0)
    assert steady(9, 0.5, s1=4.0).seconds_a_step(warm=1) == pytest.approx(0.5)


def test_median_of_a_window_leaves_out_what_is_rare_and_the_mean_has_it():
    loop = steady(300, 0.001, s120=0.1)
    assert loop.step_at(100, 100) == pytest.approx(0.001)
    assert loop.mean_at(100, 100) == pytest.approx(0.002)


def test_checkpoint_costs_what_its_step_takes_more():
    loop = steady(301, 0.001, s100=0.5, s200=0.02, s300=0.03)
    assert loop.saves(100) == pytest.approx([0.5, 0.02, 0.03])


def test_marks_are_powers_of_ten_and_the_last_step():
    assert bench.marks(10_000) == [100, 1000, 10_000]
    assert bench.marks(3000) == [100, 1000, 3000]
    assert bench.marks(100) == [100]


@pytest.mark.parametrize(("at_most", "met"), [(2.0, True), (1.9, False)])
def test_limit_is_met_by_the_median(at_most, met):
    limit = Limit("a", "seconds of a", at_most, (1.0, 2.0, 9.0))
    assert limit.met is met
    assert limit.to_json()["measured"] == 2.0


def test_ratios_are_those_of_one_repeat_and_images_a_second_the_other_way_round():
    found = Found(
        help=[0.1, 0.2],
        empty=[9.0, 9.0],
        filled=[4.0, 4.0],
        loop=[0.2, 0.5],
        bare=[0.1, 0.4],
        steps_at={100: [1e-3, 2e-3], 1000: [9.0, 9.0], 10_000: [2e-3, 2e-3]},
        means_at={100: [1e-3, 1e-3], 1000: [9.0, 9.0], 10_000: [3e-3, 3e-3]},
        saves=[[0.3, 0.01, 0.01, 0.01], [0.5, 0.01, 0.01, 0.01]],
    )
    limits, item = bench.targets(found)
    assert {limit.name: (limit.each, limit.met) for limit in limits} == {
        "help_seconds": ((0.1, 0.2), True),
        "first_step_empty": ((9.0, 9.0), False),
        "first_step_filled": ((4.0, 4.0), True),
        "step_growth": ((2.0, 1.0), False),
    }
    assert item.measured == Ratio((0.5, 0.8))
    assert item.met is False
    shown = bench.report(found, limits, item, {"repeats": 2, "steps": 50, "longest": 10_000})
    assert (
        "| seconds to the first step, empty cache | at most 5 | 9.00 | 9.00 | 9.00 | NO |" in shown
    )
    assert "| 10,000 | 2,000 | 3,000 |" in shown
    assert "by 400 ms" in shown


def test_training_of_the_tiny_net_is_heard_step_by_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    loop = bench.trained(None, {**bench.TINY, "train.steps": "6"})
    assert [step for step, _ in loop.heard] == [1, 2, 3, 4, 5, 6]
    assert bench.bare_step(None, {**bench.TINY, "train.steps": "6"})(3) > 0
    assert list(tmp_path.iterdir()) == []


def test_program_that_makes_no_step_is_told_with_its_last_words(tmp_path):
    with pytest.raises(bench.EndToEndError, match=r"no step in .*: cnn-depth: error: .*nonsense"):
        bench.first_step_seconds(tmp_path, "--set", "nonsense=1")


@pytest.mark.slow
def test_first_step_is_seen_and_the_program_ended(tmp_path):
    assert bench.first_step_seconds(tmp_path) > 0
    assert list(tmp_path.glob("cnn-depth/xla/*"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--repeats", "0"], "--repeats must be at least 1, not 0"),
        (["--longest", "10"], "--longest must be at least 100, not 10"),
    ],
)
def test_bad_input_is_one_message_that_names_it(words, named, capsys):
    assert cli.main(["bench", "end_to_end", *words]) == 2
    assert capsys.readouterr().err == f"cnn-depth: error: {named}\n"
