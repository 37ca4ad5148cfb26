"""What the headers of untrusted image files say, read without decoding a pixel and without a library that guesses.

    bytes of a known kind -> walk of its segments or chunks -> Header(size, orientation, memory that decoding takes)

Each reader looks at lengths before it follows them, visits a bounded number of parts, and ignores rubbish in metadata: a
photo with broken EXIF is a photo, held upright. What is wrong with the picture itself is an error here or in the decoder.

Errors: ImageError 400 (broken), 413 (too many scans or chunks).
"""

from __future__ import annotations

import re
import struct
import zlib
from dataclasses import dataclass

import numpy as np

from sutdol.errors import ImageError

MAX_SCANS = 64
"""Progressive JPEGs with hundreds of scans take minutes to decode; real ones have about ten."""
MAX_CHUNKS = 20_000
"""Parts of a PNG or WebP; a PNG of 20 MB in usual chunks of 8 kB has 2500."""
_ORIENTATION = 0x0112
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
_ALONE = frozenset({0x01, *range(0xD0, 0xD8)})
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]", re.DOTALL)
_ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)]
"""PNG: left, top, and steps right and down of the seven passes of an interlaced picture."""
_BIT_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""PNG: allowed bits a channel for each colour type."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a file says of itself.

    Attributes:
        orientation: EXIF's, 1 to 8; 1 is upright and stands for everything that makes no sense.
        decode_bytes: the most memory that decoding it takes, the (h, w, 3) picture included.
    """

    width_px: int
    height_px: int
    orientation: int
    decode_bytes: int


def read(data: bytes, kind: str) -> Header:
    """The header of a file whose first bytes are those of `kind`: JPEG, PNG, WEBP or GIF.

    Raises:
        ImageError: it cannot be read.
    """
    try:
        return {"JPEG": _jpeg, "PNG": _png, "WEBP": _webp, "GIF": _gif}[kind](data)
    except (struct.error, IndexError) as error:
        raise ImageError(f"{kind}: the header cannot be read, the file is truncated or broken") from error


def exif_orientation(tiff: bytes) -> int:
    """The orientation tag in the first directory of EXIF data, from its byte order mark on; 1 when there is none."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        start = struct.unpack_from(f"{order}I", tiff, 4)[0]
        for i in range(struct.unpack_from(f"{order}H", tiff, start)[0]):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", tiff, start + 2 + 12 * i)
            if tag == _ORIENTATION:
                return value if kind == 3 and count >= 1 and 1 <= value <= 8 else 1
    except struct.error:
        return 1
    return 1


