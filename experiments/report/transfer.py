"""The report of heads on features: layers and nets ranked, error against depth, confusion."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.report.figures import (
    BLUE,
    INK,
    PAPER,
    Canvas,
    Figure,
    depth_colours,
    shade,
    spaced,
)
from experiments.report.page import Report
from experiments.report.table import Cell, Column, Table, one_block, plain
from experiments.report.text import error_digits, rounded, shortened, with_interval
from experiments.statistics import error_rate
from experiments.transfer.transfer import Result

LEGEND = (
    "Of one split the error has the 95% Wilson interval of its test images; of several it is their "
    "mean, with the 95% t-interval of that mean."
)
SEVERAL = (
    "Images may be of several classes: the mean over classes of the average precision; of several "
    "splits with the 95% t-interval of their mean."
)
COSTS = (
    "Depth: layers with weights up to the layer. Time: to choose and fit; and to compute the "
    "features, where they were."
)
STRENGTHS = {"knn": "k", "finetune": "rate"}  # what is chosen of a head; of others C
NAMED = 12  # classes, at most, whose names and numbers stand in a figure
MOST = 60  # classes of a matrix that can be looked at
# Raw columns: key -> what it means.
RAW = {
    "run": "whose features",
    "layer": "of the network",
    "depth": "layers with weights up to it",
    "passes": "what was shown of an image",
    "data": "name of the set",
    "head": "what learns",
    "strength": "C, the number of neighbours, or the rate, of each split",
    "normalise": "what is done to features before",
    "features": "an image",
    "train": "training images of a split",
    "test": "test images of a split",
    "splits": "number of them",
    "value": "percent; the error, or the mean average precision",
    "low": "percent; lower end of the interval",
    "high": "percent; upper end of the interval",
    "mean_class_recall": "percent; mean over splits",
    "left_out": "images that can't be used",
    "seconds": "to choose and fit the heads",
    "feature_seconds": "to compute the features, where they were",
}
# Of the table by class.
CLASSES = {
    "class": "name",
    "n": "test images of it, all splits together",
    "value": "percent; the share that was taken for another, or the average precision",
    "low": "percent; lower end of the 95% Wilson interval",
    "high": "percent; upper end of it",
    "taken for": "the class it is most often taken for",
}


def ranked(results: Sequence[Result]) -> list[Result]:
    """The results, the best first; equal ones keep their order."""
    return sorted(results, key=lambda result: result.wrong()[0])


def table(results: Sequence[Result]) -> Table:
    """A line for each run and layer, the best first."""
    records = [_record(result) for result in ranked(results)]
    first, several = results[0], results[0].several
    split = first.splits[0]
    measure, tuned = "mean AP" if several else "error", first.how.head == "finetune"
    runs = {result.run for result in results}
    columns = [
        Column("layer", "", False, plain("layer", str)),
        Column("depth", "", True, plain("depth", rounded)),
        *([] if tuned else [Column("features", "", True, plain("features", rounded), drop=3)]),
        Column(STRENGTHS.get(first.how.head, "C"), "", True, plain("strength", str), drop=2),
        Column(measure, "% [95% interval]", True, _value),
        Column("time", "s", True, _seconds, drop=1),
    ]
    if len(runs) > 1:
        columns.insert(0, Column("run", "", False, plain("run", str)))
    suffix = "" if len(runs) > 1 else f" of {first.run}"
    subject = f"{first.how.head} on the features{suffix}"
    if tuned:
        subject = "Networks, trained on" if len(runs) > 1 else f"{first.run}, trained on"
    splits = f", {len(first.splits)} splits" if len(first.splits) > 1 else ""
    image_counts = f"{split.train:,} training and {split.test:,} test images{splits}"
    return Table(
        f"{subject}: {first.data}",
        columns,
        one_block(records),
        name="transfer",
        origin=[f"{len(first.class_names)} classes, {image_counts}; {', '.join(first.passes)}."],
        notes={note: "" for result in results for note in result.notes},
        legend=[SEVERAL if several else LEGEND, COSTS],
        document={"columns": RAW, "rows": [result.to_json() for result in ranked(results)]},
        lines=records,
    )


def classes(result: Result) -> Table:
    """A line for each class, over all splits: how its test images were classified."""
    records = []
    counts = None if result.several else _confused(result)
    for k, name in enumerate(result.class_names):
        record: dict[str, Any] = {"class": name}
        if counts is None:
            record["value"] = float(np.mean([split.by_class[k] for split in result.splits]))
        elif n := int(counts[k].sum()):
            wrong = n - int(counts[k, k])
            rate = error_rate(wrong, n)
            others = np.where(np.arange(len(counts)) == k, -1, counts[k])
            mistaken_for = result.class_names[int(others.argmax())] if wrong else ""
            record |= {"n": n, "value": rate.percent, "low": rate.low, "high": rate.high}
            record |= {"taken for": mistaken_for}
        records.append(dict.fromkeys(CLASSES) | record)
    columns = [Column("class", "", False, plain("class", str))]
    if counts is None:
        columns.append(Column("average precision", "%", True, plain("value", "{:.1f}".format)))
    else:
        columns += [
            Column("n", "", True, plain("n", rounded)),
            Column("error", "% [95% interval]", True, _class_error),
            Column("taken for", "", False, plain("taken for", str), drop=1),
        ]
    return Table(
        f"By class: {result.layer} of {result.run}",
        columns,
        one_block(records),
        name="classes",
        legend=["" if counts is None else "Taken for: the class it is most often confused with."],
        document={"columns": CLASSES, "rows": records},
        lines=records,
    )


def report(results: Sequence[Result]) -> Report:
    """The tables, the error against the depth of the layer, and the best head's confusion."""
    ranking = table(results)
    best = ranked(results)[0]
    figures = [_against_depth(results), _confusion(best)]
    about = [(best.data, "")]
    return Report(ranking.title, about, [ranking, classes(best)], figures, [], heading="Data")


