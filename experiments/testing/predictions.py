"""Per-example posteriors of a test, saved so that nothing needs a second forward pass.

A file is a zlib-compressed .npz. It holds `ids`, `labels`, `ranks`, `losses` and `enlarged` of
`Predictions`, the last two only where they are known, and

    high, low      (n, K) uint8, the two bytes of round(65535 p^(1/4)) for every posterior p
    about          JSON text: what was tested, and how

so that p is off by 3.1e-5 at most, less where it is small, and 0 only below 1e-20; error counts of
a file by itself are exact. Older files hold `posteriors`, (n, K) float32, in place of `high`, `low`
and `ranks`; they are read too. So do files of images that may be of several classes, beside
`targets`: what ranks images is then exact to the bit.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from experiments.statistics import true_class_rank
from experiments.testing import metrics
from input_pipeline.whole_files import whole_file

LARGEST = 65535  # code of posterior 1
ROUNDING = 1e-3  # by which a posterior may leave 0..1

# Columns of a file that it may lack: type, and the shape of a row.
OPTIONAL: dict[str, tuple[str, tuple[int, ...]]]
OPTIONAL = {"losses": ("float32", ()), "enlarged": ("bool", ()), "boxes": ("float32", (4,))}
TARGETS = "targets"  # another, (n, K) int8


class PredictionsError(ValueError):
    """Predictions that can't be read, or that are not of the same images; the message says why."""

    user_error = True


@dataclass(frozen=True)
class Predictions:
    """Posteriors of n test images and K classes; None for what is not known of them.

    Ranks and losses are of the posteriors before they were rounded to be saved. Where the network
    says boxes, posteriors have no columns, and the rank is 1 where the box is right, else 2. Where
    images may be of several classes, labels are 0, there are no ranks, posteriors are each class's
    own, and a loss is the mean over the classes that count.
    """

    ids: np.ndarray  # (n,) int32, each once
    labels: np.ndarray  # (n,) int32 in [0, K)
    posteriors: np.ndarray  # (n, K) float32
    # (n,) int32, `statistics.true_class_rank`; by the posteriors as they are where it is None.
    ranks: np.ndarray | None = None
    losses: np.ndarray | None = None  # (n,) float32, cross-entropy in nats
    enlarged: np.ndarray | None = None  # (n,) bool: smaller than what was shown of the image
    # (n, 4) float32, left, top, right, bottom of the object of the image's class, in the view.
    boxes: np.ndarray | None = None
    targets: np.ndarray | None = None  # (n, K) int8, as of a `Collection`: several classes an image

    @property
    def mean_loss(self) -> float:
        """Mean cross-entropy in nats; `losses` have to be known."""
        assert self.losses is not None
        return float(self.losses.mean(dtype=np.float64))

    @property
    def error(self) -> float:
        """Top-1 error in percent; of several classes 100 minus the mean average precision."""
        if self.targets is not None:
            return 100 - self.mean_average_precision()
        return 100 * float(self.topk_wrong().mean())

    def average_precisions(
        self, precision: metrics.Interpolation = "all_points"
    ) -> list[float | None]:
        """Of each class, in percent; None where no image shows it. `targets` have to be known."""
        assert self.targets is not None
        return [
            metrics.average_precision(scores, targets, precision) if (targets == 1).any() else None
            for scores, targets in zip(self.posteriors.T, self.targets.T, strict=True)
        ]

    def mean_average_precision(self, precision: metrics.Interpolation = "all_points") -> float:
        """Over the classes that an image shows, in percent. PredictionsError: there is none."""
        precisions = [ap for ap in self.average_precisions(precision) if ap is not None]
        if not precisions:
            raise PredictionsError("no image shows a class, and precision is of those that do")
        return float(np.mean(precisions))

    def take(self, rows: np.ndarray) -> "Predictions":
        """The rows that an index or a mask chooses; columns that are None stay so."""
        columns: dict[str, Any] = {
            name: None if a is None else a[rows] for name, a in vars(self).items()
        }
        return Predictions(**columns)

    def topk_wrong(self, k: int = 1) -> NDArray[np.bool_]:
        """(n,) bool: the true class is not among the k most probable ones; ties count as wrong.

        Of boxes k is 1, and those that are not right are wrong. PredictionsError: another k, or
        images of several classes.
        """
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if self.targets is not None:
            raise PredictionsError(
                "images of several classes each are not right or wrong; their figure is the mean "
                "average precision, which `cnn-depth evaluate` tells"
            )
        if self.boxes is not None and k > 1:
            raise PredictionsError(f"these are boxes, one an image, and have no top-{k} error")
        return _ranks(self) > k


