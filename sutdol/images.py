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
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import PIL.Image
import simplejpeg
from numpy.typing import NDArray

from sutdol import headers
from sutdol.errors import ImageError, SetupError

MAX_PIXELS = 25_000_000
MAX_SIDE_PX = 16_000
MAX_DECODE_BYTES = 200_000_000
"""Memory that one image may take while it is decoded; 25 megapixels fit, but for the hungriest kinds (16 bits, animations)."""
_STRIP_ROWS = 64
"""Rows that are converted at a time, so that an image never lies in memory three times."""

OPENCV_DISTRIBUTIONS = (
    "opencv-python-headless",
    "opencv-python",
    "opencv-contrib-python-headless",
    "opencv-contrib-python",
)
KINDS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
_REORIENT: dict[
    int, Callable[[NDArray[np.uint8]], Any]
] = {  # EXIF 2.3, tag 274: what has to be done to the stored pixels
    2: lambda a: cv2.flip(a, 1),
    3: lambda a: cv2.rotate(a, cv2.ROTATE_180),
    4: lambda a: cv2.flip(a, 0),
    5: cv2.transpose,
    6: lambda a: cv2.rotate(a, cv2.ROTATE_90_CLOCKWISE),
    7: lambda a: cv2.rotate(cv2.transpose(a), cv2.ROTATE_180),
    8: lambda a: cv2.rotate(a, cv2.ROTATE_90_COUNTERCLOCKWISE),
}

PIL.Image.MAX_IMAGE_PIXELS = None  # our own limit comes first, and Pillow's is a warning that is not thread-safe

_BROKEN = (OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, OverflowError, EOFError, zlib.error)
"""What Pillow raises for files that are truncated or broken."""
_FOR_OPENCV = ("CMYK", "colorspace", "ICC", "subsampling")
"""What simplejpeg says of JPEGs that are in order but not for it."""

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
    header = headers.read(data, kind)
    width, height = header.width_px, header.height_px
    if width < 1 or height < 1:
        raise ImageError(f"{kind}: expected at least 1 x 1 pixels, found {width} x {height}")
    if width * height > max_pixels or max(width, height) > MAX_SIDE_PX:
        raise ImageError(
            f"{kind}: expected at most {max_pixels / 1e6:g} megapixels and {MAX_SIDE_PX} pixels a side, "
            f"found {width} x {height}",
            hint="scale it down before sending",
            status=413,
        )
    if header.decode_bytes > MAX_DECODE_BYTES:
        raise ImageError(
            f"{kind}: decoding it takes {header.decode_bytes / 1e6:.0f} MB of memory, the limit is "
            f"{MAX_DECODE_BYTES / 1e6:.0f}, found {width} x {height}",
            hint="scale it down, or save it with 8 bits a channel, not progressive, not animated",
            status=413,
        )
    if kind == "GIF":
        data, kind = _encode(_first_frame(data), lossless=True), "PNG"
    elif header.orientation in _REORIENT:
        upright = np.asarray(_REORIENT[header.orientation](decode(data)), np.uint8)
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
            if not any(word in str(error) for word in _FOR_OPENCV):
                raise ImageError("JPEG: truncated or broken") from error
    elif data[:4] == b"\x89PNG":
        return _decode_png(data)
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        raise ImageError("image: truncated or broken")
    if pixels.dtype != np.uint8:
        raise ImageError(f"image: expected 8 bits a channel, found {pixels.dtype}", status=415)
    return _to_rgb(pixels)  # type: ignore[arg-type]


def jpeg_size_hw(data: bytes) -> tuple[int, int] | None:
    """Height and width of a JPEG; None for everything else, and for a broken one."""
    if data[:2] != b"\xff\xd8":
        return None
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return height, width


def pixel_key(rgb: Rgb) -> str:
    """sha256 over shape and pixels: two files with the same pixels have the same key."""
    return hashlib.sha256(repr(rgb.shape).encode() + np.ascontiguousarray(rgb).tobytes()).hexdigest()