def _record(result: Result) -> dict[str, Any]:
    wrong, low, high = result.wrong()
    value = wrong
    if result.several:
        value = 100 - wrong
        low, high = (None if end is None else 100 - end for end in (high, low))
    recalls = [s.mean_class_recall for s in result.splits if s.mean_class_recall is not None]
    strengths = dict.fromkeys(f"{split.strength:g}" for split in result.splits)
    values = {
        "passes": ", ".join(result.passes),
        "head": result.how.head,
        "strength": ", ".join(strengths),
        "normalise": result.how.normalise,
        "train": result.splits[0].train,
        "test": result.splits[0].test,
        "splits": len(result.splits),
        "value": value,
        "low": low,
        "high": high,
        "mean_class_recall": float(np.mean(recalls)) if recalls else None,
        "seconds": round(sum(split.seconds for split in result.splits), 3),
    }
    return {key: values.get(key, getattr(result, key, None)) for key in RAW}


def _value(record: dict[str, Any]) -> Cell:
    digits = error_digits(record["test"])
    text = with_interval(record["value"], record["low"], record["high"], digits)
    recall = record["mean_class_recall"]
    below = "" if recall is None else f"class recall {recall:.{digits}f}"
    return Cell(record["value"], text, below)


def _class_error(record: dict[str, Any]) -> Cell:
    if record["n"] is None:
        return Cell()
    value, low, high = (record[key] for key in ("value", "low", "high"))
    return Cell(value, with_interval(value, low, high, error_digits(record["n"])))


def _seconds(record: dict[str, Any]) -> Cell:
    below = f"+ {record['feature_seconds']:,.1f}" if record["feature_seconds"] else ""
    return Cell(record["seconds"], f"{record['seconds']:,.1f}", below)


