"""`bench compile`: the first start fills a cache that the second one finds."""

import json

import pytest

from launch import cli, devices
from launch.bench import measure_compile
from launch.bench.measure_compile import Measurement, Start
from launch.bench.process import PeerEnded
from launch.bench.step_case import Case
from launch.bench.timing import Timing, series

TINY = Case("cifar_resnet:8", 16, 2, 10, "float32", 0.25)


def start(first_step: float, compiled: float = 1.0, free: float = 2.0) -> Start:
    seconds = dict.fromkeys(measure_compile.PARTS, 0.5)
    timing = Timing(1, first_step, 2 * first_step, 2, free, None)
    return Start({**seconds, "compile": compiled, "first_step": first_step}, "cpu", timing)


def test_second_start_is_judged_against_the_first_of_its_repeat():
    case = Case("resnet:152", 224, 8, 1000, "float32")
    judged = Measurement(case, series([(start(20.0), start(6.0)), (start(20.0), start(7.5))]))
    unjudged = Measurement(TINY, series([(start(1.0), start(1.0))]))
    (item,) = measure_compile.items([judged, unjudged])
    assert item.measured.each == (0.3, 0.375)
    assert (item.target, item.goal, item.met) == (0.35, "<= 0.35", True)
    (item,) = measure_compile.items([Measurement(case, series([(start(20.0), start(7.1))]))])
    assert item.met is False
    assert item.to_json()["at_most"] is True


def test_start_that_was_starved_gives_no_ratio():
    case = Case("resnet:152", 224, 8, 1000, "float32")
    measurement = Measurement(case, series([(start(20.0, free=1.0), start(6.0))]))
    (item,) = measure_compile.items([measurement])
    assert (item.met, str(item.measured)) == (None, "not trusted")
    machine = {"processor": "P", "usable_cores": 2}
    body = measure_compile.report([measurement], 1, "cpu", machine).markdown()
    assert "| 20.0 | 1.0 | 6.0 | not trusted |" in body
    assert "- resnet:152@224x8: not trusted: other programs or the host left it 1.00 of" in body


@pytest.mark.parametrize("deepest", [True, False])
def test_every_net_is_started_twice_with_a_cache_of_its_own(deepest, monkeypatch, capsys, tmp_path):
    assert measure_compile.DEEPEST == "cifar_resnet:1202"
    assert measure_compile.DEEPEST not in measure_compile.CASES
    assert measure_compile.JUDGED in measure_compile.CASES
    started: list[tuple[str, str]] = []

    def stand_in(case: Case, cache: str) -> Start:
        started.append((str(case), cache))
        return start(8.0 if len(started) % 2 else 2.0)

    monkeypatch.setattr(measure_compile, "start", stand_in)
    monkeypatch.setattr(measure_compile, "DEEPEST", "cifar_resnet:14")
    monkeypatch.setattr(devices, "probe", lambda slot: devices.Probe("cpu", 1, 1e9))
    words = ["--arch", "cifar_resnet:8@16x2", "--repeats", "2"] + ["--deepest"] * deepest
    page = tmp_path / "page.md"
    assert cli.main(["bench", "compile", *words, "--json", "--page", str(page)]) == 0
    answer = json.loads(capsys.readouterr().out)
    names = ["cifar_resnet:8@16x2"] + ["cifar_resnet:14@32x2"] * deepest
    assert [name for name, _ in started] == [name for name in names for _ in range(4)]
    assert all(a == b for (_, a), (_, b) in zip(started[::2], started[1::2], strict=True))
    assert len({cache for _, cache in started}) == 2 * len(names)
    assert answer["cases"][0]["first"][0]["first_step"] == 8.0
    assert "| cifar_resnet:8@16x2 | 0.5 | 0.5 | 1.0 | 8.0 | 1.0 | 2.0 | 0.25 |" in page.read_text()


def test_training_that_does_not_start_is_named(tmp_path):
    with pytest.raises(PeerEnded, match=r"vgg:Z@16x2 does not start: .*vgg:Z"):
        measure_compile.start(Case("vgg:Z", 16, 2, 10, "float32"), str(tmp_path))


@pytest.mark.slow
def test_second_start_finds_the_program(tmp_path):
    first = measure_compile.start(TINY, str(tmp_path))
    cached = sorted(path.name for path in tmp_path.iterdir() if path.name.endswith("-cache"))
    second = measure_compile.start(TINY, str(tmp_path))
    assert set(first.seconds) == set(second.seconds) == set(measure_compile.PARTS)
    parts = sum(first.seconds[part] for part in measure_compile.PARTS if part != "first_step")
    assert parts < first.seconds["first_step"]
    assert cached == sorted(p.name for p in tmp_path.iterdir() if p.name.endswith("-cache"))