def _jpeg(data: bytes) -> Header:
    if _at_most_scans(data) > MAX_SCANS and (scans := _scans(data)) > MAX_SCANS:
        raise ImageError(f"JPEG: expected at most {MAX_SCANS} scans, found {scans}", status=413)
    at, orientation, frame = 2, 1, b""
    progressive = False
    while True:
        if data[at] != 0xFF:
            raise ImageError("JPEG: the header cannot be read, the file is truncated or broken")
        marker = data[at + 1]
        if marker == 0xFF or marker in _ALONE:
            at += 1 if marker == 0xFF else 2
            continue
        if marker in (0xDA, 0xD9):
            break
        length = struct.unpack_from(">H", data, at + 2)[0]
        if marker in _FRAMES and not frame:
            frame, progressive = data[at + 4 : at + 2 + length], marker in _PROGRESSIVE
        elif marker == 0xE1 and orientation == 1 and data[at + 4 : at + 10] == b"Exif\0\0":
            orientation = exif_orientation(data[at + 10 : at + 2 + length])
        at += 2 + max(length, 2)
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise ImageError("JPEG: expected a frame before the first scan, found none")
    height, width, channels = struct.unpack_from(">HHB", frame, 1)
    factors = [(frame[7 + 3 * i] >> 4, frame[7 + 3 * i] & 15) for i in range(channels)]
    pixels = width * height
    taken = pixels * (3 if channels < 4 else 7)
    if progressive and factors:
        largest = max(max(h * v for h, v in factors), 1)
        taken += sum(2 * pixels * h * v // largest for h, v in factors)  # all coefficients wait for the last scan
    return Header(width, height, orientation, taken)


def _at_most_scans(data: bytes) -> int:
    """How often 0xFFDA occurs; `bytes.count` takes six times as long, and every photo pays for it."""
    codes = np.frombuffer(data, np.uint8)
    return int(np.count_nonzero(codes[:-1][codes[1:] == 0xDA] == 0xFF))


def _scans(data: bytes) -> int:
    """Scans up to the end marker; 0xFFDA also occurs in comments, and in what some cameras append."""
    at, scans, end = 2, 0, len(data) - 3
    while at < end:
        found = _MARKER.search(data, at)
        if found is None or found.start() >= end or data[found.start() + 1] == 0xD9:
            break
        at = found.start()
        scans += data[at + 1] == 0xDA
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return scans


def _png(data: bytes) -> Header:
    if data[12:16] != b"IHDR":
        raise ImageError("PNG: the header cannot be read, the file is truncated or broken")
    width, height, depth, colour = struct.unpack_from(">IIBB", data, 16)
    if depth not in _BIT_DEPTHS.get(colour, ()):
        raise ImageError(f"PNG: there is no colour type {colour} with {depth} bits")
    at, orientation, found = 8, 1, set()
    for _ in range(MAX_CHUNKS):
        if at + 12 > len(data):
            break
        size, name = struct.unpack_from(">I4s", data, at)
        if at + 12 + size > len(data):
            raise ImageError("PNG: truncated")
        if name in (b"IHDR", b"IDAT", b"PLTE"):
            if zlib.crc32(memoryview(data)[at + 4 : at + 8 + size]) != struct.unpack_from(">I", data, at + 8 + size)[0]:
                raise ImageError(f"PNG: a chunk {name.decode()} is broken, its checksum is another")
            found.add(name)
        elif name == b"eXIf":
            orientation = exif_orientation(data[at + 8 : at + 8 + size])
        elif name == b"IEND":
            break
        at += 12 + size
    else:
        raise ImageError(f"PNG: expected at most {MAX_CHUNKS} chunks", status=413)
    if b"IDAT" not in found or (colour == 3 and b"PLTE" not in found):
        raise ImageError("PNG: it holds no picture, the file is truncated or broken")
    # Pillow keeps 1 or 2 bytes a grey pixel and 4 of any other; the picture comes on top.
    kept = (2 if depth == 16 else 1) if colour in (0, 3) else 4
    return Header(width, height, orientation, width * height * (kept + 3))


def png_is_whole(data: bytes) -> bool:
    """Whether the compressed pixels of a PNG that `read` let through are as many as its header says; inflates no more."""
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    bits = depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    passes = _ADAM7 if interlaced else [(0, 0, 1, 1)]
    missing = 0
    for left, top, step_x, step_y in passes:
        wide, high = -(-(width - left) // step_x), -(-(height - top) // step_y)
        if wide > 0 and high > 0:
            missing += high * (1 + (wide * bits + 7) // 8)
    inflater, at = zlib.decompressobj(), 8
    while missing > 0 and at + 12 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        part = data[at + 8 : at + 8 + size] if name == b"IDAT" else b""
        while part and missing > 0:
            try:
                missing -= len(inflater.decompress(part, min(missing, 1 << 20)))
            except zlib.error:
                return False
            part = inflater.unconsumed_tail
        at += 12 + size
    return missing <= 0


def _webp(data: bytes) -> Header:
    at, orientation, animated = 12, 1, False
    size: tuple[int, int] | None = None
    for _ in range(MAX_CHUNKS):
        if at + 8 > len(data):
            break
        name, length = struct.unpack_from("<4sI", data, at)
        body = at + 8
        if name == b"VP8X" and size is None:
            animated = bool(data[body] & 2)
            size = tuple(1 + int.from_bytes(data[body + i : body + i + 3], "little") for i in (4, 7))  # type: ignore[assignment]
        elif name == b"VP8L" and size is None:
            bits = struct.unpack_from("<I", data, body + 1)[0]
            size = ((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
        elif name == b"VP8 " and size is None:
            width, height = struct.unpack_from("<HH", data, body + 6)
            size = (width & 0x3FFF, height & 0x3FFF)
        elif name == b"EXIF":
            exif = data[body : body + length]
            orientation = exif_orientation(exif.removeprefix(b"Exif\0\0"))
        at = body + length + (length & 1)
    else:
        raise ImageError(f"WEBP: expected at most {MAX_CHUNKS} chunks", status=413)
    if size is None:
        raise ImageError("WEBP: the header cannot be read, the file is truncated or broken")
    return Header(*size, orientation, size[0] * size[1] * (16 if animated else 7))  # two canvases of an animation


def _gif(data: bytes) -> Header:
    """The first frame counts too: it may reach beyond the screen that the file promises, and readers make room for it."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at = 13 + _colours(flags)
    for _ in range(MAX_CHUNKS):
        if data[at] == 0x2C:
            left, top, wide, high = struct.unpack_from("<HHHH", data, at + 1)
            width, height = max(width, left + wide), max(height, top + high)
            return Header(width, height, 1, width * height * 5)
        if data[at] != 0x21:
            raise ImageError("GIF: it holds no picture, the file is truncated or broken")
        at += 2
        while length := data[at]:
            at += 1 + length
        at += 1
    raise ImageError(f"GIF: expected at most {MAX_CHUNKS} extensions before the picture", status=413)


def _colours(flags: int) -> int:
    """Bytes of a colour table."""
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0