def save(path: Path, predictions: Predictions, about: Mapping[str, Any] = {}) -> None:
    """Writes `path` (.npz) at once or not at all.

    Raises:
        ValueError: what should be posteriors lies outside 0..1.
        TypeError: JSON can't hold `about`.
        PredictionsError: the file can't be written.
    """
    content = {
        "about": np.array(json.dumps(dict(about))),
        "ids": predictions.ids.astype(np.int32),
        "labels": predictions.labels.astype(np.int32),
    }
    if predictions.targets is None:
        content["ranks"] = _ranks(predictions).astype(np.int32)
        content["high"], content["low"] = _encode(predictions.posteriors)
    else:
        content["posteriors"] = predictions.posteriors.astype(np.float32)
        content[TARGETS] = predictions.targets.astype(np.int8)
    for name, (kind, _) in OPTIONAL.items():
        array = getattr(predictions, name)
        if array is not None:
            content[name] = array.astype(kind)
    # Apart, the two bytes take less room than together; a higher level gains little more.
    options: dict[str, Any] = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 1}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as stream, zipfile.ZipFile(stream, "w", **options) as archive:
            for name, array in content.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, array, allow_pickle=False)
    except OSError as error:
        raise PredictionsError(f"{path} can't be written: {error.strerror or error}") from error


def load(path: Path) -> Predictions:
    """Reads what `save` wrote, now or in older versions; nothing in the file is executed.

    Raises PredictionsError where there is no such file, or it holds something else.
    """
    with _reading(path) as file:
        ids, labels = _integers(file, "ids"), _integers(file, "labels")
        if "posteriors" in file:
            posteriors = file["posteriors"].astype(np.float32, copy=False)
            names = (*OPTIONAL, TARGETS) if TARGETS in file else ()
            columns = {name: file.get(name) for name in names}
            predictions = Predictions(ids, labels, posteriors, **columns)
        else:
            ranks = _integers(file, "ranks")
            posteriors = _decode(file["high"], file["low"])
            if "boxes" not in file:
                posteriors[ranks > posteriors.shape[1]] = np.nan  # the rank that only NaN has
            columns = {name: file.get(name) for name in OPTIONAL}
            predictions = Predictions(ids, labels, posteriors, ranks, **columns)
        _check(predictions)
    return predictions


def about(path: Path) -> dict[str, Any]:
    """What was given to `save`, {} of an older file; posteriors are not read. Raises as `load`."""
    with _reading(path) as file:
        content = json.loads(str(file["about"])) if "about" in file else {}
        if not isinstance(content, dict):
            raise ValueError(f"'about' is {type(content).__name__}, not an object")
    return content


def mean(passes: Sequence[Predictions], names: Sequence[str] = ()) -> Predictions:
    """The mean posteriors of several passes over the same images, in the first one's order.

    names: what they are called in errors. PredictionsError: ids, labels or classes differ.
    """
    first, *others = passes
    if not others:
        return first
    names = names or [f"pass {number}" for number in range(1, len(passes) + 1)]
    for name, predictions in zip(names, passes, strict=True):
        if predictions.boxes is not None:
            raise PredictionsError(f"{name} says boxes, which have no mean")
    total: np.ndarray = first.posteriors.astype(np.float32)
    for name, predictions in zip(names[1:], others, strict=True):
        order = order_like(predictions, first, (name, names[0]))
        if predictions.posteriors.shape[1] != total.shape[1]:
            raise PredictionsError(
                f"{name} has {predictions.posteriors.shape[1]} classes, {names[0]} {total.shape[1]}"
            )
        total += predictions.posteriors[order]
    targets = {} if first.targets is None else {TARGETS: first.targets}
    return Predictions(first.ids, first.labels, total / np.float32(len(passes)), **targets)


def concatenate(parts: Sequence[Predictions]) -> Predictions:
    """The images of all parts; a column that some part lacks is None."""
    columns: dict[str, Any] = {}
    for name in vars(parts[0]):
        arrays = [getattr(part, name) for part in parts]
        columns[name] = None if any(a is None for a in arrays) else np.concatenate(arrays)
    return Predictions(**columns)


