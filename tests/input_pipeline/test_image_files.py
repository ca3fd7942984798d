import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError
from input_pipeline.crops import CentreView
from input_pipeline.image_files import central_view, read_image


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
    found = read_image(path, channels)
    assert found.shape == (5, 7, channels)
    assert found.dtype == np.uint8


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
    found = central_view(image, CentreView(crop=crop, Q=Q), kernel)
    np.testing.assert_array_equal(found, scaled[top : top + crop, left : left + crop])


def test_a_photograph_of_349_by_500_is_366_wide_at_short_side_256():
    (place,) = CentreView(crop=224, Q=256).places(349, 500)
    assert place.scaled == (256, 366)


def test_a_warped_view_is_of_the_square_whatever_the_aspect():
    image = pixels(60, 90)
    scaled = np.asarray(Image.fromarray(image).resize((32, 32), Image.Resampling.BILINEAR))
    found = central_view(image, CentreView(crop=27, Q=32, warp=True))
    np.testing.assert_array_equal(found, scaled[2:29, 2:29])  # 2.5: to the even one


def test_an_image_of_the_right_size_is_only_cropped():
    image = pixels(32, 40, channels=1)
    found = central_view(image, CentreView(crop=30, Q=32), "opencv_bilinear")
    np.testing.assert_array_equal(found, image[1:31, 5:35])


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    ramp = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png", 1)[..., 0], ramp >> 8)


def test_other_formats_and_absurd_shapes_are_refused(tmp_path):
    (tmp_path / "eps.png").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")
    with pytest.raises(DataError, match=r"eps.png is no image"):
        read_image(tmp_path / "eps.png")
    with pytest.raises(DataError, match="50 times the other"):
        read_image(save(tmp_path / "line.png", pixels(1, 60)))
