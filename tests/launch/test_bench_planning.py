"""`bench planning`: seconds a row, and what is not trusted."""

import json
from dataclasses import replace

from launch import cli
from launch.bench import measure_planning as planning
from launch.bench import timing


def test_planning_is_timed_a_row(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    sweep = planning.sweep(4)
    assert list(sweep.seconds) == ["plan", "folders", "look", "plan_again"]
    assert min(sweep.seconds.values()) > 0
    assert sweep.timing.steps == 8  # twice, as four are too few
    assert sum(sweep.seconds.values()) * 8 <= sweep.timing.seconds


def test_planning_that_was_starved_is_not_trusted():
    starved = timing.Timing(1000, 5.0, 2.5, 1, 0.5, 1000)
    seconds = dict.fromkeys(("plan", "folders", "look", "plan_again"), 1e-3)
    for free, text in ((0.5, "not trusted: other programs"), (2.0, "a row: plan 1.00, folders")):
        sweep = planning.Sweep(seconds, replace(starved, free=free, core_seconds=5.0))
        page = planning.report(timing.series([sweep]), 1000).markdown()
        assert f"A sweep of 1,000 rows, {'milliseconds ' * (free > 1)}{text}" in page


def test_the_command_tells_the_seconds_of_each_part(monkeypatch, capsys):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    assert cli.main(["bench", "planning", "--rows", "3", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["rows"] == 3
    assert set(answer["seconds_a_row"]) == {"plan", "folders", "look", "plan_again"}
