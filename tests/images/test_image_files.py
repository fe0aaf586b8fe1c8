"""Image files as a client handles them: found, read, set upright, named when they are unreadable."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from keras_convnets.errors import UserError
from keras_convnets.images.files import ORIENTATION, encode_png, find_images, read_image, upright


def save(path, size=(4, 3), **arguments):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (200, 30, 40)).save(path, **arguments)
    return str(path)


def test_find_images(tmp_path):
    folder = tmp_path / "pictures"
    inside = [save(folder / name) for name in ("b.png", "a.JPG", "deeper/c.gif", "d.bmp", "e.jpeg")]
    (folder / "notes.txt").write_text("no image")
    (folder / "folder.png").mkdir()
    single = save(tmp_path / "single.png")
    url = "https://example.org/cat.jpg"
    assert find_images([url, str(folder), single]) == [url, *sorted(inside), single]
    # A file that is named outright is taken at its word, whatever its suffix.
    assert find_images([str(folder / "notes.txt")]) == [str(folder / "notes.txt")]


def test_find_images_in_an_empty_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match="holds no images") as caught:
        find_images([str(tmp_path)])
    assert str(tmp_path) in str(caught.value)


def test_find_images_where_nothing_is(tmp_path):
    with pytest.raises(UserError, match="there is no image or folder"):
        find_images([str(tmp_path / "nothing.png")])


def decoded(data):
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def lying_jpeg(orientation, mode="RGB"):
    """A JPEG, 48 wide and 32 high: above red, below blue; EXIF says how it is to be turned."""
    pixels = np.zeros((32, 48, 3), np.uint8)
    pixels[:16, :, 0] = pixels[16:, :, 2] = 255
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def test_a_photograph_on_its_side_is_turned():
    data = lying_jpeg(6)  # EXIF: "the 0th row is the right-hand side of the image"
    assert decoded(data).shape == (32, 48, 3)
    turned = decoded(upright(data))
    assert turned.shape == (48, 32, 3)
    assert tuple(turned[24, 28] > 128) == (True, False, False)  # red on the right
    assert tuple(turned[24, 4] > 128) == (False, False, True)  # blue on the left
    np.testing.assert_array_equal(turned, np.rot90(decoded(data), k=-1))  # and no pixel is lost


@pytest.mark.parametrize(
    "orientation, turn",
    [
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.swapaxes(0, 1)),
        (7, lambda x: x[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_every_orientation_of_exif(orientation, turn):
    data = lying_jpeg(orientation)
    np.testing.assert_array_equal(decoded(upright(data)), turn(decoded(data)))


def test_a_turned_image_is_not_turned_again():
    once = upright(lying_jpeg(6))
    assert upright(once) == once


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_a_photograph_of_another_kind_is_turned_too(mode):
    assert decoded(upright(lying_jpeg(6, mode))).shape == (48, 32, 3)


def test_an_upright_images_bytes_come_back_as_they_are(tmp_path):
    for path in (save(tmp_path / "a.jpg", quality=50), save(tmp_path / "b.png"), save(tmp_path / "c.gif")):
        with open(path, "rb") as file:
            assert read_image(path) == file.read()
    data = lying_jpeg(1)
    assert upright(data) == data


def test_read_image_sets_upright(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(lying_jpeg(6))
    assert decoded(read_image(str(tmp_path / "photo.jpg"))).shape == (48, 32, 3)


def test_encode_png_keeps_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(decoded(encode_png(pixels)), pixels)


@pytest.mark.parametrize(
    "content, sentence",
    [
        (None, "can't be read"),
        (b"", "no known image format"),
        (b"this is text", "no known image format"),
        (lying_jpeg(1)[:400], "is not a readable image"),
        (lying_jpeg(6)[:-200], "is not a readable image"),
    ],
    ids=["missing", "empty", "text", "header only", "truncated"],
)
def test_an_unreadable_image_is_named(tmp_path, content, sentence):
    path = tmp_path / "photo.jpg"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as caught:
        read_image(str(path))
    assert str(path) in str(caught.value)


def test_a_folder_is_no_image(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        read_image(str(tmp_path))
