"""A contact sheet: stored images with the boxes of their views, and beside them the views.

The views are `stream`'s own, with the random words, colours and mirrors that training draws for the
same seed, epoch and example. A person sees what the network sees.
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

# An image of one row, left 0 and right 1. Where it comes back with 1 first, it was mirrored.
SIDES: np.ndarray = np.arange(2).reshape(1, 2, 1)
ATTEMPTS = 100  # unusable images in a row before a place on the sheet is left out

# -------------------------------------------------------------------------------- the views


def _no_boxes() -> np.ndarray:
    return np.zeros((0, 4))


@dataclass(frozen=True, eq=False)
class Tile:
    """One view of an image."""

    pixels: np.ndarray  # (h, w, 3) uint8
    placement: Placement
    captions: tuple[str, ...] = ()  # at most two lines
    boxes: np.ndarray = field(default_factory=_no_boxes)  # (k, 4), objects in the view's pixels


@dataclass(frozen=True, eq=False)
class SheetRow:
    """An image of the sheet, with its views."""

    index: int
    class_name: str
    file: str
    image: np.ndarray  # (H, W, 3) uint8, as it is stored
    tiles: tuple[Tile, ...]
    boxes: np.ndarray = field(default_factory=_no_boxes)  # (k, 4), objects in the image's pixels


def choose(source: Source, count: int, seed: int) -> list[list[int]]:
    """For each of `count` places on the sheet an image, then others in case it is unusable.

    Each place draws from its own stretch of the part, as sets are sorted by class.
    """
    n = len(source)
    count = min(count, n)
    candidates = []
    for low, high in itertools.pairwise(k * n // count for k in range(count + 1)):
        (word,) = order.words(seed, 0, low, 1)
        length = high - low
        candidates.append([low + (word + k) % length for k in range(min(length, ATTEMPTS))])
    return candidates


def usable(
    source: Source, candidates: Sequence[Sequence[int]], on_bad: Callable[[str], None]
) -> list[tuple[int, np.ndarray, int]]:
    """(index, stored image (H, W, 3) uint8, label) of the first usable image for each place."""
    stored = viewer.as_stored(source)
    images = []
    for indices in candidates:
        for index in indices:
            views, about = stored.example(index, 0)
            if about[viewer.KIND] != viewer.UNUSABLE:
                images.append((index, views[0], int(about[viewer.LABEL])))
                break
            on_bad(stored.reasons[index])
    return images


@dataclass(frozen=True, eq=False)
class Colours:
    """How the device changes the views of a training batch."""

    kind: str
    constants: np.ndarray | None  # as of `colour.constants`
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
    """The colours of a kind, fitted to `count` images of the train part if the kind needs that.

    Raises DataError for an unknown kind, or where there are no images to fit it to.
    """
    from input_pipeline import colour
    from input_pipeline.square_statistics import SquareStatistics

    statistics = None
    if kind in ("pca_fitted", "pca_paper"):
        if not len(images.train):
            raise DataError(f"colour {kind!r} needs a train part, and {images.name} has none")
        side = view.S if isinstance(view, crops.SquareView) else view.crop
        decoding = stream.Decoding(max_unusable=1.0)
        statistics = SquareStatistics.fit(images.train, side, count, decoding, on_progress).pixels
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
) -> list[SheetRow]:
    """`count` images, each as it is shown in the epochs 0 to `epochs` - 1.

    boxes: of the part's objects, to draw them. A training that holds images out numbers the others
    anew, so that their views differ.
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

    def describe(place: Placement, size: tuple[int, int]) -> str:
        if not isinstance(view, crops.AreaView):
            return f"S = {min(place.scaled)} at {place.offset}"
        share = 100 * place.box.height * place.box.width / (size[0] * size[1])
        return f"{share:.0f}% of the area, {place.box.width / place.box.height:.2f} : 1"

    rows = []
    for index, image, label in usable(source, choose(source, count, seed), on_bad):
        size = (image.shape[0], image.shape[1])
        placed = [examples.places(*size, index, epoch)[0] for epoch in range(epochs)]
        views = np.concatenate([examples.example(index, epoch)[0] for epoch in range(epochs)])
        epoch_numbers: np.ndarray = np.arange(epochs)
        recoloured, flips = on_device(views, np.full_like(epoch_numbers, index), epoch_numbers)
        pixels = np.clip(np.rint(np.asarray(recoloured)), 0, 255).astype(np.uint8)
        objects = _no_boxes() if boxes is None else boxes.inside(index, *size)
        tiles = []
        for epoch, (recoloured, place, flip) in enumerate(zip(pixels, placed, flips, strict=True)):
            captions = f"epoch {epoch}" + (", mirrored" if flip else ""), describe(place, size)
            seen_boxes = in_view(objects, place)
            if flip:
                seen_boxes = np.asarray(resident.mirrored_boxes(seen_boxes, view.crop))
            tiles.append(Tile(recoloured, place, captions, seen_boxes))
        name = images.class_names[label]
        rows.append(SheetRow(index, name, source.where(index), image, tuple(tiles), objects))
    return rows


