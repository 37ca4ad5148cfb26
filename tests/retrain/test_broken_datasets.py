"""Thirty and more kinds of broken input: each names file, line and remedy, and nothing of the data set is in."""

# ruff: noqa: E501  (the tables are read a row at a time)

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlmodel import select

from retrain.imports import import_folder
from sutdol import registry
from sutdol.context import Context
from sutdol.errors import DatasetError
from sutdol.tables import Dataset, LabelRow, Sample
from tests.conformance.test_formats import coco, imagefolder, table, voc, yolo
from tests.voc_folder import photo

Break = Callable[[Path], None]


def text(name: str, old: str, new: str) -> Break:
    """One file of the data set is edited."""

    def edit(folder: Path) -> None:
        file = folder / name
        content = file.read_text(encoding="utf-8")
        assert old in content, content
        file.write_text(content.replace(old, new, 1), encoding="utf-8")

    return edit


def data(name: str, content: bytes) -> Break:
    """One file is written."""

    def write(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return write


def no_photos(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.unlink()


def truncated_photos(folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:-300])


def way_out(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(photo(99))
    text("photos.csv", "1.png", "../secret.png")(folder)


def link_out(folder: Path) -> None:
    (folder.parent / "secret.png").write_bytes(photo(99))
    (folder / "1.png").unlink()
    (folder / "1.png").symlink_to(folder.parent / "secret.png")


COCO = "annotations/instances_train2017.json"
ALIASES = b"a: &a [x,x]\nb: &b [*a,*a]\nnames: [*b]\n"
BROKEN: dict[str, tuple[Callable[[Path], Path], Break, str]] = {
    # Pascal VOC
    "voc: bad XML": (voc, data("Annotations/1.xml", b"<annotation>\n<object>"), r"1\.xml:2: not readable as XML.*correct or remove"),
    "voc: number that is none": (voc, text("Annotations/1.xml", "<xmin>1<", "<xmin>one<"), r"1\.xml:11: .*'one'.*correct"),
    "voc: unknown tag": (voc, text("Annotations/1.xml", "<name>", "<klass>x</klass>\n<name>"), r"1\.xml:9: unknown tag <klass>"),
    "voc: corner missing": (voc, text("Annotations/1.xml", "<ymax>21</ymax>", ""), r"1\.xml:10: expected one <ymax>"),
    "voc: entity bomb": (voc, data("Annotations/1.xml", b"<!DOCTYPE a [<!ENTITY b 'c'>]>\n<a/>"), r"1\.xml:1: a DOCTYPE.*remove"),
    "voc: one stem in two splits": (voc, text("ImageSets/Main/test.txt", "4", "1"), r"test\.txt:1: '1' stands in .*train\.txt:1 too.*remove"),
    "voc: one stem, two photos": (voc, data("JPEGImages/1.JPG", photo()), r"same name but for case or ending.*rename"),
    "voc: no class": (voc, text("Annotations/1.xml", "<name>고양이", "<name> "), r"1\.xml:8: expected a class"),
    # COCO
    "coco: cut off": (coco, data(COCO, b'{"images": [],\n"annotations": ['), r"train2017\.json:2: not readable as COCO.*correct"),
    "coco: class outside the list": (coco, text(COCO, '"category_id": 2', '"category_id": 7'), r"train2017\.json:2: annotations\[0\]: category 7 is not in the list \(known: 1 dog"),
    "coco: image outside the list": (coco, text(COCO, '"image_id": 1', '"image_id": 77'), r"train2017\.json:2: annotations\[0\]: image 77"),
    "coco: box of three numbers": (coco, text(COCO, "[1, 2, 19, 19]", "[1, 2, 19]"), r"train2017\.json:2: annotations\[0\]: expected bbox of x, y, width, height"),
    "coco: field missing": (coco, text(COCO, '"bbox"', '"box"'), r"train2017\.json:2: annotations\[0\]: .*bbox"),
    "coco: two classes of one name": (coco, text(COCO, '"고양이"', '"dog"'), r"category 2 'dog' is there twice"),
    "coco: photo in two splits": (coco, text("annotations/instances_val2017.json", "3.png", "../train2017/1.png"), r"stands in .*train2017\.json too"),
    "coco: way out": (coco, text(COCO, "1.png", "../../../etc/passwd"), r"leads out of the data set"),
    # YOLO
    "yolo: wrong number of columns": (yolo, data("labels/train/1.txt", b"0 .5 .5 .1 .1\n2 0.5 0.5 0.1\n"), r"labels/train/1\.txt:2: expected 5 numbers .*found 4: '2 0\.5 0\.5 0\.1'"),
    "yolo: class outside the list": (yolo, data("labels/train/1.txt", b"2 .5 .5 .1 .1\n"), r"1\.txt:1: class 2 is not in the list of 2 .*add the class"),
    "yolo: not a number": (yolo, data("labels/train/1.txt", b"0 .5 nan .1 .1\n"), r"1\.txt:1: expected a number, found 'nan'"),
    "yolo: pixels instead of shares": (yolo, data("labels/train/1.txt", b"0 320 240 64 48\n"), r"1\.txt:1: expected shares.*divide pixels"),
    "yolo: negative box": (yolo, data("labels/train/1.txt", b"0 -.5 .5 .1 .1\n"), r"1\.txt:1: expected shares of the photo"),
    "yolo: polygon": (yolo, data("labels/train/1.txt", b"0 .1 .1 .2 .1 .2 .2 .1 .2\n"), r"1\.txt:1: .*found 9: a polygon.*export boxes"),
    "yolo: no class list": (yolo, lambda f: (f / "data.yaml").unlink(), r"expected data\.yaml or classes\.txt.*one name a line"),
    "yolo: YAML bomb": (yolo, data("data.yaml", ALIASES), r"data\.yaml:2: an alias"),
    "yolo: bad YAML": (yolo, data("data.yaml", b"names:\n  - [a\n"), r"data\.yaml:3: not readable as YAML"),
    "yolo: a class twice": (yolo, text("data.yaml", "고양이", "dog"), r"data\.yaml: the class 'dog' is there twice"),
    # CSV
    "csv: wrong number of columns": (table, text("photos.csv", "1.png,train,0,1", "1.png,train,0"), r"photos\.csv:2: expected 4 columns, found 3.*double quotes"),
    "csv: no image column": (table, text("photos.csv", "image,", "bild,"), r"photos\.csv:1: expected a column `image`"),
    "csv: neither 0 nor 1": (table, text("photos.csv", "2.png,train,1,0", "2.png,train,yes,0"), r"photos\.csv:3: expected 0 or 1 in the column 'dog', found 'yes'"),
    "csv: unknown split": (table, text("photos.csv", "3.png,val", "3.png,dev"), r"photos\.csv:4: expected train, val or test, found 'dev'"),
    "csv: a photo in two rows": (table, text("photos.csv", "2.png", "1.png"), r"photos\.csv:3: '1\.png' stands in line 2 too"),
    "csv: not UTF-8": (table, data("photos.csv", "image,labels\n1.png,고양이\n".encode("cp949")), r"photos\.csv: expected UTF-8.*save it as CSV UTF-8"),
    "csv: two tables": (table, data("more.csv", b"image,labels\n"), r"expected one table .*more\.csv, photos\.csv"),
    "csv: way out": (table, way_out, r"photos\.csv:2: '\.\./secret\.png' leads out of the data set"),
    "csv: link out": (table, link_out, r"photos\.csv:2: '1\.png' leads out of the data set"),
    # ImageFolder
    "imagefolder: a loose photo": (imagefolder, data("train/loose.png", photo(9)), r"train/loose\.png: expected every photo in the folder"),
    "imagefolder: two folders for one split": (imagefolder, data("valid/dog/9.png", photo(9)), r"val, valid: two folders for one split"),
    "imagefolder: a class beside the splits": (imagefolder, data("dog/9.png", photo(9)), r"dog: expected only train/, val/ and test/"),
    # photos
    "no photo at all": (voc, no_photos, r"expected annotated photos, found none"),
    "every photo is cut off": (voc, truncated_photos, r"found none; the first: Annotations/1\.xml: .*truncated"),
}  # fmt: skip


def rows(context: Context) -> int:
    with context.database.read() as session:
        return sum(len(session.exec(select(t)).all()) for t in (Dataset, LabelRow, Sample))  # type: ignore[call-overload]


def make_model(context: Context, task: str) -> None:
    with context.database.begin() as session:
        registry.create_model(session, "m", task=task, classes=[], family="timm", params={})


@pytest.mark.parametrize("kind", list(BROKEN))
def test_broken_input_names_file_line_and_remedy_and_nothing_is_in(kind: str, context: Context, tmp_path: Path) -> None:
    """Whoever has ten thousand files must be told which one, where, and what to do; half a data set helps nobody."""
    maker, damage, expected = BROKEN[kind]
    folder = maker(tmp_path / "set")
    damage(folder)
    make_model(context, {imagefolder: "classify", table: "multilabel"}.get(maker, "detect"))
    with pytest.raises(DatasetError, match=expected) as caught:
        import_folder(context, "m", folder, format=kind.split(":")[0] if ":" in kind else None)
    assert str(tmp_path) not in str(caught.value)
    assert rows(context) == 0
    assert list((context.settings.home / "imports").iterdir()) == []


ODD: dict[str, tuple[Callable[[Path], Path], Break, int, str]] = {
    "one photo is cut off": (voc, lambda f: truncated_photos(f / "x") or data("JPEGImages/1.png", photo(1)[:-400])(f), 3, "truncated"),
    "a box without area": (yolo, data("labels/train/1.txt", b"0 .5 .5 0 .1\n1 .5 .5 .1 .1\n"), 4, "without area"),
    "a negative size": (coco, text(COCO, "[1, 2, 19, 19]", "[1, 2, -19, 19]"), 4, "without area"),
    "a crowd": (coco, text(COCO, '"bbox": [1, 2, 19, 19]', '"iscrowd": 1, "bbox": [1, 2, 19, 19]'), 4, "crowd"),
    "a photo that is not there": (table, lambda f: (f / "1.png").unlink(), 3, "no photo '1.png' here"),
    "a photo in no table": (table, data("9.png", photo(9)), 4, "not in photos.csv"),
    "text without photo": (yolo, data("labels/train/9.txt", b""), 4, "no photo of this name"),
    "the same photo twice, other labels": (imagefolder, data("train/dog/copy.png", photo(1)), 3, "labelled differently"),
}  # fmt: skip


@pytest.mark.parametrize("kind", list(ODD))
def test_what_is_useless_is_left_out_by_name_and_the_rest_is_in(kind: str, context: Context, tmp_path: Path) -> None:
    """One bad photo in ten thousand must not stop the others, and must not be silent either."""
    maker, damage, imported, reason = ODD[kind]
    folder = maker(tmp_path / "set")
    damage(folder)
    make_model(context, {imagefolder: "classify", table: "multilabel"}.get(maker, "detect"))
    report = import_folder(context, "m", folder).report
    assert report["imported"] == imported
    assert any(reason in e["reason"] for e in report["left_out"]), report["left_out"]


def one_class(folder: Path) -> Path:
    for i in range(20):
        data(f"cat/{i}.png", photo(i))(folder)
    return folder


def test_one_class_and_one_split_are_taken_and_split_anew(context: Context, tmp_path: Path) -> None:
    """A first collection has one class, or was exported as all train; neither is a mistake."""
    make_model(context, "classify")
    report = import_folder(context, "m", one_class(tmp_path / "one")).report
    assert report["splits"] == {"train": 14, "val": 2, "test": 4}
    folder = tmp_path / "all train"
    one_class(folder / "train")
    with context.database.begin() as session:
        registry.create_model(session, "n", task="classify", classes=[], family="timm", params={})
    report = import_folder(context, "n", folder).report
    assert report["splits"] == {"train": 14, "val": 2, "test": 4}
    assert "cut from its train" in report["notes"][0]


def zipped(folder: Path, archive: Path, **names: bytes) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            out.write(file, file.relative_to(folder.parent).as_posix())
        for name, content in names.items():
            out.writestr(name, content)
    return archive


def bomb(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("a/1.png", b"\0" * 60_000_000)


def lying_bomb(path: Path) -> None:
    """Its directory says 10 bytes; what comes out is another thing."""
    bomb(path)
    content = path.read_bytes()
    directory = content.rindex(b"PK\x01\x02")
    size = (60_000_000).to_bytes(4, "little")
    content = content[:directory] + content[directory:].replace(size, (10).to_bytes(4, "little"))
    path.write_bytes(content)


def entry(path: Path, name: str, mode: int = 0) -> None:
    with zipfile.ZipFile(path, "w") as out:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        out.writestr(info, photo())


def cyclic(path: Path) -> None:
    """A zip with itself inside, as far as a file can hold itself: its own bytes so far."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as out:
        out.writestr("x/1.png", photo())
    with zipfile.ZipFile(path, "w") as out:
        out.writestr(path.name, buffer.getvalue())


def encrypted(path: Path) -> None:
    entry(path, "a/1.png")
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.rindex(signature) + offset] |= 1
    path.write_bytes(bytes(content))


ZIPS: dict[str, tuple[Callable[[Path], None], str]] = {
    "bomb": (bomb, r"unpacks to more than .* this is a zip bomb"),
    "bomb that lies about its size": (lying_bomb, r"bomb|not readable as zip"),
    "cyclic": (cyclic, r"'set\.zip' is an archive itself.*unpack it"),
    "path traversal": (lambda p: entry(p, "../../evil.png"), r"'\.\./\.\./evil\.png' leads out of the archive"),
    "absolute path": (lambda p: entry(p, "/etc/evil.png"), r"leads out of the archive"),
    "Windows path": (lambda p: entry(p, "C:\\evil.png"), r"leads out of the archive"),
    "link": (lambda p: entry(p, "a/1.png", 0o120777), r"is a link"),
    "encrypted": (encrypted, r"is encrypted.*without a password"),
    "no zip": (lambda p: p.write_bytes(b"PK\x03\x04 nothing") and None, r"not readable as zip"),
    "cut off": (lambda p: bomb(p) or (p.write_bytes(p.read_bytes()[:5000]) and None), r"not readable as zip"),
    "empty": (lambda p: zipfile.ZipFile(p, "w").close(), r"expected files, found none"),
}


@pytest.mark.parametrize("kind", list(ZIPS))
def test_a_hostile_zip_is_refused_and_leaves_nothing(kind: str, context: Context, tmp_path: Path) -> None:
    """A zip comes from anywhere; none may fill the disk, leave its folder or run for ever."""
    make, expected = ZIPS[kind]
    make(tmp_path / "set.zip")
    make_model(context, "classify")
    with pytest.raises(DatasetError, match=expected):
        import_folder(context, "m", tmp_path / "set.zip")
    assert rows(context) == 0
    assert list((context.settings.home / "imports").iterdir()) == []
    assert sorted(f.name for f in tmp_path.iterdir()) == ["home", "set.zip"]


@pytest.mark.parametrize("maker", [voc, coco, yolo], ids=lambda m: m.__name__)
def test_a_zip_is_as_good_as_its_folder(maker: Callable[[Path], Path], context: Context, tmp_path: Path) -> None:
    """People send zips; the folder inside is found."""
    archive = zipped(maker(tmp_path / "데이터"), tmp_path / "set.zip")
    make_model(context, "detect")
    report = import_folder(context, "m", archive).report
    assert (report["imported"], report["splits"]) == (4, {"train": 2, "val": 1, "test": 1})


def test_korean_names_from_windows_come_out_as_they_were_typed(context: Context, tmp_path: Path) -> None:
    """Windows packs names in CP949 and says nothing about it; a class called ¯ßÀ would stay for ever."""
    archive = tmp_path / "set.zip"
    with zipfile.ZipFile(archive, "w") as out:
        for number in range(3):
            out.writestr(f"AAAAAA/{number}.png", photo(number))
    archive.write_bytes(archive.read_bytes().replace(b"AAAAAA", "고양이".encode("cp949")))
    make_model(context, "classify")
    assert import_folder(context, "m", archive).report["classes"] == {"고양이": 3}
