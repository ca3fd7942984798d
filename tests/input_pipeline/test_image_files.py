import io

import numpy as np
import pytest
from PIL import Image, features

from input_pipeline import DataError
from input_pipeline.crops import CentreView
from input_pipeline.image_files import SUFFIXES, central_view, orientation, read_image


def pixels(height, width, channels=3, seed=0):
    shape = (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "1", "LA"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_kind_of_image_becomes_rgb_or_grey(tmp_path, mode, channels):
    image = Image.fromarray(pixels(5, 7))
    image = image.convert(mode)
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    image.save(path)
    array = read_image(path, channels)
    assert array.shape == (5, 7, channels)
    assert array.dtype == np.uint8


def test_what_is_no_image_is_named(tmp_path):
    text = tmp_path / "notes.jpg"
    text.write_text("not an image")
    cut = save(tmp_path / "cut.png", pixels(40, 40))
    cut.write_bytes(cut.read_bytes()[:300])
    for path in (text, cut, tmp_path / "none.png", tmp_path):
        with pytest.raises(DataError, match=path.name):
            read_image(path)


def test_an_image_of_absurd_size_is_refused(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", pixels(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    with pytest.raises(DataError, match=r"bomb.png is refused"):
        read_image(path)


# Sizes of photographs: among them those whose scaled long side lies between whole pixels, and
# those whose central crop does.
PHOTOGRAPHS = [(349, 500), (500, 349), (375, 500), (333, 500), (96, 97), (41, 30), (30, 41)]


@pytest.mark.parametrize("size", PHOTOGRAPHS)
@pytest.mark.parametrize(("Q", "crop"), [(64, 56), (75, 56), (32, 28)])
@pytest.mark.parametrize("kernel", ["bilinear", "bicubic"])
def test_the_central_view_is_torchvision_s(size, Q, crop, kernel):
    image = pixels(*size)
    short, long = sorted(size)
    # torchvision/transforms/functional.py, `_compute_resized_output_size` and `center_crop`.
    new = int(Q * long / short)
    height, width = (Q, new) if size[0] <= size[1] else (new, Q)
    resample = getattr(Image.Resampling, kernel.upper())
    scaled = np.asarray(Image.fromarray(image).resize((width, height), resample))
    top = int(round((height - crop) / 2.0))  # noqa: RUF046
    left = int(round((width - crop) / 2.0))  # noqa: RUF046
    view = central_view(image, CentreView(crop=crop, Q=Q), kernel)
    np.testing.assert_array_equal(view, scaled[top : top + crop, left : left + crop])


def test_a_photograph_of_349_by_500_is_366_wide_at_short_side_256():
    (place,) = CentreView(crop=224, Q=256).places(349, 500)
    assert place.scaled == (256, 366)


def test_a_warped_view_is_of_the_square_whatever_the_aspect():
    image = pixels(60, 90)
    scaled = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    view = central_view(image, CentreView(crop=27, Q=32, warp=True))
    np.testing.assert_array_equal(view, scaled[2:29, 2:29])  # 2.5: to the even one


def test_an_image_of_the_right_size_is_only_cropped():
    image = pixels(32, 40, channels=1)
    view = central_view(image, CentreView(crop=30, Q=32), "opencv_bilinear")
    np.testing.assert_array_equal(view, image[1:31, 5:35])


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    ramp = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", 1)[..., 0], ramp >> 8)


@pytest.mark.parametrize("maxval", [4095, 65535, 1023])
def test_a_deep_pgm_is_brought_to_eight_bits_by_its_maxval(tmp_path, maxval):
    levels = np.linspace(0, maxval, 4096).astype(">u2").reshape(64, 64)
    path = tmp_path / "deep.pgm"
    path.write_bytes(b"P5 64 64 %d\n" % maxval + levels.tobytes())
    eight_bits = read_image(path)[..., 0].astype(float)
    # The upper eight bits of 16, as of a PNG: rounded down.
    exact = levels.astype(float) * 65535 / maxval / 256
    assert (eight_bits.min(), eight_bits.max()) == (0, 255)
    assert np.all((exact - eight_bits >= -0.01) & (exact - eight_bits < 1.01))
    if maxval == 4095:
        np.testing.assert_array_equal(eight_bits, levels >> 4)
    plain = " ".join(map(str, levels.ravel()))
    path.write_text(f"P2 64 64 {maxval}\n{plain}\n")
    np.testing.assert_array_equal(read_image(path)[..., 0], eight_bits)


# What EXIF's table says of the stored rows and columns, undone: from what is seen to what is
# stored.
STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.transpose(1, 0, 2),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: image[::-1, ::-1].transpose(1, 0, 2),
    8: lambda image: np.rot90(image, -1),
}


def stored(image, orientation, kind, **options):
    """An encoded image that states how it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    pillow = Image.fromarray(np.ascontiguousarray(STORED[orientation](image)))
    pillow.save(content, kind, exif=exif, **options)
    return content.getvalue()


@pytest.mark.parametrize("number", STORED)
def test_an_image_is_turned_as_its_exif_says_if_that_is_asked_for(number):
    image = pixels(30, 41)
    content = stored(image, number, "PNG")
    assert orientation(content) == number
    np.testing.assert_array_equal(read_image("x", 3, content, exif=True), image)
    np.testing.assert_array_equal(read_image("x", 3, content), STORED[number](image))
    webp = stored(image, number, "WEBP", lossless=True)
    assert orientation(webp) == number
    np.testing.assert_array_equal(read_image("x", 3, webp, exif=True), image)
    jpeg = stored(image, number, "JPEG")
    assert orientation(jpeg) == number
    np.testing.assert_array_equal(
        STORED[number](read_image("x", 3, jpeg, exif=True)), read_image("x", 3, jpeg)
    )


def test_an_orientation_behind_a_png_s_pixels_counts_and_a_tiff_s_is_pillow_s():
    image = pixels(30, 41)
    content = stored(image, 6, "PNG")
    at = content.index(b"eXIf") - 4
    stop = at + 12 + int.from_bytes(content[at : at + 4])
    late = content[:at] + content[stop:-12] + content[at:stop] + content[-12:]
    assert orientation(late) == 6
    np.testing.assert_array_equal(read_image("x", 3, late, exif=True), image)
    tiff = stored(image, 6, "TIFF")
    assert orientation(tiff) == 1
    for exif in (False, True):
        np.testing.assert_array_equal(read_image("x", 3, tiff, exif=exif), image)
    for content in (b"", b"Exif", stored(image, 1, "JPEG")[:30] + b"Exif"):
        assert orientation(content) == 1


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_avif_is_read(tmp_path):
    flat = np.full((32, 48, 3), (200, 60, 20), np.uint8)
    image = read_image(save(tmp_path / "a.avif", flat))
    assert image.shape == flat.shape
    assert np.abs(image.astype(int) - flat).max() < 8
    assert {".avif", ".jfif", ".jpe"} < set(SUFFIXES)


def test_other_formats_and_absurd_shapes_are_refused(tmp_path):
    (tmp_path / "eps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(DataError, match=r"eps.png is no image"):
        read_image(tmp_path / "eps.png")
    with pytest.raises(DataError, match="50 times the other"):
        read_image(save(tmp_path / "line.png", pixels(1, 60)))
