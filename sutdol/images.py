"""Untrusted bytes become an image we keep, and an image becomes pixels.

    bytes -> sniff -> header only: size, scans, orientation -> upright bytes = Image -> decode -> (h, w, 3) uint8 RGB

The header is read before anything is decoded, because 34 bytes of WebP can ask for 1.5 GB. What we keep is normalised: EXIF
orientation is applied once, here, so that one set of pixels exists for the model, the labeler and the training. An upright
image keeps its bytes exactly, so the same file always has the same sample id.

Errors: ImageError 400 (empty, not decodable, truncated), 413 (too many pixels, bytes or scans), 415 (a kind we do not read).
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from numpy.typing import NDArray

from sutdol.errors import ImageError, SetupError

MAX_PIXELS = 25_000_000
MAX_SIDE_PX = 16_000
MAX_SCANS = 64
"""Progressive JPEGs with hundreds of scans take minutes to decode; real ones have about ten."""

OPENCV_DISTRIBUTIONS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
KINDS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_ORIENTATION = 0x0112
_REORIENT: dict[
    int, Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
] = {  # EXIF 2.3, tag 274: what has to be done to the stored pixels
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, 3),
    7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}

PIL.Image.MAX_IMAGE_PIXELS = None  # our own limit comes first, and Pillow's is a warning that is not thread-safe

Rgb = NDArray[np.uint8]
"""(h, w, 3), uint8, red first."""


@dataclass(frozen=True)
class Image:
    """A normalised image: upright bytes and what its header says; `sample_id` is the sha256 of the bytes, in hex."""

    data: bytes
    media_type: str
    width_px: int
    height_px: int
    sample_id: str


def admit(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Image:
    """Check untrusted bytes by their header alone and normalise them; pixels are decoded only to turn a rotated image.

    Raises:
        ImageError: see the top of this file.
    """
    if not data:
        raise ImageError("image: expected the bytes of a JPEG, PNG, WebP or GIF, found an empty body")
    kind = _sniff(data)
    if kind == "JPEG" and (scans := data.count(b"\xff\xda")) > MAX_SCANS:
        raise ImageError(f"JPEG: expected at most {MAX_SCANS} scans, found {scans}", status=413)
    with _header(data, kind) as header:
        width, height = header.size
        if width < 1 or height < 1:
            raise ImageError(f"{kind}: expected at least 1 x 1 pixels, found {width} x {height}")
        if width * height > max_pixels or max(width, height) > MAX_SIDE_PX:
            raise ImageError(
                f"{kind}: expected at most {max_pixels / 1e6:g} megapixels and {MAX_SIDE_PX} pixels a side, "
                f"found {width} x {height}",
                hint="scale it down before sending",
                status=413,
            )
        orientation = _orientation(header, kind)
    if kind == "GIF":
        data, kind = _encode(_first_frame(data), lossless=True), "PNG"
    elif orientation in _REORIENT:
        upright = np.ascontiguousarray(_REORIENT[orientation](decode(data)))
        height, width = upright.shape[:2]
        data = _encode(upright, lossless=kind != "JPEG")
        kind = "JPEG" if kind == "JPEG" else "PNG"
    return Image(data, KINDS[kind], width, height, hashlib.sha256(data).hexdigest())


def decode(data: bytes, *, cover_hw: tuple[int, int] | None = None) -> Rgb:
    """Bytes that `admit` has let through become pixels; alpha over black, 16 bits scaled to 8, EXIF ignored.

    Args:
        cover_hw: when a smaller picture will do: a JPEG may come at 1/2, 1/4 or 1/8 of its size, as long as both sides
            still cover (height, width) of this.

    Raises:
        ImageError: truncated or broken.
    """
    if data[:2] == b"\xff\xd8":
        try:
            return _decode_jpeg(data, cover_hw)
        except ValueError as error:
            if "CMYK" not in str(error) and "colorspace" not in str(error):
                raise ImageError("JPEG: truncated or broken") from error
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError("image: truncated or broken")
    return _to_rgb(pixels)


def pixel_key(rgb: Rgb) -> str:
    """sha256 over shape and pixels: two files with the same pixels have the same key."""
    return hashlib.sha256(repr(rgb.shape).encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()


def encode_png(rgb: Rgb) -> bytes:
    """Lossless bytes of an image."""
    return _encode(rgb, lossless=True)


def assert_one_cv2() -> None:
    """Exactly one distribution may own the folder cv2/; two overwrite each other silently.

    Called when a program of ours starts, so it looks the few names up instead of reading every distribution's file list.

    Raises:
        SetupError: none of OpenCV's distributions is installed, or several are.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    owners = []
    for name in OPENCV_DISTRIBUTIONS:
        with suppress(PackageNotFoundError):
            owners.append(f"{name} {distribution(name).version}")
    if len(owners) != 1:
        raise SetupError(
            f"cv2: expected exactly one owner, found {', '.join(owners) or 'none'}",
            hint="run `make setup` again, it installs opencv-python-headless alone",
        )


@contextmanager
def _header(data: bytes, kind: str) -> Iterator[PIL.Image.Image]:
    """The image with its header read and no pixel decoded; what Pillow says of a broken file becomes an ImageError."""
    try:
        with PIL.Image.open(io.BytesIO(data), formats=[kind]) as header:
            yield header
    except (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError) as error:
        raise ImageError(f"{kind}: the header cannot be read, the file is truncated or broken") from error


def _orientation(header: PIL.Image.Image, kind: str) -> int:
    """EXIF orientation, 1 to 8. A PNG is asked only when EXIF came before its pixels: Pillow decodes it all to look behind."""
    if kind == "GIF" or (kind == "PNG" and "exif" not in header.info):
        return 1
    return int(header.getexif().get(_ORIENTATION, 1))


def _sniff(data: bytes) -> str:
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "PNG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "GIF"
    raise ImageError(
        f"image: expected JPEG, PNG, WebP or GIF, found bytes beginning with {data[:8].hex(' ')}", status=415
    )


def _decode_jpeg(data: bytes, cover_hw: tuple[int, int] | None) -> Rgb:
    if cover_hw is not None:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
        for scale in (8, 4, 2):
            scaled = (-(-height // scale), -(-width // scale))
            if scaled[0] >= cover_hw[0] and scaled[1] >= cover_hw[1]:
                return np.asarray(simplejpeg.decode_jpeg(data, "RGB", min_height=scaled[0], min_width=scaled[1]))
    return np.asarray(simplejpeg.decode_jpeg(data, "RGB"))


def _to_rgb(pixels: NDArray[np.generic]) -> Rgb:
    if pixels.dtype == np.uint16:
        pixels = (pixels // 257).astype(np.uint8)
    if pixels.dtype != np.uint8:
        raise ImageError(f"image: expected 8 or 16 bits a channel, found {pixels.dtype}", status=415)
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.shape[2] == 4:
        alpha = pixels[:, :, 3:4].astype(np.uint16)
        pixels = (pixels[:, :, :3].astype(np.uint16) * alpha // 255).astype(np.uint8)
    return np.ascontiguousarray(pixels[:, :, ::-1]).astype(np.uint8, copy=False)


def _first_frame(data: bytes) -> Rgb:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["GIF"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, EOFError, IndexError) as error:
        raise ImageError("GIF: truncated or broken") from error


def _encode(rgb: Rgb, *, lossless: bool) -> bytes:
    if lossless:
        _, encoded = cv2.imencode(".png", np.ascontiguousarray(rgb[:, :, ::-1]))
        return encoded.tobytes()
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=95, colorsubsampling="444"))
