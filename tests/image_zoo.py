"""A zoo of odd and hostile images, made here from nothing: what cameras, editors, phones and attackers send.

    zoo() -> {name: Animal(data, statuses, upright)}

`statuses` are those that the server may answer with: 200 for what must be read, 4xx for what must be refused, several where
readers honestly disagree. `upright` animals show the quarters of SCENE: red at the top left, green at the top right, blue at
the bottom left, black at the bottom right, whatever their file says about turning. Nothing here is large: bombs are only
large once they are decoded. `giants()` are the largest that must still be read.

Longer than the ceiling because it is a list: one animal after the other, none of which another needs.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
import PIL.Image
import simplejpeg

WIDTH, HEIGHT = 48, 32
SCENE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
SCENE[: HEIGHT // 2, : WIDTH // 2, 0] = 220
SCENE[: HEIGHT // 2, WIDTH // 2 :, 1] = 220
SCENE[HEIGHT // 2 :, : WIDTH // 2, 2] = 220
READ, BROKEN, LARGE, KIND = (200,), (400,), (413,), (415,)
ORIENTATION = 0x0112


@dataclass(frozen=True)
class Animal:
    """One file, and what may become of it."""

    data: bytes
    statuses: tuple[int, ...]
    upright: bool = False


def zoo() -> dict[str, Animal]:
    """All of them by name."""
    found: dict[str, Animal] = {}
    for family in (_jpegs, _broken_jpegs, _pngs, _broken_pngs, _webps, _gifs, _other_kinds, _cut, _bombs):
        for name, animal in family().items():
            assert name not in found, name
            found[name] = animal
    return found


def giants() -> dict[str, bytes]:
    """Images close to 25 megapixels in every kind; smooth, so that their files are small."""
    height, width = 4000, 6000
    ramp = np.linspace(0, 255, width, dtype=np.uint8)
    rgb = np.stack([np.broadcast_to(np.roll(ramp, k * 999), (height, width)) for k in range(3)], axis=2)
    rgb = np.ascontiguousarray(rgb)
    picture = PIL.Image.fromarray(rgb)
    rgba = np.dstack([rgb, np.full((height, width), 128, np.uint8)])
    turned = PIL.Image.Exif()
    turned[ORIENTATION] = 6
    return {
        "jpeg": simplejpeg.encode_jpeg(rgb, quality=85),
        "jpeg turned": _saved(picture, "JPEG", exif=turned),
        "jpeg progressive": _saved(picture, "JPEG", progressive=True),
        "jpeg cmyk": _saved(picture.convert("CMYK").resize((4000, 3000)), "JPEG"),
        "png": _cv2(rgb, ".png"),
        "png alpha": _cv2(rgba, ".png"),
        "png 16 bit": _cv2(np.ascontiguousarray(rgb[:, :, 0]).astype(np.uint16) * 257, ".png"),
        "png 16 bit rgb": _cv2(rgb[:2700, :5800].astype(np.uint16) * 257, ".png"),
        "png turned": _with_exif_in_png(_cv2(rgb, ".png"), 6, before=True),
        "webp": _saved(picture, "WEBP", quality=50, method=0),
        "gif": _saved(picture.quantize(32, method=PIL.Image.Quantize.FASTOCTREE), "GIF"),
    }


def _saved(image: PIL.Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _cv2(pixels: np.ndarray, extension: str) -> bytes:
    """Red first here, blue first there."""
    if pixels.ndim == 3:
        pixels = np.ascontiguousarray(pixels[:, :, [2, 1, 0, 3][: pixels.shape[2]]])
    encoded = cv2.imencode(extension, pixels)[1]
    return bytes(encoded.tobytes())


def _scene(mode: str = "RGB") -> PIL.Image.Image:
    return PIL.Image.fromarray(SCENE).convert(mode)


def _jpeg(**options: object) -> bytes:
    return _saved(_scene(), "JPEG", **({"quality": 95, "subsampling": 0} | options))


def _stored(orientation: int) -> PIL.Image.Image:
    """The scene as a camera held that way stores it."""
    undo = {
        2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
        3: PIL.Image.Transpose.ROTATE_180,
        4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
        5: PIL.Image.Transpose.TRANSPOSE,
        6: PIL.Image.Transpose.ROTATE_90,
        7: PIL.Image.Transpose.TRANSVERSE,
        8: PIL.Image.Transpose.ROTATE_270,
    }
    return _scene().transpose(undo[orientation]) if orientation in undo else _scene()


def _exif(orientation: object) -> PIL.Image.Exif:
    exif = PIL.Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def _segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def _after_soi(data: bytes, extra: bytes) -> bytes:
    return data[:2] + extra + data[2:]


def _raw_exif(body: bytes) -> bytes:
    return _segment(0xE1, b"Exif\0\0" + body)


def _ifd(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Big-endian TIFF with one directory of (tag, type, count, 4 bytes)."""
    body = b"".join(struct.pack(">HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"MM\0*" + struct.pack(">I", 8) + struct.pack(">H", len(entries)) + body + struct.pack(">I", 0)


def _jpegs() -> dict[str, Animal]:
    plain = _jpeg()
    endless = _ifd((ORIENTATION, 3, 1, b"\0\1\0\0"))[:-4] + struct.pack(">I", 8)
    xmp = b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"
    odd = {
        "jpeg": plain,
        "jpeg 4:2:2": _jpeg(subsampling=1),
        "jpeg 4:2:0": _jpeg(subsampling=2),
        "jpeg progressive": _jpeg(progressive=True),
        "jpeg optimised": _jpeg(optimize=True),
        "jpeg restart markers": _jpeg(restart_marker_blocks=1),
        "jpeg with an ICC profile": _jpeg(icc_profile=bytes(3000)),
        "jpeg with a broken ICC profile": _after_soi(plain, _segment(0xE2, b"ICC_PROFILE\0\x01\x09" + b"x" * 20)),
        "jpeg with a comment": _jpeg(comment=b"<script>alert(1)</script>"),
        "jpeg with scan markers in a comment": _after_soi(plain, _segment(0xFE, b"\xff\xda" * 200)),
        "jpeg with scan markers behind its end": plain + b"\xff\xda" * 5000,
        "jpeg and zip": plain + b"PK\x03\x04" + bytes(30) + b"PK\x05\x06" + bytes(18),
        "jpeg and page": plain + b"<html><script>alert(1)</script></html>",
        "jpeg with XMP": _after_soi(plain, _segment(0xE1, xmp)),
        "jpeg with padding between markers": _after_soi(plain, b"\xff" * 50),
        "jpeg exif empty": _after_soi(plain, _raw_exif(b"")),
        "jpeg exif rubbish": _after_soi(plain, _raw_exif(b"\x93" * 40)),
        "jpeg exif 0": _after_soi(plain, _raw_exif(_ifd((ORIENTATION, 3, 1, b"\0\0\0\0")))),
        "jpeg exif 9": _after_soi(plain, _raw_exif(_ifd((ORIENTATION, 3, 1, b"\0\x09\0\0")))),
        "jpeg exif text": _after_soi(plain, _raw_exif(_ifd((ORIENTATION, 2, 4, b"six\0")))),
        "jpeg exif two values": _after_soi(plain, _raw_exif(_ifd((ORIENTATION, 3, 2, b"\0\1\0\1")))),
        "jpeg exif far away": _after_soi(plain, _raw_exif(_ifd((ORIENTATION, 3, 2**31, b"\xff\xff\xff\xf0")))),
        "jpeg exif without end": _after_soi(plain, _raw_exif(endless)),
        "jpeg exif many entries": _after_soi(
            plain, _raw_exif(_ifd(*[(0x9000 + i % 99, 3, 1, b"\0\1\0\0") for i in range(5000)]))
        ),
    }
    animals = {name: Animal(data, READ, upright=True) for name, data in odd.items()}
    for value in range(1, 9):
        data = _saved(_stored(value), "JPEG", exif=_exif(value), quality=95, subsampling=0)
        animals[f"jpeg turned {value}"] = Animal(data, READ, upright=True)
    turned = _saved(_stored(6), "JPEG", exif=_exif(6), progressive=True, quality=95)
    animals["jpeg turned progressive"] = Animal(turned, READ, upright=True)
    animals["jpeg cmyk"] = Animal(_saved(_scene("CMYK"), "JPEG", quality=95), READ, upright=True)
    animals["jpeg cmyk turned"] = Animal(
        _saved(_stored(6).convert("CMYK"), "JPEG", exif=_exif(6), quality=95), READ, upright=True
    )
    rgb = simplejpeg.encode_jpeg(SCENE, quality=95, colorsubsampling="444")
    animals["jpeg of simplejpeg"] = Animal(rgb, READ, upright=True)
    animals["jpeg grey"] = Animal(_saved(_scene("L"), "JPEG"), READ)
    animals["jpeg several pictures"] = Animal(
        _saved(_scene(), "MPO", save_all=True, append_images=[_scene()]), READ, upright=True
    )
    for width, height in ((1, 1), (1, 9), (17, 3), (16_000, 1), (1, 16_000)):
        picture = PIL.Image.new("RGB", (width, height), (9, 99, 199))
        animals[f"jpeg {width} x {height}"] = Animal(_saved(picture, "JPEG"), READ)
    return animals


def _without(data: bytes, marker: int) -> bytes:
    """A JPEG with all segments of one kind taken out of its header."""
    out, at = bytearray(data[:2]), 2
    while at < len(data):
        kind, length = data[at + 1], struct.unpack_from(">H", data, at + 2)[0]
        if kind == 0xDA:
            return bytes(out) + data[at:]
        if kind != marker:
            out += data[at : at + 2 + length]
        at += 2 + length
    return bytes(out)


def _patched(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def _broken_jpegs() -> dict[str, Animal]:
    plain = _jpeg()
    frame = plain.index(b"\xff\xc0")
    scan = plain.index(b"\xff\xda")
    noise = np.random.default_rng(0).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    long = simplejpeg.encode_jpeg(noise, quality=95)
    flipped = bytearray(long)
    for at in range(len(long) // 2, len(long) - 40, 29):
        flipped[at] ^= 0x55
    unsure = (200, 400)
    return {
        "jpeg three bytes": Animal(plain[:3], BROKEN),
        "jpeg begin and end": Animal(b"\xff\xd8\xff\xd9", BROKEN),
        "jpeg without tables": Animal(_without(plain, 0xDB), BROKEN),
        "jpeg without codes": Animal(_without(plain, 0xC4), unsure),  # readers may assume the standard ones
        "jpeg without frame": Animal(_without(plain, 0xC0), BROKEN),
        "jpeg without scan": Animal(plain[:scan] + b"\xff\xd9", BROKEN),
        "jpeg without end": Animal(plain[:-2], BROKEN),
        "jpeg no rows": Animal(_patched(plain, frame + 5, b"\0\0"), BROKEN),
        "jpeg no columns": Animal(_patched(plain, frame + 7, b"\0\0"), BROKEN),
        "jpeg taller than its data": Animal(_patched(plain, frame + 5, b"\x08\x00"), BROKEN),
        "jpeg no components": Animal(_patched(plain, frame + 9, b"\0"), BROKEN),
        "jpeg 255 components": Animal(_patched(plain, frame + 9, b"\xff"), BROKEN),
        "jpeg 12 bit": Animal(_patched(plain, frame + 4, b"\x0c"), (400, 415)),
        "jpeg lossless": Animal(_patched(plain, frame + 1, b"\xc3"), (400, 415)),
        "jpeg arithmetic": Animal(_patched(plain, frame + 1, b"\xc9"), (400, 415)),
        "jpeg hierarchical": Animal(_patched(plain, frame + 1, b"\xc5"), (400, 415)),
        "jpeg segment longer than the file": Animal(_after_soi(plain, b"\xff\xe1\xff\xff")[:200], BROKEN),
        "jpeg segment of length 0": Animal(_after_soi(plain, b"\xff\xe1\0\0"), unsure),
        "jpeg flipped bits": Animal(bytes(flipped), unsure),
        "jpeg noise for data": Animal(plain[: scan + 14] + np.random.default_rng(1).bytes(5000), unsure),
        "jpeg two frames": Animal(plain[:scan] + plain[frame : frame + 19] + plain[scan:], unsure),
    }


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _png(
    width: int, height: int, depth: int, colour: int, rows: bytes, *, extra: bytes = b"", interlaced: int = 0
) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    body = _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", zlib.compress(rows, 9)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def _rows(pixels: np.ndarray) -> bytes:
    """PNG scan lines without a filter."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def _interlaced(pixels: np.ndarray) -> bytes:
    """The seven passes of Adam7."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    return b"".join(_rows(pixels[top::down, left::right]) for left, top, right, down in passes)


def _behind_header(data: bytes, extra: bytes) -> bytes:
    return data[:33] + extra + data[33:]


def _with_exif_in_png(data: bytes, orientation: int, *, before: bool) -> bytes:
    chunk = _chunk(b"eXIf", _ifd((ORIENTATION, 3, 1, struct.pack(">HH", orientation, 0))))
    return _behind_header(data, chunk) if before else data[:-12] + chunk + data[-12:]


def _pngs() -> dict[str, Animal]:
    plain = _cv2(SCENE, ".png")
    big = PIL.Image.fromarray(SCENE).resize((WIDTH, HEIGHT))
    deep = SCENE.astype(">u2") * 257
    alpha = np.dstack([SCENE, np.full((HEIGHT, WIDTH), 255, np.uint8)])
    frame = _saved(_scene(), "PNG", save_all=True, append_images=[_scene().rotate(180)])
    text = b"key\0" + b"x" * 5000
    odd = {
        "png": plain,
        "png interlaced": _png(WIDTH, HEIGHT, 8, 2, _interlaced(SCENE), interlaced=1),
        "png 16 bit": _png(WIDTH, HEIGHT, 16, 2, _rows(deep)),
        "png alpha": _png(WIDTH, HEIGHT, 8, 6, _rows(alpha)),
        "png alpha 16 bit": _png(WIDTH, HEIGHT, 16, 6, _rows(alpha.astype(">u2") * 257)),
        "png palette": _saved(big.quantize(8), "PNG"),
        "png palette 1 byte a pixel": _saved(big.quantize(8), "PNG", bits=8),
        "png palette with transparency": _saved(big.quantize(8), "PNG", transparency=7),
        "png animated": frame,
        "png with text": _behind_header(plain, _chunk(b"tEXt", text)),
        "png with unknown chunks": _behind_header(plain, _chunk(b"veRy", b"odd") * 500),
        "png with a broken profile": _behind_header(plain, _chunk(b"iCCP", b"name\0\0no zlib")),
        "png with gamma": _behind_header(plain, _chunk(b"gAMA", struct.pack(">I", 45455))),
        "png and page": plain + b"<html><script>alert(1)</script></html>",
        "png and zip": plain + b"PK\x03\x04" + bytes(30) + b"PK\x05\x06" + bytes(18),
        "png exif rubbish": _behind_header(plain, _chunk(b"eXIf", b"\x93" * 40)),
        "png in many chunks": _in_many_chunks(plain),
    }
    animals = {name: Animal(data, READ, upright=True) for name, data in odd.items()}
    for before in (True, False):
        data = _with_exif_in_png(_cv2(np.asarray(_stored(6)), ".png"), 6, before=before)
        animals[f"png turned, said {'first' if before else 'last'}"] = Animal(data, READ, upright=True)
    grey = np.tile(np.arange(WIDTH, dtype=np.uint8) * 5, (HEIGHT, 1))
    animals |= {
        "png grey": Animal(_png(WIDTH, HEIGHT, 8, 0, _rows(grey)), READ),
        "png grey 16 bit": Animal(_png(WIDTH, HEIGHT, 16, 0, _rows(grey.astype(">u2") * 257)), READ),
        "png grey 4 bit": Animal(_png(WIDTH, HEIGHT, 4, 0, _rows(grey[:, ::2])), READ),
        "png grey 2 bit": Animal(_png(WIDTH, HEIGHT, 2, 0, _rows(grey[:, ::4])), READ),
        "png 1 bit": Animal(_png(WIDTH, HEIGHT, 1, 0, _rows(grey[:, ::8])), READ),
        "png grey and alpha": Animal(_png(WIDTH, HEIGHT, 8, 4, _rows(np.dstack([grey, grey]))), READ),
        "png grey and alpha 16 bit": Animal(
            _png(WIDTH, HEIGHT, 16, 4, _rows(np.dstack([grey, grey]).astype(">u2") * 257)), READ
        ),
        "png 1 x 1": Animal(_png(1, 1, 8, 2, b"\0abc"), READ),
        "png 16000 x 1": Animal(_png(16_000, 1, 8, 0, bytes(16_001)), READ),
        "png 1 x 16000": Animal(_png(1, 16_000, 8, 0, bytes(32_000)), READ),
        "png fully transparent": Animal(_png(2, 2, 8, 6, bytes(18)), READ),
    }
    return animals


def _in_many_chunks(data: bytes) -> bytes:
    at = data.index(b"IDAT") - 4
    size = struct.unpack_from(">I", data, at)[0]
    body = data[at + 8 : at + 8 + size]
    return data[:at] + b"".join(_chunk(b"IDAT", body[i : i + 1]) for i in range(size)) + data[at + 12 + size :]


def _broken_pngs() -> dict[str, Animal]:
    plain = _cv2(SCENE, ".png")
    rows = _rows(SCENE)
    at = plain.index(b"IDAT")
    unsure = (200, 400)
    return {
        "png signature alone": Animal(plain[:8], BROKEN),
        "png header alone": Animal(plain[:33], BROKEN),
        "png without data": Animal(plain[:33] + _chunk(b"IEND", b""), BROKEN),
        "png without end": Animal(plain[:-12], unsure),
        "png no columns": Animal(_png(0, 5, 8, 2, b""), BROKEN),
        "png no rows": Animal(_png(5, 0, 8, 2, b""), BROKEN),
        "png colour type 5": Animal(_png(WIDTH, HEIGHT, 8, 5, rows), BROKEN),
        "png 3 bit": Animal(_png(WIDTH, HEIGHT, 3, 0, rows), BROKEN),
        "png negative size": Animal(_png(0xFFFFFFFF, 5, 8, 2, rows), (400, 413)),
        "png header sum wrong": Animal(_patched(plain, 29, b"\0\0\0\0"), BROKEN),
        "png data sum wrong": Animal(_patched(plain, at + 9, b"\x13\x37"), BROKEN),
        "png interlaced, one byte short": Animal(
            _png(WIDTH, HEIGHT, 8, 2, _interlaced(SCENE)[:-1], interlaced=1), BROKEN
        ),
        "png half of its rows": Animal(_png(WIDTH, HEIGHT, 8, 2, rows[: len(rows) // 2]), BROKEN),
        "png more rows than said": Animal(_png(WIDTH, HEIGHT, 8, 2, rows * 3), unsure),
        "png unknown filter": Animal(_png(WIDTH, HEIGHT, 8, 2, b"\x09" + rows[1:]), BROKEN),
        "png data is no zlib": Animal(
            plain[: at - 4] + _chunk(b"IDAT", b"no zlib at all") + _chunk(b"IEND", b""), BROKEN
        ),
        "png palette missing": Animal(_png(WIDTH, HEIGHT, 8, 3, _rows(SCENE[:, :, 0])), BROKEN),
        "png palette too short": Animal(
            _png(WIDTH, HEIGHT, 8, 3, _rows(SCENE[:, :, 0]), extra=_chunk(b"PLTE", b"abc")), unsure
        ),
        "png chunk longer than the file": Animal(_behind_header(plain, b"\x7f\xff\xff\xfftEXt"), BROKEN),
        "png text bomb": Animal(
            _behind_header(plain, _chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(50_000_000), 9))), unsure
        ),
        "png profile bomb": Animal(
            _behind_header(plain, _chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(50_000_000), 9))), unsure
        ),
        "png data bomb": Animal(_png(WIDTH, HEIGHT, 8, 2, rows + bytes(100_000_000)), unsure),
    }


def _webps() -> dict[str, Animal]:
    scene = _scene()
    lossless = _saved(scene, "WEBP", lossless=True)
    animals = {
        "webp lossy": Animal(_saved(scene, "WEBP", quality=95), READ, upright=True),
        "webp lossless": Animal(lossless, READ, upright=True),
        "webp alpha": Animal(_saved(_scene("RGBA"), "WEBP", lossless=True), READ, upright=True),
        "webp animated": Animal(
            _saved(scene, "WEBP", save_all=True, append_images=[scene.rotate(180)], lossless=True), READ, upright=True
        ),
        "webp with a profile": Animal(_saved(scene, "WEBP", lossless=True, icc_profile=bytes(300)), READ, upright=True),
        "webp 1 x 1": Animal(_saved(PIL.Image.new("RGB", (1, 1)), "WEBP"), READ),
        "webp and page": Animal(lossless + b"<html></html>", READ, upright=True),
        "webp header alone": Animal(lossless[:12], BROKEN),
        "webp size lies": Animal(_patched(lossless, 4, b"\xff\xff\xff\x7f"), (200, 400)),
        "webp unknown chunk": Animal(b"RIFF\x14\0\0\0WEBPVP9 \x04\0\0\0abcd", BROKEN),
        "webp noise": Animal(lossless[:30] + np.random.default_rng(2).bytes(300), BROKEN),
    }
    for value in (3, 6):
        data = _saved(_stored(value), "WEBP", lossless=True, exif=_exif(value))
        animals[f"webp turned {value}"] = Animal(data, READ, upright=True)
    return animals


def _gifs() -> dict[str, Animal]:
    scene = _scene().quantize(8)
    plain = _saved(scene, "GIF")
    clear = _saved(scene, "GIF", transparency=7)
    several = _saved(scene, "GIF", save_all=True, append_images=[scene.rotate(180)] * 5, duration=50)
    small = b"GIF89a\x01\0\x01\0\x80\0\0\xff\xff\xff\0\0\0,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
    at = plain.index(b",")
    return {
        "gif": Animal(plain, READ, upright=True),
        "gif transparent": Animal(clear, READ, upright=True),
        "gif animated": Animal(several, READ, upright=True),
        "gif of 1987": Animal(b"GIF87a" + plain[6:], READ, upright=True),
        "gif interlaced": Animal(_saved(scene, "GIF", interlace=1), READ, upright=True),
        "gif 1 x 1": Animal(small, READ),
        "gif without end": Animal(plain[:-1], (200, 400)),
        "gif and page": Animal(plain + b"<html></html>", READ, upright=True),
        "gif without a picture": Animal(small[:19] + b";", BROKEN),
        "gif no size": Animal(_patched(small, 6, b"\0\0\0\0"), (200, 400)),
        "gif noise": Animal(plain[: at + 12] + np.random.default_rng(3).bytes(200), (200, 400)),
        "gif frame outside": Animal(_patched(small, small.index(b",") + 1, b"\xff\xff\xff\xff"), (400, 413)),
        "gif frame larger than its screen": Animal(
            _patched(small, small.index(b",") + 5, b"\xff\xff\xff\xff"), (400, 413)
        ),
        "gif without colours": Animal(small[:10] + b"\0" + small[11:13] + small[19:], (200, 400)),
    }


def _other_kinds() -> dict[str, Animal]:
    nan = np.full((4, 4), np.nan, np.float32)
    scene = _scene()
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    return {
        "nothing": Animal(b"", BROKEN),
        "one byte": Animal(b"\xff", KIND),
        "zeros": Animal(bytes(1000), KIND),
        "text": Animal(b"hello, this is no image", KIND),
        "json": Animal(b'{"image": "iVBORw0KGgo="}', KIND),
        "page": Animal(b"<!doctype html><html></html>", KIND),
        "svg": Animal(svg, KIND),
        "svg declared": Animal(b"<?xml version='1.0'?>" + svg, KIND),
        "svg that refers for ever": Animal(
            b"<?xml version='1.0'?><!DOCTYPE s [<!ENTITY a '&a;&a;'>]><svg>&a;</svg>", KIND
        ),
        "gzip": Animal(b"\x1f\x8b\x08" + bytes(40), KIND),
        "zip": Animal(b"PK\x03\x04" + bytes(40), KIND),
        "pdf": Animal(b"%PDF-1.7\n" + bytes(40), KIND),
        "program": Animal(b"\x7fELF" + bytes(60), KIND),
        "script": Animal(b"#!/bin/sh\nid", KIND),
        "postscript": Animal(b"%!PS-Adobe-3.0 EPSF-3.0\n", KIND),
        "imagemagick script": Animal(b"push graphic-context\nfill 'url(https://x/\"|id\")'", KIND),
        "movie": Animal(b"\0\0\0\x18ftypmp42" + bytes(40), KIND),
        "heic": Animal(b"\0\0\0\x18ftypheic" + bytes(40), KIND),
        "jpeg xl": Animal(b"\xff\x0a" + bytes(40), KIND),
        "photoshop": Animal(b"8BPS\0\x01" + bytes(40), KIND),
        "raw photo": Animal(b"II*\0\x10\0\0\0CR\x02\0" + bytes(40), KIND),
        "tiff": Animal(_saved(scene, "TIFF"), KIND),
        "tiff of numbers that are none": Animal(_saved(PIL.Image.fromarray(nan), "TIFF"), KIND),
        "float map of numbers that are none": Animal(b"Pf\n4 4\n-1.0\n" + nan.tobytes(), KIND),
        "bmp": Animal(_saved(scene, "BMP"), KIND),
        "icon": Animal(_saved(scene, "ICO", sizes=[(16, 16)]), KIND),
        "ppm": Animal(_saved(scene, "PPM"), KIND),
        "targa": Animal(_saved(scene, "TGA"), KIND),
        "jpeg 2000": Animal(_saved(scene, "JPEG2000"), KIND),
        "avif": Animal(_saved(scene, "AVIF"), KIND),
        "dds": Animal(_saved(_scene("RGBA"), "DDS"), KIND),
        "html before jpeg": Animal(b"<!--" + _jpeg() + b"-->", KIND),
        "blank before png": Animal(b" " + _cv2(SCENE, ".png"), KIND),
    }


def _cut() -> dict[str, Animal]:
    """A half picture would be logged, labelled and learned from."""
    noise = np.random.default_rng(4).integers(0, 255, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    picture = PIL.Image.fromarray(noise)
    whole: dict[str, bytes] = {
        "jpeg": _saved(picture, "JPEG"),
        "jpeg progressive": _saved(picture, "JPEG", progressive=True),
        "png": _saved(picture, "PNG"),
        "webp": _saved(picture, "WEBP", lossless=True),
        "gif": _saved(picture.quantize(64), "GIF"),
    }
    return {
        f"{name} cut at {share} %": Animal(data[: len(data) * share // 100], BROKEN)
        for name, data in whole.items()
        for share in (10, 50, 90)
    }


def _bombs() -> dict[str, Animal]:
    plain = _jpeg()
    frame = plain.index(b"\xff\xc0")
    lossless = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0\0\0\0\0"
    extended = b"RIFF\x2c\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + lossless[12:]
    animation = extended[:20] + b"\x02" + extended[21:]
    scans = _jpeg(progressive=True)
    last = scans.rindex(b"\xff\xda")
    narrow: Callable[[int, int], bytes] = lambda w, h: _patched(plain, frame + 5, struct.pack(">HH", h, w))  # noqa: E731
    return {
        "bomb png 30000 x 30000": Animal(_png(30_000, 30_000, 1, 0, bytes(3751 * 300)), LARGE),
        "bomb png 20000 x 20000": Animal(_png(20_000, 20_000, 8, 2, bytes(60_001)), LARGE),
        "bomb png 13000 x 13000": Animal(_png(13_000, 13_000, 8, 2, bytes(39_001)), LARGE),
        "bomb png 2 billion": Animal(_png(2**31 - 1, 2**31 - 1, 16, 6, bytes(100)), LARGE),
        "bomb png 16001 x 1": Animal(_png(16_001, 1, 8, 0, bytes(16_002)), LARGE),
        "bomb png deep": Animal(_png(5000, 5000, 16, 6, bytes(40_001)), (400, 413)),
        "bomb jpeg 30000 x 30000": Animal(narrow(30_000, 30_000), LARGE),
        "bomb jpeg 65535 x 65535": Animal(narrow(65_535, 65_535), LARGE),
        "bomb jpeg 65535 x 8": Animal(narrow(65_535, 8), LARGE),
        "bomb jpeg 5000 x 5000 of nothing": Animal(narrow(5000, 5000), BROKEN),
        "bomb jpeg of 400 scans": Animal(scans[:-2] + scans[last:-2] * 400 + b"\xff\xd9", LARGE),
        "bomb jpeg of 60 scans": Animal(_scans_of_nothing(5000, 5000, 60), (400, 413)),
        "bomb webp 16384 x 16384": Animal(lossless, LARGE),
        "bomb webp canvas": Animal(extended, LARGE),
        "bomb webp animation": Animal(animation, LARGE),
        "bomb gif 65535 x 65535": Animal(
            b"GIF89a\xff\xff\xff\xff\x80\0\0\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0\x02\x02D\x01\0;", LARGE
        ),
    }


def _scans_of_nothing(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG whose scans each end at once, for an image that is large."""
    small = _saved(PIL.Image.new("L", (8, 8), 128), "JPEG", progressive=True)
    frame = small.index(b"\xff\xc2")
    last = small.rindex(b"\xff\xda")
    body = _patched(small, frame + 5, struct.pack(">HH", height, width))
    return body[:-2] + body[last:-2] * count + b"\xff\xd9"
