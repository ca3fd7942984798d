"""Decoding windows and resampling boxes of encoded images, beside Pillow."""

import io

import numpy as np
import pytest
from PIL import Image

from input_pipeline import crops, image_files, jpeg, order
from input_pipeline.crops import (
    AreaView,
    CentreView,
    GridView,
    MultiSquareView,
    ScaleView,
    SquareView,
    TenCropView,
    WholeView,
)
from tests.input_pipeline.encoded_images import encoded


def scene(height, width, seed=0, mode="RGB"):
    """A picture with smooth parts, edges and fine texture, as Pillow image."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
    picture = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    picture = picture.astype(np.int32) + rng.integers(-12, 13, picture.shape)
    top, left = height // 4, width // 3
    picture[top : top + height // 3, left : left + width // 4] = rng.integers(0, 256, 3)
    return Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).convert(mode)


def blocks(height, width):
    """Black and white, and the full colours: squares of four pixels a side."""
    some = np.random.default_rng(0).choice(
        np.array([0, 255], np.uint8), (height // 4, width // 4, 3)
    )
    return Image.fromarray(some).resize((width, height), Image.Resampling.NEAREST)


def decoded(content):
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


JPEGS = {
    "colour, chroma halved": encoded(scene(210, 333), quality=90),
    "colour, chroma whole": encoded(scene(333, 210, 1), quality=90, subsampling="4:4:4"),
    "chroma halved across": encoded(scene(201, 299, 2), quality=75, subsampling="4:2:2"),
    "progressive": encoded(scene(200, 300, 3), progressive=True),
    "grey": encoded(scene(190, 240, 4, "L")),
    "with restarts and optimised": encoded(
        scene(150, 150, 5), optimize=True, restart_marker_rows=2
    ),
    "with EXIF and its own end": encoded(scene(99, 77, 6), exif=b"Exif\x00\x00\xff\xd9" * 9),
}

# ------------------------------------------------------------------------------------ header


@pytest.mark.parametrize("name", JPEGS)
def test_header_is_pillows(name):
    with Image.open(io.BytesIO(JPEGS[name])) as image:
        expected = (image.height, image.width, len(image.getbands()))
    header = jpeg.header(JPEGS[name])
    assert header is not None
    assert (header.height, header.width, header.components) == expected
    assert jpeg.frame(JPEGS[name]) == header


ODD = {
    "PNG": encoded(scene(30, 40), "PNG"),
    "CMYK": encoded(scene(30, 40).convert("CMYK")),
    "cut in the image": JPEGS["colour, chroma halved"][:9000],
    "cut in the header": JPEGS["colour, chroma halved"][:100],
    "cut, with an end in its EXIF": JPEGS["with EXIF and its own end"][:-300],
    "empty": b"",
    "text": b"no image at all" * 100,
    "only a start": b"\xff\xd8\xff",
    "too long for its width": encoded(scene(8, 8 * 51)),
}


@pytest.mark.parametrize("name", ODD)
def test_all_but_plain_and_whole_jpegs_go_the_careful_way(name):
    assert jpeg.header(ODD[name]) is None


def test_header_survives_any_bytes():
    rng = np.random.default_rng(0)
    for content in JPEGS.values():
        for _ in range(300):
            bad = bytearray(content[: rng.integers(2, len(content))])
            for at in rng.integers(0, len(bad), 3):
                bad[at] = rng.integers(256)
            header = jpeg.header(bytes(bad))
            assert header is None or (header.height > 0 and header.components in (1, 3))


# -------------------------------------------------------------------------- window and resampling


@pytest.mark.parametrize("name", JPEGS)
def test_a_decoded_window_equals_the_whole_image_but_for_its_margin(name):
    tf = jpeg.tensorflow()
    content, rng = JPEGS[name], np.random.default_rng(0)
    image, margin = decoded(content), jpeg.CHROMA_MARGIN
    height, width = image.shape[:2]
    for _ in range(20):
        rows, columns = (np.sort(rng.integers(0, size + 1, 2)) for size in (height, width))
        window = (rows[0], columns[0], rows[1] - rows[0] or 1, columns[1] - columns[0] or 1)
        window = (min(rows[0], height - 1), min(columns[0], width - 1), *window[2:])
        part = tf.image.decode_and_crop_jpeg(
            content, window, channels=3, dct_method="INTEGER_ACCURATE"
        ).numpy()
        top, left, h, w = window
        inside = (
            slice(margin if top else 0, h - (margin if top + h < height else 0)),
            slice(margin if left else 0, w - (margin if left + w < width else 0)),
        )
        np.testing.assert_array_equal(part[inside], image[top : top + h, left : left + w][inside])


VIEWS = {
    "VGG": ScaleView(crop=96, S=(100, 300)),
    "AlexNet": SquareView(crop=96, S=110),
    "GoogLeNet": AreaView(crop=96),
}


def reference(image, view, place):
    """What Pillow makes of a placement: scale the whole and cut, or cut and scale."""
    if isinstance(view, AreaView):
        top, left, height, width = map(int, place.box)
        part = image.crop((left, top, left + width, top + height))
        return np.asarray(part.resize(place.size[::-1], Image.Resampling.BILINEAR))
    scaled = np.asarray(image.resize(place.scaled[::-1], Image.Resampling.BILINEAR))
    top, left = place.offset
    if isinstance(view, SquareView):
        top += round((place.scaled[0] - view.S) / 2)
        left += round((place.scaled[1] - view.S) / 2)
    return scaled[top : top + place.size[0], left : left + place.size[1]]


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("paper", VIEWS)
def test_training_views_are_pillows_within_rounding(paper, name):
    tf = jpeg.tensorflow()
    view, content = VIEWS[paper], JPEGS[name]
    image = Image.fromarray(decoded(content))
    for epoch in range(4):
        words = order.words(0, epoch, 0, view.WORDS)
        place = view.place(image.height, image.width, words)
        window = jpeg.window(
            place.box, place.size, image.height, image.width, beyond=view.BEYOND_BOX
        )
        part = tf.image.decode_and_crop_jpeg(
            content, window, channels=3, dct_method="INTEGER_ACCURATE"
        ).numpy()
        box = place.box._replace(top=place.box.top - window.top, left=place.box.left - window.left)
        pixels = jpeg.resample(part, box, place.size, beyond=view.BEYOND_BOX)
        expected = reference(image, view, place)
        assert pixels.shape == expected.shape
        assert pixels.dtype == np.uint8
        off = np.abs(pixels.astype(int) - expected)
        assert off.max() <= 3
        assert off.mean() < 0.5


PILLOWS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("kernel", PILLOWS)
@pytest.mark.parametrize(
    "view",
    [
        CentreView(crop=96, Q=110),
        TenCropView(crop=96, Q=110),
        GridView(crop=96, Q=130),
        MultiSquareView(crop=96, scales=(110, 130)),
        WholeView(Q=120),
    ],
    ids=lambda view: type(view).__name__,
)
def test_test_views_are_parts_of_pillows_scaled_image(view, kernel):
    image = scene(140, 203)
    places = view.places(140, 203)
    for pixels, place in zip(jpeg.views(np.asarray(image), places, kernel), places, strict=True):
        top, left, height, width = place.box
        if place.size[0] < round(height * place.scaled[0] / 140):  # GoogLeNet's whole squares
            box = (left, top, min(left + width, 203), min(top + height, 140))
            expected = np.asarray(image.resize(place.size[::-1], PILLOWS[kernel], box=box))
        else:
            scaled = np.asarray(image.resize(place.scaled[::-1], PILLOWS[kernel]))
            (row, column), (rows, columns) = place.offset, place.size
            expected = scaled[row : row + rows, column : column + columns]
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("S", [100, 700])
def test_a_window_holds_all_that_its_view_is_mixed_of(S, monkeypatch):
    monkeypatch.setattr(jpeg, "CHROMA_MARGIN", 0)  # nothing is decoded here
    image = np.asarray(blocks(404, 612))
    for place in GridView(crop=96, Q=S).places(404, 612)[::3]:
        window = jpeg.window(place.box, place.size, 404, 612, beyond=True)
        top, left, height, width = window
        box = place.box._replace(top=place.box.top - top, left=place.box.left - left)
        part = image[top : top + height, left : left + width]
        off = np.abs(
            jpeg.resample(part, box, place.size).astype(int)
            - jpeg.resample(image, place.box, place.size)
        )
        assert off.max() <= 1
        assert off.mean() < 0.01


def test_an_image_at_its_own_size_is_not_resampled():
    image = np.asarray(scene(64, 80))
    (view,) = jpeg.views(image, CentreView(crop=50, Q=64).places(64, 80))
    np.testing.assert_array_equal(view, image[7:57, 15:65])


@pytest.mark.parametrize(("kernel", "most"), [("bilinear", 1), ("bicubic", 0)])
def test_where_a_kernel_overshoots_pillow_resamples(kernel, most):
    """cykooz.resizer 4.0.1 would be up to 11 levels off with the bicubic kernel."""
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    resampled = jpeg.resample(image, crops.Box(0, 0, 375, 500), (256, 341), kernel=kernel)
    expected = np.asarray(Image.fromarray(image).resize((341, 256), PILLOWS[kernel]))
    assert np.abs(resampled.astype(int) - expected).max() <= most


def test_grey_images_are_resampled_as_their_one_channel():
    image = np.asarray(scene(64, 80, mode="L"))[:, :, None]
    place = CentreView(crop=32, Q=40).places(64, 80)[0]
    grey = jpeg.resample(image, place.box, place.size)
    colour = jpeg.resample(np.repeat(image, 3, axis=2), place.box, place.size)
    assert grey.shape == (32, 32, 1)
    assert np.abs(grey.astype(int) - colour[:, :, :1]).max() <= 1


def test_pillow_reads_what_tensorflow_reads_bit_for_bit():
    tf = jpeg.tensorflow()
    for name, content in JPEGS.items():
        theirs = image_files.read_image(name, 3, content)
        ours = tf.io.decode_jpeg(content, channels=3, dct_method="INTEGER_ACCURATE").numpy()
        np.testing.assert_array_equal(theirs, ours, err_msg=name)
