"""A contact sheet: stored images with the boxes of their views, and beside them the views.

The views are `stream`'s own, with the random words, colours and mirrors that training draws for the
same seed, epoch and example, so that a person sees what the network sees.
"""

import colorsys
import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from input_pipeline import crops, order, stream, viewer
from input_pipeline.crops import Box, Placement
from input_pipeline.errors import DataError
from input_pipeline.sources import ImageSet, Source

SIDES: np.ndarray = np.arange(2).reshape(1, 2, 1)  # left, right: mirrored, it begins with 1
ATTEMPTS = 100  # unusable images in a row before a place on the sheet is given up

# -------------------------------------------------------------------------------- the views


@dataclass(frozen=True, eq=False)
class Tile:
    """One view of an image. pixels: (h, w, 3) uint8, as the device makes them, rounded.

    placement: where it lies in the stored image. captions: what is said about it, at most two
    lines.
    """

    pixels: np.ndarray
    placement: Placement
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Shown:
    """An image of the sheet: image (H, W, 3) uint8 as it is stored, and its views."""

    index: int
    class_name: str
    file: str
    image: np.ndarray
    tiles: tuple[Tile, ...]


def choose(source: Source, count: int, seed: int) -> list[list[int]]:
    """The images of a sheet: for each of `count` the one, and others should it be unusable.

    Each is from its own stretch of the part, drawn from `seed`. Sets lie sorted by class, so that
    the images are spread over the classes.
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
    """For `pca_fitted` and `pca_paper` from central squares of `count` images of the train part.

    Raises DataError for an unknown kind, or without images to fit one to.
    """
    from input_pipeline import colour

    statistics = None
    if kind in ("pca_fitted", "pca_paper"):
        side = view.S if isinstance(view, crops.SquareView) else view.crop
        n = len(images.train)
        if not n:
            raise DataError(f"colour {kind!r} needs a train part, and {images.name} has none")
        spread = np.unique(np.linspace(0, n - 1, min(n, count)).astype(np.int64))
        batches = stream.eval_stream(
            images.train.take(spread),
            crops.CentreView(crop=side, Q=side),
            batch=32,
            bad=stream.BadImages(most=1.0),
        )
        done = 0

        def squares() -> Iterator[np.ndarray]:
            nonlocal done
            for batch in batches:
                yield from batch.views[batch.mask, 0]
                done += int(batch.mask.sum())
                on_progress(done, len(spread))

        with contextlib.closing(batches):
            statistics = colour.Statistics.fit(squares())
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
    on_bad: Callable[[str], None] = lambda reason: None,
) -> list[Shown]:
    """`count` images, each as it is shown in the epochs 0 to `epochs` - 1.

    In a training that holds some images out, the numbers of the others, and so their views, differ.
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

    found = []
    for index, image, label in usable(source, choose(source, count, seed), on_bad):
        size = (image.shape[0], image.shape[1])
        placed = [examples.places(*size, index, epoch)[0] for epoch in range(epochs)]
        views = np.concatenate([examples.one(index, epoch)[0] for epoch in range(epochs)])
        numbers: np.ndarray = np.arange(epochs)
        shown, flipped = on_device(views, np.full_like(numbers, index), numbers)
        pixels = np.clip(np.rint(np.asarray(shown)), 0, 255).astype(np.uint8)
        tiles = [
            Tile(pixels[epoch], placed[epoch], _train_captions(epoch, view, placed[epoch], size, m))
            for epoch, m in enumerate(flipped.tolist())
        ]
        name = images.class_names[label]
        found.append(Shown(index, name, source.where(index), image, tuple(tiles)))
    return found


def _train_captions(
    epoch: int, view: crops.TrainView, placement: Placement, size: tuple[int, int], mirrored: bool
) -> tuple[str, str]:
    box = placement.box
    if isinstance(view, crops.AreaView):
        share = 100 * box.height * box.width / (size[0] * size[1])
        what = f"{share:.0f}% of the area, {box.width / box.height:.2f} : 1"
    else:
        what = f"S = {min(placement.scaled)} at {placement.offset}"
    return f"epoch {epoch}" + (", mirrored" if mirrored else ""), what


