"""A contact sheet: stored images with the boxes of their views, and beside them the views.

The views are `stream`'s own, with the random words, colours and mirrors that training draws for the
same seed, epoch and example, so that a person sees what the network sees.
"""

import colorsys
import contextlib
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline import crops, order, stream, viewer
from input_pipeline.boxes import Boxes, in_view
from input_pipeline.crops import Box, Placement
from input_pipeline.errors import DataError
from input_pipeline.sources import ImageSet, Source

SIDES: np.ndarray = np.arange(2).reshape(1, 2, 1)  # left, right: mirrored, it begins with 1
ATTEMPTS = 100  # unusable images in a row before a place on the sheet is given up

# -------------------------------------------------------------------------------- the views


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4))


@dataclass(frozen=True, eq=False)
class Tile:
    """One view of an image. pixels: (h, w, 3) uint8. captions: at most two lines.

    boxes: (k, 4) around the image's objects, in the view's pixels.
    """

    pixels: np.ndarray
    placement: Placement
    captions: tuple[str, ...] = ()
    boxes: np.ndarray = field(default_factory=_no_boxes)


@dataclass(frozen=True, eq=False)
class Shown:
    """An image of the sheet: image (H, W, 3) uint8 as it is stored, its boxes, and its views."""

    index: int
    class_name: str
    file: str
    image: np.ndarray
    tiles: tuple[Tile, ...]
    boxes: np.ndarray = field(default_factory=_no_boxes)  # (k, 4), in the image's pixels


