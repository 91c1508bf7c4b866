"""Images in and out: exactness, transparency, sizes, and images that cannot be read."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from processing_unified import UnifiedImageProcessor


@pytest.fixture
def processor():
    return UnifiedImageProcessor(size={"height": 16, "width": 24}, stride=8)


@pytest.fixture
def image(make_image):
    return make_image(height=16, width=24)


def test_an_image_of_the_right_size_comes_back_bit_by_bit(processor, image):
    pixel_values = processor(image, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape == (1, 3, 16, 24) and pixel_values.dtype == torch.float32
    assert pixel_values.min() >= -1 and pixel_values.max() <= 1 and pixel_values.min() < -0.9
    for pixels in (pixel_values, list(pixel_values), [list(pixel_values)]):
        (back,) = processor.postprocess(pixels)
        np.testing.assert_array_equal(np.asarray(back), np.asarray(image))


def test_other_sizes_are_resampled(processor, make_image):
    image = make_image(height=40, width=30)
    (back,) = processor.postprocess(processor(image, return_tensors="pt")["pixel_values"])
    np.testing.assert_array_equal(np.asarray(back), np.asarray(image.resize((24, 16), Image.Resampling.BICUBIC)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(processor, mode):
    image = Image.new("RGBA", (24, 16), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 10, 10, 255))
    (back,) = processor.postprocess(processor(image.convert(mode), return_tensors="pt")["pixel_values"])
    assert back.getpixel((5, 5)) == (255, 255, 255)
    assert max(back.getpixel((0, 0))) < 60


def test_every_kind_of_source_gives_the_same(processor, image, tmp_path):
    path = tmp_path / "image.png"
    image.save(path)
    array = np.asarray(image)
    sources = [
        image,
        array,
        array.transpose(2, 0, 1),
        torch.from_numpy(array.copy()),
        str(path),
        path,
        base64.b64encode(path.read_bytes()).decode(),
    ]
    pixel_values = processor(sources, return_tensors="pt")["pixel_values"]
    assert (pixel_values == pixel_values[0]).all()


def test_postprocess_cuts_to_the_range(processor):
    (back,) = processor.postprocess(torch.tensor([-1.5, 1.5, 0.0])[:, None, None].expand(3, 16, 24))
    assert back.getpixel((0, 0)) == (0, 255, 128)


def test_a_size_the_stride_does_not_divide_is_refused(processor, image):
    with pytest.raises(ValueError, match="image 0 would be 16x20.*stride of 8"):
        processor(image, size={"height": 16, "width": 20})


def test_images_of_different_sizes_are_refused_without_resizing(processor, make_image):
    with pytest.raises(ValueError, match="image 1 is 16x16, image 0 is 8x8"):
        processor([make_image(height=8, width=8), make_image(height=16, width=16)], do_resize=False)


def broken_png(keep: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()[:keep]


@pytest.mark.parametrize("content", [broken_png(500), b"this is no image", b""], ids=["truncated", "text", "empty"])
def test_a_broken_file_is_named(processor, image, tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"image 1 \(.*broken.png\) cannot be read"):
        processor([image, str(path)])


def test_a_truncated_image_that_pillow_has_opened_is_named(processor, image, tmp_path):
    path = tmp_path / "broken.png"
    path.write_bytes(broken_png(500))
    with Image.open(path) as lazy, pytest.raises(ValueError, match=r"image 2 \(.*broken.png\) cannot be read"):
        processor([[image, image], [lazy]])


@pytest.mark.parametrize(
    "source, message",
    [
        ("nowhere.png", r"image 0 \(nowhere.png\) cannot be read: no such file"),
        (Image.new("RGB", (0, 5)), r"image 0 cannot be read: it is empty \(5x0\)"),
        (np.zeros((4, 4, 3), np.float32), "image 0 is an array of float32"),
        (np.zeros((8, 8, 5), np.uint8), r"image 0 is an array of shape \[8, 8, 5\]"),
        (np.zeros((0, 8, 3), np.uint8), r"image 0 is an array of shape \[0, 8, 3\]"),
        (Image.new("I;16", (8, 8)), "more than 8 bits"),
        (17, "int is not an image"),
    ],
)
def test_what_is_no_image_is_refused(processor, source, message):
    with pytest.raises(ValueError, match=message):
        processor([source])


def test_no_images_are_refused(processor):
    with pytest.raises(ValueError, match="no images"):
        processor([])


@pytest.mark.parametrize("shape", [(4, 16, 24), (16, 24)])
def test_pixels_of_a_wrong_shape_are_refused(processor, shape):
    with pytest.raises(ValueError, match="pixels have the shape"):
        processor.postprocess(torch.zeros(shape))
