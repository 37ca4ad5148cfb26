"""Every animal of the zoo gets what it deserves, and what is let through is upright, whatever its file says."""

from __future__ import annotations

import io

import numpy as np
import PIL.Image
import pytest

from sutdol import headers, images
from sutdol.errors import ImageError
from tests.image_zoo import HEIGHT, SCENE, WIDTH, Animal, zoo

AT = [(HEIGHT // 4, WIDTH // 4), (HEIGHT // 4, -WIDTH // 4), (-HEIGHT // 4, WIDTH // 4), (-HEIGHT // 4, -WIDTH // 4)]


@pytest.fixture(scope="module")
def animals() -> dict[str, Animal]:
    return zoo()


def became(data: bytes) -> tuple[int, np.ndarray | None]:
    """The status that a client would get, and the pixels."""
    try:
        return 200, images.decode(images.admit(data).data)
    except ImageError as error:
        return error.status, None


def test_every_file_is_read_or_refused_as_it_should_be(animals: dict[str, Animal]) -> None:
    """A half picture that is let in will be labelled and learned from; a good one that is kept out is a customer's."""
    assert len(animals) >= 100
    found = {name: became(animal.data)[0] for name, animal in animals.items()}
    assert {n: (s, animals[n].statuses) for n, s in found.items() if s not in animals[n].statuses} == {}


def test_what_is_read_is_upright(animals: dict[str, Animal]) -> None:
    """One set of pixels for the model, the labeler and the training."""
    wrong = {}
    for name, animal in animals.items():
        if animal.upright:
            status, rgb = became(animal.data)
            if rgb is None or rgb.shape != SCENE.shape:
                wrong[name] = f"{status}, {None if rgb is None else rgb.shape}"
                continue
            worst = max(int(np.abs(rgb[at].astype(int) - SCENE[at]).max()) for at in AT)
            if worst > 40:
                wrong[name] = f"a colour differs by {worst}"
    assert wrong == {}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, about broken EXIF
def test_the_header_says_what_the_decoder_makes(animals: dict[str, Animal]) -> None:
    """The size limit is only as good as the size that it is applied to."""
    sniffed = {b"\xff\xd8": "JPEG", b"\x89P": "PNG", b"RI": "WEBP", b"GI": "GIF"}
    for name, animal in animals.items():
        if animal.statuses == (200,):
            header = headers.read(animal.data, sniffed[animal.data[:2]])
            with PIL.Image.open(io.BytesIO(animal.data)) as image:
                assert (header.width_px, header.height_px) == image.size, name


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3), (9, 4), (16, 16), (31, 17)])
def test_a_picture_that_ends_black_is_whole_all_the_same(width: int, height: int) -> None:
    """The decoder leaves missing rows black; a picture of the night must not be taken for one of those."""
    buffer = io.BytesIO()
    PIL.Image.new("RGB", (width, height)).save(buffer, "PNG")
    assert headers.png_is_whole(buffer.getvalue())
    assert became(buffer.getvalue())[0] == 200


@pytest.mark.parametrize(
    ("tiff", "orientation"),
    [
        (b"", 1),
        (b"MM\0*", 1),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0", 6),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x08\0\0\0", 8),
        (b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x63\0\0", 1),
        (b"MM\0*\xff\xff\xff\xff", 1),
        (b"MM\0*\0\0\0\x08\xff\xff", 1),
    ],
)
def test_orientation_is_read_where_it_makes_sense(tiff: bytes, orientation: int) -> None:
    """Broken metadata is no reason to lose a photo."""
    assert headers.exif_orientation(tiff) == orientation