def views_of_test(
    images: ImageSet,
    part: str,
    view: crops.TestView,
    *,
    seed: int,
    count: int,
    on_bad: Callable[[str], None] = lambda reason: None,
) -> list[Shown]:
    """`count` images, each with all its test views but their mirrors."""
    source = getattr(images, part)
    chosen = usable(source, choose(source, count, seed), on_bad)
    if not chosen:
        return []
    taken = source.take(np.array([index for index, _, _ in chosen], np.int64))
    found: list[Shown] = []
    batches = stream.eval_stream(taken, view, batch=1)
    with contextlib.closing(batches):
        for (index, image, label), batch in zip(chosen, batches, strict=True):
            placed = view.places(image.shape[0], image.shape[1])
            tiles = [
                Tile(pixels, place, _test_captions(place))
                for pixels, place in zip(batch.views[0], placed, strict=True)
            ]
            name = images.class_names[label]
            found.append(Shown(index, name, source.where(index), image, tuple(tiles)))
    return found


def _test_captions(placement: Placement) -> tuple[str, ...]:
    height, width = placement.size
    if placement.size == placement.scaled:
        return (f"Q = {min(placement.scaled)}: {width} x {height} pixels",)
    return (f"Q = {min(placement.scaled)} at {placement.offset}",)


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

    zoom: how many pixels of the sheet a pixel of a view takes each way; below 1 the views are
    reduced by 1 / zoom (`PIL.Image.Image.reduce`).
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
    """(left, top, right, bottom) of a box of an image of `size` (height, width) drawn in `area`.

    All four are inside: the last row and column of pixels that belong to the box.
    """
    left = area.left + round(box.left * area.width / size[1])
    top = area.top + round(box.top * area.height / size[0])
    right = area.left + round((box.left + box.width) * area.width / size[1]) - 1
    bottom = area.top + round((box.top + box.height) * area.height / size[0]) - 1
    return left, top, max(left, right), max(top, bottom)


@dataclass(frozen=True)
class _Plan:
    """How the views of one image are arranged: columns, zoom and the size of a view's cell."""

    columns: int
    rows: int
    zoom: float
    tile: tuple[int, int]  # width, height
    lines: int  # of captions

    @property
    def caption(self) -> int:
        return 20 + 16 * self.lines if self.lines else 18

    @property
    def cell(self) -> tuple[int, int]:
        return self.tile[0] + 2 * FRAME + GAP, self.tile[1] + 2 * FRAME + self.caption + 6

    @property
    def width(self) -> int:
        return self.columns * self.cell[0] - GAP

    @property
    def height(self) -> int:
        return self.rows * self.cell[1] - 6