def _against_depth(results: Sequence[Result]) -> Figure:
    several = results[0].several
    title = (
        f"{'Mean average precision' if several else 'Test error'} against the depth of the layer"
    )
    runs = {
        run: [r for r in results if r.run == run] for run in dict.fromkeys(r.run for r in results)
    }
    drawn = {
        run: sorted(layers, key=lambda r: r.depth)
        for run, layers in runs.items()
        if len(layers) > 1
    }
    if not drawn:
        return Figure("layers", title, note="Not drawn: it needs several layers of a run.")
    ticks: dict[int, dict[str, None]] = {}
    for result in (result for layers in drawn.values() for result in layers):
        ticks.setdefault(result.depth, {})[result.layer] = None
    canvas, labels = _named_depths(ticks)
    (axes,) = canvas.axes[0]
    colours = depth_colours(range(len(drawn))) if len(drawn) > 1 else {0: BLUE}
    for k, (run, layers) in enumerate(drawn.items()):
        records = [_record(result) for result in layers]
        depths, values = (
            [result.depth for result in layers],
            [record["value"] for record in records],
        )
        axes.plot(depths, values, "o-", color=colours[k], linewidth=1.8, markersize=5)
        for record in records:
            if record["low"] is not None:
                ends = record["low"], record["high"]
                axes.vlines(record["depth"], *ends, color=colours[k], linewidth=1.4)
        canvas.end_label(axes, depths[-1], values[-1], run if len(drawn) > 1 else "", colours[k])
    axes.set_ylim(0, 100 if several else None)
    axes.set_xlabel("layers with weights up to the layer", color=INK, size=9)
    axes.set_ylabel("mean AP, %" if several else "test error, %", color=INK, size=9)
    axes.set_xticks(list(labels), list(labels.values()))
    canvas.caption = f"{results[0].how.head} on {results[0].data}. Bars: 95% intervals."
    return Figure("layers", title, [results[0].data], canvas)


def _named_depths(names: Mapping[int, Iterable[str]]) -> tuple[Canvas, dict[int, str]]:
    """A canvas of one panel, and what stands at its depths: the names of layers below the numbers.

    names: of the layers of each depth. Names that have no room beside each other are left out: the
    table has them.
    """
    depths = sorted(names)
    width = min(9.0, max(5.5, 1.5 + 0.7 * len(depths)))
    spacing = (width - 1.5) * min(np.diff(depths), default=1) / max(1, depths[-1] - depths[0])
    longest = max(len(name) for layers in names.values() for name in layers)
    if len(depths) > NAMED or 0.075 * (longest + 1) > spacing:
        return Canvas(1, width=5.5, height=3.8, left=0.65), {d: str(d) for d in spaced(depths)}
    most_layers = max(len(list(layers)) for layers in names.values())
    canvas = Canvas(1, width=width, height=3.8, left=0.65, below=0.45 + 0.15 * most_layers)
    return canvas, {depth: "\n".join([str(depth), *names[depth]]) for depth in depths}


def _confusion(result: Result) -> Figure:
    title = f"Confusion of the best head: {result.layer} of {result.run}"
    names = result.class_names
    if result.several or len(names) > MOST:
        why = "images may be of several classes" if result.several else f"{len(names)} classes"
        return Figure("confusion", title, note=f"Not drawn: {why}.")
    counts = _confused(result)
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    short = [shortened(name, 18) for name in names]
    room = 0.55 + 0.075 * max(map(len, short))  # for the names
    side = (0.4 if len(names) <= NAMED else 0.17) * len(names)
    width = max(4.5, room + side + 0.15)
    canvas = Canvas(1, width=width, height=side + room, left=room, below=room)
    (axes,) = canvas.axes[0]
    shade(axes, shares / 100)
    axes.grid(visible=False)
    axes.set_xlabel("found", color=INK, size=9)
    axes.set_ylabel("true class", color=INK, size=9)
    ticks = range(len(names))
    axes.set_xticks(ticks, short, rotation=90)
    axes.set_yticks(ticks, short)
    for row, column in np.argwhere(counts) if len(names) <= NAMED else ():
        colour = PAPER if shares[row, column] > 55 else INK
        text = str(counts[row, column])
        axes.text(column, row, text, ha="center", va="center", size=9, color=colour)
    shades = "Shade: share of the true class's images. All splits together."
    canvas.caption = shades if len(names) > NAMED else f"Numbers: test images. {shades}"
    return Figure("confusion", title, [result.data], canvas)


def _confused(result: Result) -> np.ndarray:
    """(K, K) numbers of test images of all splits, by true class and predicted class."""
    return np.sum([np.array(split.confusion, np.int64) for split in result.splits], axis=0)
