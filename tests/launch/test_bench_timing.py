"""`launch.bench.timing`: what a burst tells of its cores, and which bursts are believed."""

import itertools
import os
import subprocess
import sys
import time

import pytest

from launch.bench import frame, ratios, timing
from launch.bench.ratios import Item, NotTrusted, Ratio
from launch.bench.timing import Timing, in_turns, series


def burst(rate: float = 100.0, free: float = 2.0, used: float = 2.0, **options) -> Timing:
    """Two seconds on a machine of two cores."""
    fields = {"core_seconds": 2 * used, "cores": 2, "free": free, "steps": 5} | options
    return Timing(2 * rate, 2.0, **fields)


def subject(*bursts: Timing):
    """Gives the bursts one after another, the last one again and again; and how many it gave."""
    supply = itertools.chain(bursts, itertools.repeat(bursts[-1]))
    measured = []

    def measure() -> Timing:
        measured.append(next(supply))
        return measured[-1]

    return measure, measured


def judged(ours, theirs, repeats=3):
    """Series of both, the item of their ratio, and how many bursts each gave."""
    (own, own_bursts), (peer, peer_bursts) = subject(*ours), subject(*theirs)
    results, absent = in_turns({"ours": own, "peer": peer}, repeats, lambda line: None)
    assert absent == {}
    item = Item("a", "a over b", 0.8, ratios.compare(results["ours"], results["peer"]))
    return results, item, (len(own_bursts), len(peer_bursts))


def test_good_bursts_give_a_ratio_and_are_measured_once():
    results, item, counts = judged([burst(120)], [burst(100)])
    assert item.measured == Ratio((1.2, 1.2, 1.2))
    assert item.met is True
    assert counts == (3, 3)
    assert [result.doubt for result in results.values()] == [None, None]


def test_starved_peer_is_measured_again_and_then_gives_no_ratio():
    results, item, counts = judged([burst(410)], [burst(100, free=1.0, used=1.0)])
    assert item.measured == NotTrusted(
        "the peer: other programs or the host left it 1.00 of 2 cores "
        "(15 of 18 bursts were thrown away)"
    )
    assert item.met is None
    # Three tries of each of twice as many rounds, and no more.
    assert counts == (6, 18)
    assert results["ours"].doubt is None
    assert len(results["peer"].again) == 15
    record = item.to_json()
    assert (record["measured"], record["met"]) == (None, None)
    assert record["not_trusted"] == item.measured.why
    assert "each" not in record
    assert ratios.core_time_ratio(results["ours"], results["peer"]) is None


def test_peer_that_gets_its_cores_back_is_believed():
    starved = burst(50, free=1.5)
    results, item, counts = judged([burst(120)], [starved, starved, burst(100)])
    assert item.measured == Ratio((1.2, 1.2, 1.2))
    assert counts == (3, 5)
    assert results["peer"].again == (starved, starved)
    record = results["peer"].to_json()
    assert (record["trusted"], record["measured_again"], len(record["timings"])) == (True, 2, 3)
    assert {t["core_seconds"] for t in record["timings"]} == {4.0}


def test_repeats_too_far_apart_are_measured_again_and_then_give_no_ratio():
    wild = [burst(rate) for rate in (100, 140, 100, 140, 100, 140)]
    _, item, counts = judged([burst(120)], wild)
    assert isinstance(item.measured, NotTrusted)
    assert "its repeats are 1.40 times apart" in item.measured.why
    assert counts == (6, 6)
    _, item, counts = judged([burst(120)], [burst(rate) for rate in (100, 140, 100, 100, 100)])
    assert item.measured == Ratio((1.2, 1.2, 1.2))
    assert counts == (5, 5)
    _, item, _ = judged([burst(120)], [burst(rate) for rate in (100, 130, 100)])
    assert isinstance(item.measured, Ratio)


def test_burst_with_fewer_cores_than_at_best_is_measured_again():
    """A quota, or a host that does not tell what it takes: the system calls the cores free."""
    slow = burst(100, used=1.0)
    results, _, counts = judged([burst(120)], [burst(100), slow, burst(100)])
    assert counts == (3, 4)
    assert results["peer"].again == (slow,)
    assert series([burst(100), slow]).doubt == "it had 1.00 cores, where it had 2.00 at best"
    # The best may come later than the burst that is doubted then.
    _, item, counts = judged([burst(120)], [slow, burst(100)])
    assert item.measured == Ratio((1.2, 1.2, 1.2))
    assert counts == (4, 4)


@pytest.mark.parametrize(
    ("one", "doubt"),
    [
        (burst(used=1.2), None),  # a library may use fewer cores than there are
        (burst(free=1.81), None),
        (burst(free=1.79), "left it 1.79 of 2 cores"),
        (burst(cores=1, free=1.0, used=1.0), None),
        (burst(steps=4), "4 steps in 2 s"),
        (Timing(100, 1.9, 3.8, 2, 2.0, 5), "5 steps in 1.9 s"),
        (Timing(100, 0.1, 0.2, 2, 2.0, None), None),  # a start happens once
        (Timing(100, 2.0), "0 steps in 2 s"),
        (burst(core_seconds=None), "processor time is not known"),
        (burst(free=None), None),
        (burst(free=None, used=1.7), "does not tell whether others took the rest"),
        (burst(used=0.1, waits=True), None),
        (burst(free=1.0, waits=True), "left it 1.00 of 2 cores"),
    ],
)
def test_burst_by_itself(one, doubt):
    reason = series([one]).doubt
    assert (reason is None) if doubt is None else doubt in reason