def encode_jpeg(rgb: Rgb, *, quality: int = 95) -> bytes:
    """A JPEG with full colour resolution; for frames and pictures that we make ourselves."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=quality, colorsubsampling="444"))


def shrink(data: bytes, side_px: int) -> bytes:
    """A JPEG of an admitted image whose longer side is at most `side_px`; for people who look at many at once.

    Raises:
        ImageError: truncated or broken.
    """
    size = jpeg_size_hw(data)
    cover = None if size is None else tuple(max(1, side * side_px // max(size)) for side in size)
    rgb = decode(data, cover_hw=cover)  # type: ignore[arg-type]
    height, width = rgb.shape[:2]
    factor = side_px / max(height, width)
    if factor < 1:
        size_wh = (max(1, round(width * factor)), max(1, round(height * factor)))
        rgb = np.asarray(cv2.resize(rgb, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
    return encode_jpeg(rgb, quality=85)


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


def _decode_png(data: bytes) -> Rgb:
    """By Pillow: it stops where the picture ends, while others go on inflating for as long as the file says.

    It leaves rows black for which there is no data, so a picture that could be such a one is looked at again.
    """
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            image.load()
            last_row = image.crop((0, image.height - 1, image.width, image.height))
            doubtful = image.info.get("interlace", 0) or not np.asarray(last_row).any()
            if doubtful and not headers.png_is_whole(data):
                raise ImageError("PNG: truncated or broken")
            return _pillow_rgb(image)
    except _BROKEN as error:
        raise ImageError("PNG: truncated or broken") from error


def _first_frame(data: bytes) -> Rgb:
    try:
        with PIL.Image.open(io.BytesIO(data), formats=["GIF"]) as image:
            return _pillow_rgb(image)
    except _BROKEN as error:
        raise ImageError("GIF: truncated or broken") from error


def _pillow_rgb(image: PIL.Image.Image) -> Rgb:
    """Strip by strip; what is transparent lies over black."""
    image.load()  # the first frame
    rgb = np.empty((image.height, image.width, 3), np.uint8)
    clear = "transparency" in image.info
    for top in range(0, image.height, _STRIP_ROWS):
        strip = image.crop((0, top, image.width, min(top + _STRIP_ROWS, image.height)))
        out = rgb[top : top + strip.height]
        if image.mode.startswith("I"):  # 16 bits of grey
            out[:] = (np.asarray(strip) // 257).astype(np.uint8)[:, :, None]
        elif clear or image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
            _over_black(np.asarray(strip if image.mode == "RGBA" and not clear else strip.convert("RGBA")), out)
        else:
            out[:] = np.asarray(strip if image.mode == "RGB" else strip.convert("RGB"))
    return rgb


def _to_rgb(pixels: NDArray[np.uint8]) -> Rgb:
    """OpenCV's picture, blue first, turned in place where that is possible."""
    if pixels.ndim == 2:
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.shape[2] == 3:
        return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), np.uint8)
    rgb = np.empty((*pixels.shape[:2], 3), np.uint8)
    for top in range(0, len(pixels), _STRIP_ROWS):
        strip = pixels[top : top + _STRIP_ROWS]
        _over_black(np.asarray(cv2.cvtColor(strip, cv2.COLOR_BGRA2RGBA)), rgb[top : top + len(strip)])
    return rgb


def _over_black(rgba: NDArray[np.uint8], out: Rgb) -> None:
    """(h, w, 4) becomes (h, w, 3): every channel times alpha, rounded."""
    alpha = rgba[:, :, 3]
    if alpha.min(initial=255) == 255:
        out[:] = rgba[:, :, :3]
    else:
        colours = np.ascontiguousarray(rgba[:, :, :3])
        out[:] = cv2.multiply(colours, cv2.merge([alpha, alpha, alpha]), scale=1 / 255)


def _encode(rgb: Rgb, *, lossless: bool) -> bytes:
    if lossless:
        _, encoded = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        return encoded.tobytes()
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), quality=95, colorsubsampling="444"))
