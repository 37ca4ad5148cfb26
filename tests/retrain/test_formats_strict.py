"""What strict readers say about broken data sets: file, line and remedy, or a report; never a silent guess."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import pytest

from retrain import formats
from retrain.formats import Import, Record
from sutdol.errors import DatasetError
from sutdol.types import Label
from tests.real_data import blood_cells
from tests.voc_folder import annotation, photo, write_voc

GOOD = ("cat", 1, 2, 20, 21)


def read_voc(path: Path) -> Import:
    return formats.read(path, format="voc")


def read_imagefolder(path: Path) -> Import:
    return formats.read(path, format="imagefolder")


def one(tmp_path: Path, xml: str | bytes) -> Path:
    """A VOC folder with one photo, annotated by `xml`."""
    folder = write_voc(tmp_path, {"a": [GOOD]})
    (folder / "Annotations" / "a.xml").write_bytes(xml.encode() if isinstance(xml, str) else xml)
    return folder


def test_boxes_come_as_written_and_are_cut_at_the_edges(tmp_path: Path) -> None:
    """Pixels are pixels: no offset of one, no box outside the photo."""
    found = read_voc(one(tmp_path, annotation([GOOD, ("개", -5, 3.5, 90, 30)])))
    boxes = found.records[0].label.boxes
    assert [(b.label, b.x1, b.y1, b.x2, b.y2) for b in boxes] == [("cat", 1, 2, 20, 21), ("개", 0, 3.5, 40, 30)]
    assert found.clipped == 1
    assert found.records[0].declared_wh == (40, 30)


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        (("cat", 5, 5, 5, 9), "without area"),
        (("cat", 9, 5, 5, 9), "without area"),
        (("cat", 50, 5, 60, 9), "outside"),
    ],
)
def test_a_box_without_area_is_left_out_and_reported_by_line(
    tmp_path: Path, box: tuple[object, ...], reason: str
) -> None:
    """Two such boxes hide in the blood cells; the other 4,886 must still come in."""
    found = read_voc(one(tmp_path, annotation([GOOD, box])))  # type: ignore[list-item]
    assert [(e.file, e.line) for e in found.left_out] == [("Annotations/a.xml", 19)]
    assert reason in found.left_out[0].reason
    assert len(found.records[0].label.boxes) == 1


def test_no_boxes_is_an_answer_and_not_a_mistake(tmp_path: Path) -> None:
    """Photos with nothing on them teach a detector silence."""
    found = read_voc(one(tmp_path, annotation([])))
    assert found.records[0].label == Label()
    assert found.left_out == []


BROKEN = [
    ("number", annotation([("cat", "ten", 2, 20, 21)]), "Annotations/a.xml:11: .*<xmin>.*'ten'.*correct"),
    ("not a number", annotation([("cat", "nan", 2, 20, 21)]), "Annotations/a.xml:11: .*'nan'"),
    ("empty number", annotation([("cat", "", 2, 20, 21)]), "Annotations/a.xml:11: .*''"),
    ("size", annotation([GOOD], width="wide"), "Annotations/a.xml:4: .*<width>.*'wide'"),
    ("unknown tag", annotation([GOOD]).replace("<bndbox>", "<boundbox/>\n<bndbox>"), "a.xml:10: unknown tag <boundbox>"),
    ("corner missing", annotation([GOOD]).replace("<xmin>1</xmin>", ""), "a.xml:10: expected one <xmin> in <bndbox>, found 0"),
    ("two corners", annotation([GOOD]).replace("<xmin>1</xmin>", "<xmin>1</xmin><xmin>2</xmin>"), "a.xml:10: .*found 2"),
    ("no class", annotation([(" ", 1, 2, 3, 4)]), "a.xml:8: expected a class"),
    ("cut off", annotation([GOOD])[:120], "a.xml:[0-9]+: not readable as XML"),
    ("empty", "", "a.xml:1: not readable as XML: no element found"),
    ("other root", "<html/>", "a.xml:1: expected <annotation>"),
    ("doctype", "<?xml version='1.0'?>\n<!DOCTYPE a [<!ENTITY b 'c'>]>\n<a>&b;</a>", "a.xml:2: a DOCTYPE"),
    ("external", "<!DOCTYPE a SYSTEM 'file:///etc/passwd'>\n<annotation/>", "a.xml:1: a DOCTYPE"),
    ("encoding", b"<?xml version='1.0' encoding='klingon'?><annotation/>", "a.xml:1: "),
    ("wrong bytes", b"<annotation>\n<folder>\xff\xfe</folder></annotation>", "a.xml:2: not readable as XML"),
    ("deep", "<annotation>" + "<part>" * 80, "a.xml:1: expected at most 50"),
]  # fmt: skip


@pytest.mark.parametrize(("xml", "expected"), [b[1:] for b in BROKEN], ids=[b[0] for b in BROKEN])
def test_broken_annotations_name_file_and_line(tmp_path: Path, xml: str | bytes, expected: str) -> None:
    """Whoever has ten thousand files must be told which one, and where."""
    with pytest.raises(DatasetError, match=expected) as caught:
        read_voc(one(tmp_path, xml))
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize(
    "xml",
    [
        annotation([GOOD], width=0, height=0),
        annotation([GOOD]).replace("<size>", "<owner>").replace("</size>", "</owner>"),
    ],
)
def test_a_missing_size_is_left_to_the_photo(tmp_path: Path, xml: str) -> None:
    """Several tools write 0 x 0; the photo itself knows better."""
    found = read_voc(one(tmp_path, xml))
    assert found.records[0].declared_wh is None
    assert len(found.records[0].label.boxes) == 1


def test_other_encodings_are_read_as_declared(tmp_path: Path) -> None:
    """Labels from old Windows tools are not UTF-8."""
    xml = annotation([("Zelle_ß", 1, 2, 20, 21)])
    for encoding in ("utf-16", "latin-1"):
        data = f"<?xml version='1.0' encoding='{encoding}'?>{xml}".encode(encoding)
        assert read_voc(one(tmp_path, data)).records[0].label.boxes[0].label == "Zelle_ß"


def test_stems_match_whatever_their_case_and_their_unicode_form(tmp_path: Path) -> None:
    """Cameras write IMG_1.JPG, tools write img_1.xml, and macOS decomposes accents."""
    folder = write_voc(tmp_path, {}, splits={"test": ["IMG_1"], "train": [unicodedata.normalize("NFC", "é")]})
    for stem, other in (("IMG_1", "img_1"), (unicodedata.normalize("NFD", "é"), unicodedata.normalize("NFC", "é"))):
        (folder / "JPEGImages" / f"{stem}.PNG").write_bytes(photo())
        (folder / "Annotations" / f"{other}.xml").write_text(annotation([GOOD]))
    found = read_voc(folder)
    assert sorted(str(r.split) for r in found.records) == ["test", "train"]
    assert found.left_out == []


@pytest.mark.parametrize(
    ("folder", "other"), [("JPEGImages", "A.jpg"), ("JPEGImages", "a.jpeg"), ("Annotations", "A.xml")]
)
def test_two_files_of_one_stem_are_refused(tmp_path: Path, folder: str, other: str) -> None:
    """One of the two labels would silently belong to the other photo."""
    path = write_voc(tmp_path, {"a": [GOOD]})
    (path / folder / other).write_bytes(b"x")
    with pytest.raises(DatasetError, match="same name but for case or ending"):
        read_voc(path)


def test_a_stem_in_two_splits_is_refused_with_both_lines(tmp_path: Path) -> None:
    """A test photo that is trained on makes every later number a lie."""
    path = write_voc(tmp_path, {"a": [GOOD], "b": [GOOD]}, splits={"train": ["b", "a"], "test": ["A"]})
    with pytest.raises(DatasetError, match=r"test.txt:1: 'A' stands in ImageSets/Main/train.txt:2 too"):
        read_voc(path)


def test_split_files_in_the_forms_that_exist(tmp_path: Path) -> None:
    """Class files with a second column, endings, blank lines and a byte order mark are all found in the wild."""
    path = write_voc(
        tmp_path, {name: [GOOD] for name in ("a", "b 1", "c", "d", "e")}, splits={"train": ["\ufeffa  1", "", "b 1"]}
    )
    (path / "ImageSets" / "Main" / "test.txt").write_text("c.png\ngone\n")
    (path / "ImageSets" / "Main" / "trainval.txt").write_text("a\nd\nalso gone\n")
    found = read_voc(path)
    assert {r.path.stem: r.split for r in found.records if r.path} == {
        "a": "train",
        "b 1": "train",
        "c": "test",
        "d": "train",
        "e": None,
    }
    assert [(e.file, e.line) for e in found.left_out] == [("ImageSets/Main/test.txt", 2)]
    assert found.notes == ["1 photos are in none of the split files; the import assigns them"]


def test_photos_and_annotations_without_their_other_half_are_reported(tmp_path: Path) -> None:
    """A photo without XML is not an empty photo; nobody has looked at it."""
    path = write_voc(tmp_path, {"a": [GOOD], "b": [GOOD], "c": [GOOD]})
    (path / "JPEGImages" / "b.png").unlink()
    (path / "Annotations" / "c.xml").unlink()
    found = read_voc(path)
    assert [(e.file, e.reason.split()[1]) for e in found.left_out] == [
        ("Annotations/b.xml", "photo"),
        ("JPEGImages/c.png", "annotation"),
    ]


def test_the_folder_above_a_voc_folder_is_recognised_by_its_child(tmp_path: Path) -> None:
    """One level too high is the usual mistake; the message says which folder was meant."""
    write_voc(tmp_path / "up" / "VOC2012", {"a": [GOOD]})
    with pytest.raises(DatasetError, match="up/VOC2012 looks like voc"):
        formats.detect_format(tmp_path / "up")


def put(folder: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo(number))
    return folder


def test_class_folders_without_splits_leave_the_split_open(tmp_path: Path) -> None:
    """Most folders of photos have no splits; nested folders belong to their class."""
    found = read_imagefolder(
        put(tmp_path, "cat/1.png", "cat/more/2.JPG", "dog/3.webp", ".git/x.png", "cat/.hidden.png")
    )
    assert [(r.name, r.label.classes, r.split) for r in found.records] == [
        ("cat/1.png", ["cat"], None), ("cat/more/2.JPG", ["cat"], None), ("dog/3.webp", ["dog"], None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("cat/1.png", "loose.png"), "loose.png: expected every photo in the folder of its class"),
        (("train/cat/1.png", "train/2.png"), "train/2.png: expected every photo"),
        (("train/cat/1.png", "dog/2.png"), "dog: expected only train/, val/ and test/"),
        (("val/cat/1.png", "valid/cat/2.png"), "val, valid: two folders for one split"),
        (("cat/readme.md",), "expected folders of photos"),
    ],
)
def test_folders_that_can_mean_two_things_are_refused(tmp_path: Path, names: tuple[str, ...], expected: str) -> None:
    """A class called `train` or a forgotten photo must not be guessed at."""
    with pytest.raises(DatasetError, match=expected):
        read_imagefolder(put(tmp_path, *names))


def test_a_class_may_be_called_test_when_it_holds_photos_itself(tmp_path: Path) -> None:
    """`test` with photos and no folders is a class among others, not a split."""
    found = read_imagefolder(put(tmp_path, "test/1.png", "control/2.png"))
    assert formats.count_labels(found.records) == {"control": 1, "test": 1}


def test_an_unknown_format_lists_the_known_ones(tmp_path: Path) -> None:
    """The remedy belongs to the message."""
    with pytest.raises(DatasetError, match="known: voc, coco, yolo, csv, imagefolder"):
        formats.read(tmp_path, format="coco2")


def test_a_record_has_either_a_path_or_bytes() -> None:
    """With both, nobody knows which photo the label belongs to."""
    with pytest.raises(DatasetError, match="neither"):
        Record("x", Label())


def test_the_real_blood_cells_are_read_whole() -> None:
    """The data set that everybody uses, with its two boxes without area."""
    found = formats.read(blood_cells())
    assert len(found.records) == 364
    assert formats.count_labels(found.records) == {"Platelets": 361, "RBC": 4153, "WBC": 372}
    assert [(e.file, e.line) for e in found.left_out] == [
        ("Annotations/BloodImage_00338.xml", 163),
        ("Annotations/BloodImage_00343.xml", 55),
    ]
    assert [sum(r.split == s for r in found.records) for s in ("train", "val", "test")] == [205, 87, 72]