def _plan(rows: Sequence[Shown]) -> _Plan:
    count = max(len(row.tiles) for row in rows)
    sizes = [tile.pixels.shape for row in rows for tile in row.tiles]
    height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    columns = {25: 5, 72: 18}.get(count, -(-count // -(-count // 5)))
    most = 512 if count == 1 else 256 if count <= 10 else 128 if count <= 32 else 80
    zoom: float = max(1, 128 // max(height, width)) if count <= 10 else 1
    if max(height, width) > most:
        zoom = 1 / math.ceil(max(height, width) / most)
    tile = (_zoomed(width, zoom), _zoomed(height, zoom))
    captions = max(len(tile.captions) for row in rows for tile in row.tiles)
    lines = captions if tile[0] >= 120 else 0
    return _Plan(columns, -(-count // columns), zoom, tile, lines)


def _zoomed(length: int, zoom: float) -> int:
    return length * round(zoom) if zoom >= 1 else -(-length // round(1 / zoom))


def sheet(rows: Sequence[Shown], title: str, subtitle: str) -> Sheet:
    """Draws the images below each other, each with its views to the right."""
    plan = _plan(rows)
    side = 340 if plan.height < 400 else 480
    fonts = {size: ImageFont.load_default(size) for size in (12, 13, 16, 22)}
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
    pen = ImageDraw.Draw(picture)
    room = picture.width - 2 * MARGIN
    pen.text((MARGIN, MARGIN - 4), _fit(title, fonts[22], room), _INK, fonts[22])
    pen.text((MARGIN, MARGIN + 30), _fit(subtitle, fonts[13], room), _FAINT, fonts[13])
    views = []
    for row, area, top in zip(rows, stored, tops, strict=True):
        pen.line((MARGIN, top - GAP - 4, picture.width - MARGIN, top - GAP - 4), _LINE)
        inks = colours(len(row.tiles))
        _draw_stored(picture, pen, row, area, side, inks, fonts)
        views.append(_draw_views(picture, pen, row, (left, top), plan, inks, fonts))
    return Sheet(picture, tuple(stored), tuple(views), plan.zoom)


Fonts = dict[int, ImageFont.FreeTypeFont | ImageFont.ImageFont]
Ink = tuple[int, int, int]


def _draw_stored(
    picture: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: Shown,
    area: Area,
    side: int,
    inks: Sequence[Ink],
    fonts: Fonts,
) -> None:
    """The stored image, its boxes with their numbers, and three lines of text."""
    height, width = row.image.shape[:2]
    scaled = Image.fromarray(row.image).resize((area.width, area.height), Image.Resampling.BOX)
    picture.paste(scaled, (area.left, area.top))
    edges = [outline(tile.placement.box, (height, width), area) for tile in row.tiles]
    many = len(edges) > len(_COLOURS)
    if not many:
        for edge in edges:  # a dark rim, so that no colour is lost on the image
            pen.rectangle(edge, outline=(0, 0, 0), width=3)
    for edge, ink in zip(edges, inks, strict=True):
        pen.rectangle(edge, outline=ink, width=1 if many else 2)
    tags: list[tuple[float, float, float, float]] = []
    for number, (edge, ink) in enumerate(zip(edges, inks, strict=True), 1):
        _draw_tag(pen, str(number), edge, ink, tags, fonts[12])
    below = area.top + area.height + 6
    lines = ((row.class_name, 16, _INK), (row.file, 12, _FAINT))
    for k, (line, size, ink) in enumerate((*lines, (f"{width} x {height} pixels", 12, _FAINT))):
        place = (area.left, below + (0, 22, 38)[k])
        pen.text(place, _fit(line, fonts[size], side), ink, fonts[size])


def _draw_tag(
    pen: ImageDraw.ImageDraw,
    number: str,
    edge: tuple[int, int, int, int],
    ink: Ink,
    taken: list[tuple[float, float, float, float]],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """A box's number, in the first of its corners that is still free; nowhere if none is."""
    left, top, right, bottom = edge
    width, height = math.ceil(font.getlength(number)) + 7, 15
    for x, y in (
        (left, top),
        (right - width + 1, top),
        (left, bottom - height + 1),
        (right - width + 1, bottom - height + 1),
    ):
        place = (x, y, x + width - 1, y + height - 1)
        if all(
            place[2] < other[0] or other[2] < place[0] or place[3] < other[1] or other[3] < place[1]
            for other in taken
        ):
            taken.append(place)
            pen.rectangle(place, fill=ink)
            pen.text((x + width / 2, y + height / 2), number, _PAPER, font, anchor="mm")
            return


def _draw_views(
    picture: Image.Image,
    pen: ImageDraw.ImageDraw,
    row: Shown,
    corner: tuple[int, int],
    plan: _Plan,
    inks: Sequence[Ink],
    fonts: Fonts,
) -> tuple[Area, ...]:
    """The views, each in a frame of its box's colour, with its number and what is said of it."""
    found = []
    for k, (tile, ink) in enumerate(zip(row.tiles, inks, strict=True)):
        x = corner[0] + (k % plan.columns) * plan.cell[0]
        y = corner[1] + (k // plan.columns) * plan.cell[1]
        view = _zoom(Image.fromarray(tile.pixels), plan.zoom)
        area = Area(x + FRAME, y + FRAME, view.width, view.height)
        frame = (x, y, area.left + area.width + FRAME - 1, area.top + area.height + FRAME - 1)
        pen.rectangle(frame, fill=ink)
        picture.paste(view, (area.left, area.top))
        found.append(area)
        number, below = str(k + 1), frame[3] + 4
        width = math.ceil(fonts[12].getlength(number)) + 7
        pen.rectangle((x, below, x + width - 1, below + 14), fill=ink)
        pen.text((x + width / 2, below + 7.5), number, _PAPER, fonts[12], anchor="mm")
        for line, caption in enumerate(tile.captions[: plan.lines]):
            place = (x + width + 6 if line == 0 else x, below + 7 + 17 * line)
            room = plan.cell[0] - GAP - (place[0] - x)
            pen.text(place, _fit(caption, fonts[12], room), _FAINT, fonts[12], anchor="lm")
    return tuple(found)


def _zoom(view: Image.Image, zoom: float) -> Image.Image:
    if zoom < 1:
        return view.reduce(round(1 / zoom))
    size = (view.width * round(zoom), view.height * round(zoom))
    return view.resize(size, Image.Resampling.NEAREST)


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """The text, or as much of its end and beginning as there is room for; no control characters."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    if font.getlength(text) <= room:
        return text
    for kept in range(len(text) - 1, 0, -1):
        short = f"{text[: kept // 2]}...{text[len(text) - (kept - kept // 2) :]}"
        if font.getlength(short) <= room:
            return short
    return ""
