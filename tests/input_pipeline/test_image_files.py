import numpy as np
import pytest
from PIL import Image

from input_pipeline import DataError
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


def test_the_central_view_is_pillow_s_scaled_image_cropped():
    image = pixels(60, 90)
    found = central_view(image, 32, 28, "bicubic")
    scaled = np.asarray(Image.fromarray(image).resize((48, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(found, scaled[2:30, 10:38])
    # torchvision: the long side int(41 * 32 / 30) = 43, the offset int(round(15 / 2)) = 8.
    odd = pixels(30, 41)
    scaled = np.asarray(Image.fromarray(odd).resize((43, 32), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(central_view(odd, 32, 28), scaled[2:30, 8:36])
    assert not np.array_equal(found, central_view(image, 32, 28))


def test_an_image_of_the_right_size_is_only_cropped():
    image = pixels(32, 40, channels=1)
    np.testing.assert_array_equal(central_view(image, 32, 30), image[1:31, 5:35])


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