def choose(source: Source, count: int, seed: int) -> list[list[int]]:
    """The images of a sheet: for each of `count` the one, and others should it be unusable.

    Each is drawn from its own stretch of the part: sets lie sorted by class.
    """
    n = len(source)
    count = min(count, n)
    found = []
    for low, high in itertools.pairwise(k * n // count for k in range(count + 1)):
        (word,) = order.words(seed, 0, low, 1)
        length = high - low
        found.append([low + (word + k) % length for k in range(min(length, ATTEMPTS))])
    return found


def usable(
    source: Source, candidates: Sequence[Sequence[int]], on_bad: Callable[[str], None]
) -> list[tuple[int, np.ndarray, int]]:
    """(index, stored image (H, W, 3) uint8, label) of the first usable one of each candidates."""
    whole = viewer.as_stored(source)
    found = []
    for indices in candidates:
        for index in indices:
            views, about = whole.one(index, 0)
            if about[viewer.KIND] != viewer.UNUSABLE:
                found.append((index, views[0], int(about[viewer.LABEL])))
                break
            on_bad(whole.reasons[index])
    return found


@dataclass(frozen=True, eq=False)
class Colours:
    """What the device does to the views of a training batch; constants as `colour.constants`."""

    kind: str
    constants: np.ndarray | None
    mirror: bool


def fit_colours(
    kind: str,
    images: ImageSet,
    view: crops.TrainView,
    *,
    mirror: bool,
    count: int = 1000,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Colours:
    """The colours of a kind, fitted to `count` images of the train part where it needs that.

    Raises DataError for an unknown kind, or without images to fit one to.
    """
    from input_pipeline import colour
    from input_pipeline.square_statistics import SquareStatistics

    statistics = None
    if kind in ("pca_fitted", "pca_paper"):
        if not len(images.train):
            raise DataError(f"colour {kind!r} needs a train part, and {images.name} has none")
        side = view.S if isinstance(view, crops.SquareView) else view.crop
        how = stream.Decoding(most=1.0)
        statistics = SquareStatistics.fit(images.train, side, count, how, on_progress).pixels
    return Colours(kind, colour.constants(kind, 3, statistics), mirror)


def views_of_training(
    images: ImageSet,
    part: str,
    view: crops.TrainView,
    colours: Colours,
    *,
    seed: int,
    epochs: int,
    count: int,
    boxes: Boxes | None = None,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> list[Shown]:
    """`count` images, each as it is shown in the epochs 0 to `epochs` - 1.

    boxes: of the part's images, which are drawn. In a training that holds some images out, the
    numbers of the others, and so their views, differ.
    """
    import jax
    import jax.numpy as jnp

    from input_pipeline import colour, resident

    source = getattr(images, part)
    examples = stream.training_viewer(source, view, seed)

    @jax.jit
    def on_device(views: jax.Array, indices: jax.Array, epochs: jax.Array) -> tuple:
        keys = jax.vmap(resident.view_key, (None, 0, 0))(seed, epochs, indices)
        x = colour.recolour(views, keys, colours.kind, colours.constants)
        if not colours.mirror:
            return x, jnp.zeros(len(keys), bool)
        sides = jnp.broadcast_to(SIDES, (len(keys), *SIDES.shape))
        return colour.mirror(x, keys), colour.mirror(sides, keys)[:, 0, 0, 0] == 1

    def told(place: Placement, size: tuple[int, int]) -> str:
        if not isinstance(view, crops.AreaView):
            return f"S = {min(place.scaled)} at {place.offset}"
        share = 100 * place.box.height * place.box.width / (size[0] * size[1])
        return f"{share:.0f}% of the area, {place.box.width / place.box.height:.2f} : 1"

    found = []
    for index, image, label in usable(source, choose(source, count, seed), on_bad):
        size = (image.shape[0], image.shape[1])
        placed = [examples.places(*size, index, epoch)[0] for epoch in range(epochs)]
        views = np.concatenate([examples.one(index, epoch)[0] for epoch in range(epochs)])
        numbers: np.ndarray = np.arange(epochs)
        shown, flipped = on_device(views, np.full_like(numbers, index), numbers)
        pixels = np.clip(np.rint(np.asarray(shown)), 0, 255).astype(np.uint8)
        around = _no_boxes() if boxes is None else boxes.inside(index, *size)
        tiles = []
        for epoch, (shown, place, m) in enumerate(zip(pixels, placed, flipped, strict=True)):
            captions = f"epoch {epoch}" + (", mirrored" if m else ""), told(place, size)
            seen = in_view(around, place)
            if m:
                seen = np.asarray(resident.mirrored_boxes(seen, view.crop))
            tiles.append(Tile(shown, place, captions, seen))
        name = images.class_names[label]
        found.append(Shown(index, name, source.where(index), image, tuple(tiles), around))
    return found


def views_of_test(
    images: ImageSet,
    part: str,
    view: crops.TestView,
    *,
    seed: int,
    count: int,
    boxes: Boxes | None = None,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> list[Shown]:
    """`count` images, each with all its test views but their mirrors.

    boxes: of the part's images, which are drawn.
    """
    source = getattr(images, part)
    chosen = usable(source, choose(source, count, seed), on_bad)
    if not chosen:
        return []

    def told(place: Placement) -> str:
        if place.size == place.scaled:
            return f"Q = {min(place.scaled)}: {place.size[1]} x {place.size[0]} pixels"
        return f"Q = {min(place.scaled)} at {place.offset}"

    taken = source.take(np.array([index for index, _, _ in chosen], np.int64))
    found: list[Shown] = []
    batches = stream.eval_stream(taken, view, batch=1)
    with contextlib.closing(batches):
        for (index, image, label), batch in zip(chosen, batches, strict=True):
            placed = view.places(image.shape[0], image.shape[1])
            around = _no_boxes() if boxes is None else boxes.inside(index, *image.shape[:2])
            tiles = [
                Tile(pixels, place, (told(place),), in_view(around, place))
                for pixels, place in zip(batch.views[0], placed, strict=True)
            ]
            name = images.class_names[label]
            found.append(Shown(index, name, source.where(index), image, tuple(tiles), around))
    return found


# -------------------------------------------------------------------------------- the sheet


class Area(NamedTuple):
    """A rectangle of the sheet, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Sheet:
    """The drawing, and where on it lie the stored images and, for each, its views.

    zoom: pixels of the sheet a pixel of a view takes each way; below 1 views are reduced.
    """

    picture: Image.Image
    stored: tuple[Area, ...]
    views: tuple[tuple[Area, ...], ...]
    zoom: float


MARGIN, GAP, FRAME = 24, 12, 3
_INK, _FAINT, _PAPER, _LINE = (24, 24, 27), (107, 107, 115), (255, 255, 255), (228, 228, 231)
_COLOURS = (
    (230, 25, 75),
    (0, 130, 200),
    (60, 180, 75),
    (245, 130, 48),
    (145, 30, 180),
    (0, 190, 200),
    (240, 50, 230),
    (170, 130, 0),
    (128, 0, 0),
    (0, 0, 160),
)


OBJECT = (255, 255, 0)  # around the objects, with a dark rim


def colours(count: int) -> list[tuple[int, int, int]]:
    """As many colours that can be told from each other, of boxes and their views' frames."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    found = []
    for k in range(count):
        red, green, blue = colorsys.hsv_to_rgb(k / count, 0.95, (0.95, 0.7)[k % 2])
        found.append((round(255 * red), round(255 * green), round(255 * blue)))
    return found


def outline(box: Box, size: tuple[int, int], area: Area) -> tuple[int, int, int, int]:
    """(left, top, right, bottom), all inside, of a box of an image of `size` drawn in `area`."""
    left = area.left + round(box.left * area.width / size[1])
    top = area.top + round(box.top * area.height / size[0])
    right = area.left + round((box.left + box.width) * area.width / size[1]) - 1
    bottom = area.top + round((box.top + box.height) * area.height / size[0]) - 1
    return left, top, max(left, right), max(top, bottom)


class _Plan(NamedTuple):
    """How the views of one image are arranged, in pixels of the sheet."""

    columns: int
    zoom: float
    lines: int  # of captions
    cell: tuple[int, int]  # width, height of a view with its frame, its captions and a gap
    width: int
    height: int


def _plan(rows: Sequence[Shown]) -> _Plan:
    count = max(len(row.tiles) for row in rows)
    sizes = [tile.pixels.shape for row in rows for tile in row.tiles]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    columns = {25: 5, 72: 18}.get(count, -(-count // -(-count // 5)))
    most = 512 if count == 1 else 256 if count <= 10 else 128 if count <= 32 else 80
    zoom: float = max(1, 128 // max(height, width)) if count <= 10 else 1
    if max(height, width) > most:
        zoom = 1 / math.ceil(max(height, width) / most)
    wide, high = (
        length * round(zoom) if zoom >= 1 else -(-length // round(1 / zoom))
        for length in (width, height)
    )
    lines = max(len(tile.captions) for row in rows for tile in row.tiles) if wide >= 120 else 0
    caption = 20 + 16 * lines if lines else 18
    cell = (wide + 2 * FRAME + GAP, high + 2 * FRAME + caption + 6)
    return _Plan(
        columns, zoom, lines, cell, columns * cell[0] - GAP, -(-count // columns) * cell[1] - 6
    )


def sheet(rows: Sequence[Shown], title: str, subtitle: str) -> Sheet:
    """Draws the images below each other, each with its views to the right."""
    plan = _plan(rows)
    side = 340 if plan.height < 400 else 480
    text = 3 * 18 + 6  # below a stored image
    stored, tops, at = [], [], MARGIN + 76
    for row in rows:
        height, width = row.image.shape[:2]
        scale = min(side / width, max(plan.height - text, 255) / height, 4.0)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        stored.append(Area(MARGIN, at, *size))
        tops.append(at)
        at += max(plan.height, size[1] + text) + 2 * GAP + 8
    left = MARGIN + side + 2 * GAP
    picture = Image.new(
        "RGB", (max(left + plan.width + MARGIN, 760), at - GAP - 8 + MARGIN - GAP), _PAPER
    )
    pen, room = ImageDraw.Draw(picture), picture.width - 2 * MARGIN
    _write(pen, (MARGIN, MARGIN - 4), title, 22, room)
    _write(pen, (MARGIN, MARGIN + 30), subtitle, 13, room, _FAINT)
    views = []
    for row, area, top in zip(rows, stored, tops, strict=True):
        pen.line((MARGIN, top - GAP - 4, picture.width - MARGIN, top - GAP - 4), _LINE)
        _draw_stored(picture, row, area, side)
        views.append(_draw_views(picture, row, (left, top), plan))
    return Sheet(picture, tuple(stored), tuple(views), plan.zoom)


Ink = tuple[int, int, int]


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    room: float,
    ink: Ink = _INK,
    anchor: str | None = None,
) -> None:
    """As much of a text's end and beginning as there is room for; no control characters."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    short, kept = text, len(text)
    while kept and _font(size).getlength(short) > room:
        kept -= 1
        short = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
    pen.text(place, short if kept else "", ink, _font(size), anchor=anchor)


def _number_width(number: int) -> int:
    return math.ceil(_font(12).getlength(str(number))) + 7


def _draw_number(pen: ImageDraw.ImageDraw, number: int, x: int, y: int, ink: Ink) -> None:
    """A box's number in its colour, 15 pixels high."""
    width = _number_width(number)
    pen.rectangle((x, y, x + width - 1, y + 14), fill=ink)
    pen.text((x + width / 2, y + 7.5), str(number), _PAPER, _font(12), anchor="mm")


def _draw_stored(picture: Image.Image, row: Shown, area: Area, side: int) -> None:
    """The stored image, its boxes with their numbers, and three lines of text."""
    pen, (height, width) = ImageDraw.Draw(picture), row.image.shape[:2]
    scaled = Image.fromarray(row.image).resize((area.width, area.height), Image.Resampling.BOX)
    picture.paste(scaled, (area.left, area.top))
    edges = [outline(tile.placement.box, (height, width), area) for tile in row.tiles]
    inks, many = colours(len(edges)), len(edges) > len(_COLOURS)
    if not many:
        for edge in edges:  # a dark rim, so that no colour is lost on the image
            pen.rectangle(edge, outline=(0, 0, 0), width=3)
    for edge, ink in zip(edges, inks, strict=True):
        pen.rectangle(edge, outline=ink, width=1 if many else 2)
    framed = picture.crop((area.left, area.top, area.left + area.width, area.top + area.height))
    _draw_boxes(framed, row.boxes, (height, width))
    picture.paste(framed, (area.left, area.top))
    taken: list[tuple[int, int, int, int]] = []
    for number, (edge, ink) in enumerate(zip(edges, inks, strict=True), 1):
        place = _free_corner(edge, _number_width(number), taken)
        if place is not None:
            taken.append(place)
            _draw_number(pen, number, *place[:2], ink)
    below = area.top + area.height + 6
    _write(pen, (area.left, below), row.class_name, 16, side)
    _write(pen, (area.left, below + 22), row.file, 12, side, _FAINT)
    _write(pen, (area.left, below + 38), f"{width} x {height} pixels", 12, side, _FAINT)


def _free_corner(
    edge: tuple[int, int, int, int], width: int, taken: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """Where in the first of a box's corners that is still free its number lies."""
    left, top, right, bottom = edge
    for y, x in itertools.product((top, bottom - 14), (left, right - width + 1)):
        place = (x, y, x + width - 1, y + 14)
        if all(
            place[2] < other[0] or other[2] < place[0] or place[3] < other[1] or other[3] < place[1]
            for other in taken
        ):
            return place
    return None


def _draw_views(
    picture: Image.Image, row: Shown, corner: tuple[int, int], plan: _Plan
) -> tuple[Area, ...]:
    """The views, each in a frame of its box's colour, with its number and what is said of it."""
    pen, found = ImageDraw.Draw(picture), []
    for k, (tile, ink) in enumerate(zip(row.tiles, colours(len(row.tiles)), strict=True)):
        x = corner[0] + (k % plan.columns) * plan.cell[0]
        y = corner[1] + (k // plan.columns) * plan.cell[1]
        view = _zoom(Image.fromarray(tile.pixels), plan.zoom)
        _draw_boxes(view, tile.boxes, (tile.pixels.shape[0], tile.pixels.shape[1]))
        area = Area(x + FRAME, y + FRAME, view.width, view.height)
        frame = (x, y, area.left + area.width + FRAME - 1, area.top + area.height + FRAME - 1)
        pen.rectangle(frame, fill=ink)
        picture.paste(view, (area.left, area.top))
        found.append(area)
        below = frame[3] + 4
        _draw_number(pen, k + 1, x, below, ink)
        for line, caption in enumerate(tile.captions[: plan.lines]):
            place = (x if line else x + _number_width(k + 1) + 6, below + 7 + 17 * line)
            room = plan.cell[0] - GAP - (place[0] - x)
            _write(pen, place, caption, 12, room, _FAINT, "lm")
    return tuple(found)


def _draw_boxes(picture: Image.Image, boxes: np.ndarray, size: tuple[int, int]) -> None:
    """Boxes of an image of `size` on a picture of all of it; lines lie inside them."""
    pen, scale = ImageDraw.Draw(picture), (picture.width / size[1], picture.height / size[0])
    for left, top, right, bottom in np.rint(boxes * [*scale, *scale]).astype(int).tolist():
        for inwards, ink in ((-1, (0, 0, 0)), (2, (0, 0, 0)), (1, OBJECT), (0, OBJECT)):
            edge = (left + inwards, top + inwards, right - 1 - inwards, bottom - 1 - inwards)
            if edge[0] <= edge[2] and edge[1] <= edge[3]:
                pen.rectangle(edge, outline=ink)


def _zoom(view: Image.Image, zoom: float) -> Image.Image:
    if zoom < 1:
        return view.reduce(round(1 / zoom))
    size = (view.width * round(zoom), view.height * round(zoom))
    return view.resize(size, Image.Resampling.NEAREST)