def order_like(
    predictions: Predictions, reference: Predictions, names: tuple[str, str] = ("one", "another")
) -> NDArray[np.int64]:
    """(n,) positions that put `predictions` into the order of the reference's ids.

    names: what the two are called in errors. PredictionsError: ids or labels differ.
    """
    order, reference_order = np.argsort(predictions.ids), np.argsort(reference.ids)
    if not np.array_equal(predictions.ids[order], reference.ids[reference_order]):
        extra = [
            len(np.setdiff1d(*pair))
            for pair in ((predictions.ids, reference.ids), (reference.ids, predictions.ids))
        ]
        raise PredictionsError(
            f"{names[0]} and {names[1]} were not tested on the same images: of "
            f"{len(predictions.ids)} and {len(reference.ids)}, {extra[0]} are only in the former "
            f"and {extra[1]} only in the latter"
        )
    order = order[np.argsort(reference_order)]
    mismatches = int((predictions.labels[order] != reference.labels).sum())
    if mismatches:
        raise PredictionsError(
            f"{names[0]} and {names[1]} were not tested on the same images: {mismatches} of "
            f"{len(order)} labels differ"
        )
    targets, reference_targets = predictions.targets, reference.targets
    if (targets is None) != (reference_targets is None) or not (
        targets is None or np.array_equal(targets[order], np.asarray(reference_targets))
    ):
        raise PredictionsError(
            f"{names[0]} and {names[1]} were not tested on the same images: their classes differ"
        )
    return order


def _ranks(predictions: Predictions) -> NDArray[Any]:
    if predictions.ranks is not None:
        return predictions.ranks
    return true_class_rank(predictions.posteriors, predictions.labels)


def _encode(posteriors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """High and low bytes (n, K) of the codes of posteriors; 0 for NaN."""
    if ((posteriors < -ROUNDING) | (posteriors > 1 + ROUNDING)).any():
        raise ValueError("posteriors outside 0..1")
    roots = np.nan_to_num(posteriors.astype(np.float32), copy=False)
    np.sqrt(np.clip(roots, 0, 1, out=roots), out=roots)
    np.sqrt(roots, out=roots)
    roots *= LARGEST
    codes = np.rint(roots, out=roots).astype(np.uint16)
    return (codes >> 8).astype(np.uint8), codes.astype(np.uint8)


def _decode(high: np.ndarray, low: np.ndarray) -> np.ndarray:
    """Posteriors (n, K) float32."""
    if high.dtype != np.uint8 or low.dtype != np.uint8 or high.shape != low.shape or high.ndim != 2:
        raise ValueError("'high' and 'low' must be (n, K) uint8")
    posteriors = (np.arange(LARGEST + 1) / LARGEST) ** 4  # of every code
    return posteriors.astype(np.float32)[high * np.uint16(256) + low]


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """An open .npz file; whatever goes wrong in the block is an error that names it."""
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            yield file
    except FileNotFoundError:
        raise PredictionsError(f"{path} is not there") from None
    except Exception as error:  # damaged files raise nearly anything
        reason = str(error) or type(error).__name__
        raise PredictionsError(f"{path} can't be read as predictions: {reason}") from error


def _integers(file: Any, name: str) -> np.ndarray:
    """(n,) int32."""
    array = file[name]
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(f"{name!r} must be (n,) int32, not {array.shape} {array.dtype}")
    numbers = array.astype(np.int32, copy=False)
    if (numbers != array).any():
        raise ValueError(f"{name!r} goes beyond int32")
    return numbers


def _check(predictions: Predictions) -> None:
    """Raises ValueError where a column has the wrong shape, type or values."""
    n = len(predictions.ids)
    if predictions.posteriors.ndim != 2 or {n} != {
        len(predictions.labels),
        len(predictions.posteriors),
    }:
        raise ValueError(
            f"{n} ids, {len(predictions.labels)} labels, posteriors {predictions.posteriors.shape}"
        )
    classes = predictions.posteriors.shape[1]
    bounds = [("labels", 0, classes - 1), ("ranks", 1, classes + 1)]
    if predictions.boxes is not None:
        bounds = [("labels", 0, np.iinfo(np.int32).max), ("ranks", 1, 2)]
    for name, low, high in bounds:
        array = getattr(predictions, name)
        if array is not None and (len(array) != n or ((array < low) | (array > high)).any()):
            raise ValueError(f"{name!r} must be {n} numbers in {low}..{high}")
    for name, (kind, row) in OPTIONAL.items():
        array = getattr(predictions, name)
        if array is not None and (array.shape != (n, *row) or array.dtype != kind):
            expected = f"{name!r} must be {(n, *row)} {kind}"
            raise ValueError(f"{expected}, not {array.shape} {array.dtype}")
    targets = predictions.targets
    if targets is not None and (
        targets.shape != predictions.posteriors.shape or not np.isin(targets, (-1, 0, 1)).all()
    ):
        raise ValueError(f"'targets' must be {predictions.posteriors.shape} of 1, 0 and -1")
    if len(np.unique(predictions.ids)) != n:
        raise ValueError("an id occurs twice")