def test_subject_that_ends_is_absent_and_loses_no_other():
    def ends() -> Timing:
        raise ChildProcessError("no peer today")

    results, absent = in_turns(
        {"ours": lambda: burst(), "peer": ends}, 2, lambda line: None, absent=(ChildProcessError,)
    )
    assert absent == {"peer": "no peer today"}
    assert len(results["ours"].bursts) == 2


def test_turns_go_forwards_and_backwards():
    order = []

    def measured(name):
        order.append(name)
        return burst()

    subjects = {name: (lambda name=name: measured(name)) for name in "abc"}
    in_turns(subjects, 2, lambda line: None)
    assert "".join(order) == "abccba"


def test_tables_show_what_is_not_trusted(capsys):
    results, item, _ = judged([burst(410)], [burst(100, free=1.0)])
    titles = {"ours": "ours", "peer": "PyTorch"}
    items_on_screen, items_on_page = ratios.items_tables([item])
    rates_on_screen, rates_on_page = ratios.rates_tables(results, titles)
    rows = items_on_page.markdown().splitlines()[2:]
    assert rows == ["| a over b | 0.8 | not trusted |  |"]
    assert rates_on_page.markdown().splitlines()[2:] == [
        "| ours | 410.0 | 410.0 | 410.0 |",
        "| PyTorch | not trusted | 100.0 | 100.0 |",
    ]
    console = frame.screen()
    console.print(rates_on_screen.rich())
    console.print(items_on_screen.rich())
    output = " ".join(capsys.readouterr().out.split())
    assert "PyTorch not trusted 100 100" in output
    assert "a over b 0.8 not trusted" in output
    assert "4.1" not in output
    assert ratios.doubts(results, titles) == [
        "PyTorch: not trusted: other programs or the host left it 1.00 of 2 cores "
        "(15 of 18 bursts were thrown away)"
    ]


def test_timing_has_enough_steps_and_seconds(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.02)
    calls = []

    def go(steps: int) -> None:
        calls.append(steps)
        time.sleep(0.001 * steps)

    result = timing.timed(go, images=8)
    assert calls[:2] == [1, 5]  # the warm-up, and what was too short
    assert result.steps == calls[-1] >= 5
    assert result.seconds >= 0.02
    assert result.images == 8 * result.steps
    monkeypatch.setattr(timing, "LEAST_SECONDS", 0.0)
    calls.clear()
    assert timing.timed(go, images=1, steps=7).steps == 7
    assert calls == [1, 7]


def stat(**cores: str) -> str:
    """What /proc/stat says: of all cores together, then of each."""
    return "cpu  9 9 9 9 9 9 9 9 9 9\n" + "".join(f"{k} {v}\n" for k, v in cores.items())


def test_busy_seconds_are_those_of_the_usable_cores(tmp_path):
    ticks = os.sysconf("SC_CLK_TCK")
    file = tmp_path / "stat"
    # user nice system idle iowait irq softirq steal guest guest_nice
    file.write_text(
        stat(
            cpu0="100 1 20 5000 600 3 4 70 100 0",
            cpu1="1 1 1 1 1 1 1 1 0 0",
            cpu10="7 0 0 0 0 0 0 0",
        )
    )
    assert timing.busy_seconds({0}, file) == (100 + 1 + 20 + 3 + 4 + 70) / ticks
    assert timing.busy_seconds({0, 10}, file) == (198 + 7) / ticks
    assert timing.busy_seconds({0, 2}, file) is None
    assert timing.busy_seconds({0}, tmp_path / "none") is None
    assert timing.busy_seconds(None, file) is None


@pytest.mark.parametrize(
    ("busy", "spent", "free"),
    [
        ((10.0, 14.0), (1.0, 5.0), 2.0),  # all that the cores did was ours
        ((10.0, 14.0), (1.0, 3.0), 1.0),  # others or the host had a core
        ((10.0, 13.9), (1.0, 5.0), 2.0),  # ticks are coarser than processor time
        ((10.0, None), (1.0, 5.0), None),
        ((10.0, 14.0), (1.0, None), None),
    ],
)
def test_cores_that_were_free_are_those_that_nobody_else_kept_busy(busy, spent, free, monkeypatch):
    readings, own, clock = iter(busy), iter(spent), iter((100.0, 102.0))
    monkeypatch.setattr(timing, "busy_seconds", lambda cores: next(readings))
    monkeypatch.setattr(timing.os, "sched_getaffinity", lambda pid: {3, 5}, raising=False)
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    result = timing.Watch(lambda: next(own)).stop(30, 6)
    assert (result.seconds, result.cores, result.free) == (2.0, 2, free)
    assert (result.images, result.steps) == (30, 6)


def test_ended_childrens_processor_time_counts():
    before = timing.with_ended_children()
    code = "import time\nwhile time.process_time() < 0.3: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert timing.with_ended_children() - before >= 0.25  # ticks of 0.01
