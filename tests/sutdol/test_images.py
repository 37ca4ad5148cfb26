"""Untrusted bytes: what is admitted comes out upright and whole, everything else is refused by its header."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from sutdol import cli, images
from sutdol.errors import ImageError, SetupError

ARROW = np.zeros((20, 40, 3), np.uint8)
ARROW[:10, :, 0] = 250
ARROW[:, :10, 1] = 200


def encoded(kind: str, image: PIL.Image.Image | None = None, **options: object) -> bytes:
    buffer = io.BytesIO()
    (image or PIL.Image.fromarray(ARROW)).save(buffer, kind, **options)
    return buffer.getvalue()


def with_orientation(value: int) -> bytes:
    exif = PIL.Image.Exif()
    exif[0x0112] = value
    undo = {
        1: None,
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }[value]
    stored = PIL.Image.fromarray(ARROW)
    if undo is not None:
        stored = stored.transpose(undo)
    return encoded("JPEG", stored, exif=exif, quality=98, subsampling=0)


def bomb_png(side: int) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    body = zlib.compress(bytes(side * (side // 8 + 1)), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_the_four_kinds_become_the_same_pixels(kind: str) -> None:
    """People send what their camera or browser makes."""
    options = {"lossless": True} if kind == "WEBP" else {"quality": 98, "subsampling": 0} if kind == "JPEG" else {}
    image = images.admit(encoded(kind, **options))
    rgb = images.decode(image.data)
    assert rgb.shape == (20, 40, 3)
    assert rgb.dtype == np.uint8
    assert (image.height_px, image.width_px) == (20, 40)
    assert np.abs(rgb.astype(int) - ARROW).max() <= 12


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int) -> None:
    """A phone's photo must look the same to the model, the labeler and the training."""
    image = images.admit(with_orientation(orientation))
    rgb = images.decode(image.data)
    assert rgb.shape == ARROW.shape
    assert (image.height_px, image.width_px) == ARROW.shape[:2]
    assert np.abs(rgb.astype(int) - ARROW).mean() < 3
    assert images.admit(image.data).sample_id == image.sample_id


def test_an_upright_image_keeps_its_bytes() -> None:
    """The same file must always be the same sample."""
    data = encoded("PNG")
    assert images.admit(data).data == data


@pytest.mark.parametrize(
    ("mode", "pixel", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("RGBA", (200, 100, 50, 0), (0, 0, 0)),
        ("RGBA", (200, 100, 50, 255), (200, 100, 50)),
        ("I;16", 65535, (255, 255, 255)),
        ("1", 1, (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_odd_channels_become_rgb(mode: str, pixel: object, expected: tuple[int, int, int]) -> None:
    """Alpha lies over black, 16 bits are scaled, one bit is black and white."""
    data = encoded("PNG", PIL.Image.new(mode, (3, 2), pixel))  # type: ignore[arg-type]
    assert tuple(images.decode(images.admit(data).data)[0, 0]) == expected


def test_one_pixel_is_an_image() -> None:
    """The smallest input is an input."""
    assert images.decode(images.admit(encoded("PNG", PIL.Image.new("RGB", (1, 1)))).data).shape == (1, 1, 3)


def test_a_cmyk_jpeg_is_read() -> None:
    """Print shops send them."""
    assert images.decode(images.admit(encoded("JPEG", PIL.Image.new("CMYK", (8, 8)))).data).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"", 400),
        (b"hello, I am text", 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        (b"\xff\xd8\xff", 400),
        (encoded("JPEG")[:30], 400),
        (encoded("PNG")[:20], 400),
        (bomb_png(30_000), 413),
        (encoded("PNG", PIL.Image.new("1", (16_001, 2))), 413),
    ],
    ids=["empty", "text", "svg", "three bytes", "cut JPEG header", "cut PNG header", "bomb", "too long"],
)
def test_what_is_no_image_is_refused_by_its_header(data: bytes, status: int) -> None:
    """Nothing is decoded before it is known to be small enough."""
    with pytest.raises(ImageError) as error:
        images.admit(data)
    assert error.value.status == status


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_truncated_file_is_an_error_and_no_grey_picture(kind: str, share: float) -> None:
    """A half picture would be logged, labelled and learned from."""
    noise = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8))
    data = encoded(kind, noise)
    with pytest.raises(ImageError):
        images.decode(images.admit(data[: int(len(data) * share)]).data)


def test_a_scaled_decode_still_covers_what_was_asked_for() -> None:
    """Only a half, a quarter and an eighth are fast, and none may be smaller than the model's input."""
    big = encoded("JPEG", PIL.Image.fromarray(np.tile(ARROW, (20, 10, 1))))
    full = images.decode(big)
    assert full.shape == (400, 400, 3)
    assert images.decode(big, cover_hw=(100, 100)).shape == (100, 100, 3)
    assert images.decode(big, cover_hw=(101, 60)).shape == (200, 200, 3)
    assert images.decode(big, cover_hw=(300, 300)).shape == (400, 400, 3)


def test_one_cv2_is_installed() -> None:
    """Two packages own the folder cv2/ and overwrite each other."""
    images.assert_one_cv2()


def test_a_second_owner_of_cv2_stops_a_program_at_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two owners half of cv2's files come from another version, and the crash comes hours later."""
    other = tmp_path / "opencv_python-5.0.0.dist-info"
    other.mkdir()
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: opencv-python\nVersion: 5.0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in (["serve"], ["work", "--queue", "bridge"], ["up"]):
        with pytest.raises(SetupError, match=r"expected exactly one owner, found .*opencv-python 5\.0\.0"):
            cli.app([*command, "--home", str(tmp_path / "home")], result_action="return_value")
    assert not (tmp_path / "home").exists()
