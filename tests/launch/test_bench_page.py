"""`bench --page`: a section is replaced as a whole, and nothing else on the page changes."""

import pytest

from input_pipeline import DataError
from launch.bench import frame
from launch.bench.ratios import Item, Ratio
from launch.bench.timing import Timing, series

MACHINE = {**frame.machine(), "processor": "P", "usable_cores": 2, "date": "2026-01-02T03:04:05"}


def write(path, bench="step", device="cpu", body="figures"):
    command = f"cnn-depth bench {bench}"
    frame.write_page(bench, device, command, MACHINE, {"jax": "0.10", "torch": None}, body, path)


def test_missing_page_begins_with_its_head(tmp_path):
    write(tmp_path / "page.md")
    text = (tmp_path / "page.md").read_text()
    assert text.startswith(frame.HEAD)
    assert "<!-- step on cpu: begin -->\n## `step` on cpu\n" in text
    assert text.endswith("figures\n<!-- step on cpu: end -->\n")
    assert "2026-01-02; P, 2 usable cores;" in text
    assert "jax 0.10.\n" in text
    assert "torch" not in text
    assert "```\ncnn-depth bench step\n```" in text


def test_time_that_the_host_gave_to_others_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(MACHINE, "cpu_ticks", (100, 10))
    for now, text in (((160, 30), "gave 25% of the time asked"), ((160, 10), None), (None, None)):
        monkeypatch.setattr(frame, "cpu_ticks", lambda now=now: {"cpu": now} if now else {})
        write(tmp_path / "page.md")
        assert ((text or "its host") in (tmp_path / "page.md").read_text()) == bool(text)


def test_section_takes_the_place_of_its_own_and_all_else_stays(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("My own words\n")
    write(path, body="first")
    write(path, bench="compile", body="second")
    write(path, device="cpu 2", body="third")
    with path.open("a") as file:
        file.write("\nmore words\n")
    before = path.read_text()
    write(path, body=r"new \1 figures")
    assert path.read_text() == before.replace("first", r"new \1 figures")
    assert [p.name for p in tmp_path.iterdir()] == ["page.md"]


def test_section_without_an_end_is_refused(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("<!-- step on cpu: begin -->\nhalf")
    with pytest.raises(DataError, match="does not end with"):
        write(path)
    assert path.read_text().endswith("half")


def test_page_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(DataError, match=r"--page .*nowhere"):
        write(tmp_path / "nowhere" / "page.md")


def test_page_shows_the_seconds_of_eval():
    from types import SimpleNamespace

    from launch.bench import measure_eval

    bench = SimpleNamespace(
        arch="vgg:D",
        width=1.0,
        crop=224,
        scales=(256, 384),
        images=1,
        timings={
            "dense": series([Timing(8, 4.0, 8.0, 2, 2.0, 24)]),
            "crops": series([Timing(1, 4.0, 8.0, 2, 1.0, 24)]),
        },
        flops={"dense": 1e11, "crops": 8e11},
    )
    padding = {"images": 9, "scales": {256: {"share": 0.125, "programs": 3}}}
    items = [Item("a", "dense over 150 crops", 4.0, Ratio((7.0, 8.0, 9.0)), aim=8.0)]
    body = measure_eval.report(bench, 1, items, padding, MACHINE).markdown()
    assert "| dense, three scales | 0.500 | 0.500 | 0.500 | 100 | 200 |" in body
    assert "| dense over 150 crops | 4 (8) | 8.00 [7.00, 9.00] | yes |" in body
    assert "| 150 crops | not trusted | 4.000 | 4.000 | 800 |  |" in body
    assert "- 150 crops: not trusted: other programs or the host left it 1.00 of 2 cores" in body
    assert "- 9 images at Q=256: 12.5% of the pixels are padding or blank, in 3 shapes" in body