def views_of_test(
    images: ImageSet,
    part: str,
    view: crops.TestView,
    *,
    seed: int,
    count: int,
    boxes: Boxes | None = None,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> list[SheetRow]:
    """`count` images, each with all its test views but their mirrors.

    boxes: of the part's objects, to draw them.
    """
    source = getattr(images, part)
    chosen = usable(source, choose(source, count, seed), on_bad)
    if not chosen:
        return []

    def describe(place: Placement) -> str:
        if place.size == place.scaled:
            return f"Q = {min(place.scaled)}: {place.size[1]} x {place.size[0]} pixels"
        return f"Q = {min(place.scaled)} at {place.offset}"

    selection = source.take(np.array([index for index, _, _ in chosen], np.int64))
    rows: list[SheetRow] = []
    batches = stream.eval_stream(selection, view, batch=1)
    with contextlib.closing(batches):
        for (index, image, label), batch in zip(chosen, batches, strict=True):
            placed = view.places(image.shape[0], image.shape[1])
            objects = _no_boxes() if boxes is None else boxes.inside(index, *image.shape[:2])
            tiles = [
                Tile(pixels, place, (describe(place),), in_view(objects, place))
                for pixels, place in zip(batch.views[0], placed, strict=True)
            ]
            name = images.class_names[label]
            rows.append(SheetRow(index, name, source.where(index), image, tuple(tiles), objects))
    return rows


# -------------------------------------------------------------------------------- the sheet


class Area(NamedTuple):
    """A rectangle of the sheet, in whole pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, eq=False)
class Sheet:
    """The drawing, and where its images lie on it."""

    picture: Image.Image
    stored: tuple[Area, ...]  # of the stored images
    views: tuple[tuple[Area, ...], ...]  # of the views of each
    zoom: float  # pixels of the sheet a pixel of a view, each way; below 1 views are reduced


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
    """`count` distinct colours, for boxes and their views' frames."""
    if count <= len(_COLOURS):
        return list(_COLOURS[:count])
    palette = []
    for k in range(count):
        red, green, blue = colorsys.hsv_to_rgb(k / count, 0.95, (0.95, 0.7)[k % 2])
        palette.append((round(255 * red), round(255 * green), round(255 * blue)))
    return palette


def outline(box: Box, size: tuple[int, int], area: Area) -> tuple[int, int, int, int]:
    """The outermost pixels (left, top, right, bottom) of a box, whose image is drawn in `area`.

    box: in an image of `size`, (height, width).
    """
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


def _plan(rows: Sequence[SheetRow]) -> _Plan:
    count = max(len(row.tiles) for row in rows)
    sizes = [tile.pixels.shape for row in rows for tile in row.tiles]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    columns = {25: 5, 72: 18}.get(count, -(-count // -(-count // 5)))
    max_side = 512 if count == 1 else 256 if count <= 10 else 128 if count <= 32 else 80
    zoom: float = max(1, 128 // max(height, width)) if count <= 10 else 1
    if max(height, width) > max_side:
        zoom = 1 / math.ceil(max(height, width) / max_side)
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


def sheet(rows: Sequence[SheetRow], title: str, subtitle: str) -> Sheet:
    """Draws the images below each other, each with its views to the right."""
    plan = _plan(rows)
    side = 340 if plan.height < 400 else 480
    text_height = 3 * 18 + 6  # below a stored image
    stored, tops, y = [], [], MARGIN + 76
    for row in rows:
        height, width = row.image.shape[:2]
        scale = min(side / width, max(plan.height - text_height, 255) / height, 4.0)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        stored.append(Area(MARGIN, y, *size))
        tops.append(y)
        y += max(plan.height, size[1] + text_height) + 2 * GAP + 8
    left = MARGIN + side + 2 * GAP
    picture = Image.new(
        "RGB", (max(left + plan.width + MARGIN, 760), y - GAP - 8 + MARGIN - GAP), _PAPER
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
    """Writes a text, without control characters; one wider than `room` loses its middle."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    short, length = text, len(text)
    while length and _font(size).getlength(short) > room:
        length -= 1
        short = f"{text[: length // 2]}...{text[len(text) - (length - length // 2) :]}"
    pen.text(place, short if length else "", ink, _font(size), anchor=anchor)


def _number_width(number: int) -> int:
    return math.ceil(_font(12).getlength(str(number))) + 7


def _draw_number(pen: ImageDraw.ImageDraw, number: int, x: int, y: int, ink: Ink) -> None:
    """A box's number in its colour, 15 pixels high."""
    width = _number_width(number)
    pen.rectangle((x, y, x + width - 1, y + 14), fill=ink)
    pen.text((x + width / 2, y + 7.5), str(number), _PAPER, _font(12), anchor="mm")


def _draw_stored(picture: Image.Image, row: SheetRow, area: Area, side: int) -> None:
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
    occupied: list[tuple[int, int, int, int]] = []
    for number, (edge, ink) in enumerate(zip(edges, inks, strict=True), 1):
        place = _free_corner(edge, _number_width(number), occupied)
        if place is not None:
            occupied.append(place)
            _draw_number(pen, number, *place[:2], ink)
    y = area.top + area.height + 6
    _write(pen, (area.left, y), row.class_name, 16, side)
    _write(pen, (area.left, y + 22), row.file, 12, side, _FAINT)
    _write(pen, (area.left, y + 38), f"{width} x {height} pixels", 12, side, _FAINT)


def _free_corner(
    edge: tuple[int, int, int, int], width: int, occupied: Sequence[tuple[int, int, int, int]]
) -> tuple[int, int, int, int] | None:
    """The place of a box's number: its first corner that is still free, or None."""
    left, top, right, bottom = edge
    for y, x in itertools.product((top, bottom - 14), (left, right - width + 1)):
        place = (x, y, x + width - 1, y + 14)
        if all(
            place[2] < area[0] or area[2] < place[0] or place[3] < area[1] or area[3] < place[1]
            for area in occupied
        ):
            return place
    return None


def _draw_views(
    picture: Image.Image, row: SheetRow, corner: tuple[int, int], plan: _Plan
) -> tuple[Area, ...]:
    """The views, each in a frame of its box's colour, with its number and captions."""
    pen, areas = ImageDraw.Draw(picture), []
    for k, (tile, ink) in enumerate(zip(row.tiles, colours(len(row.tiles)), strict=True)):
        x = corner[0] + (k % plan.columns) * plan.cell[0]
        y = corner[1] + (k // plan.columns) * plan.cell[1]
        view = _zoom(Image.fromarray(tile.pixels), plan.zoom)
        _draw_boxes(view, tile.boxes, (tile.pixels.shape[0], tile.pixels.shape[1]))
        area = Area(x + FRAME, y + FRAME, view.width, view.height)
        frame = (x, y, area.left + area.width + FRAME - 1, area.top + area.height + FRAME - 1)
        pen.rectangle(frame, fill=ink)
        picture.paste(view, (area.left, area.top))
        areas.append(area)
        y_text = frame[3] + 4
        _draw_number(pen, k + 1, x, y_text, ink)
        for line, caption in enumerate(tile.captions[: plan.lines]):
            place = (x if line else x + _number_width(k + 1) + 6, y_text + 7 + 17 * line)
            room = plan.cell[0] - GAP - (place[0] - x)
            _write(pen, place, caption, 12, room, _FAINT, "lm")
    return tuple(areas)


def _draw_boxes(picture: Image.Image, boxes: np.ndarray, size: tuple[int, int]) -> None:
    """Draws boxes of an image of `size` on a picture of it, with lines inside the boxes."""
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
