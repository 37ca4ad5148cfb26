"""Data sets on disk, read strictly: FORMATS maps a format's name to its reader.

    folder -> reader -> Import: records (photo, label, split, group) and a report of what was left out, by file and line

A reader looks at names and annotations only; photos are opened later, by `retrain.datasets`. What cannot be understood
(a number that is none, an unknown tag, two photos of one name) is a DatasetError that names file, line and remedy, and
nothing is imported. What is understood but useless (a box without area, a photo without annotation) is left out and
reported by file and line.

Rejected: datumaro and supervision (heavy, and both overwrite labels silently when two splits hold one stem).
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from sutdol.errors import DatasetError
from sutdol.types import Box, Label, Split

SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".gif"}
OTHER_PHOTOS = {".bmp", ".tif", ".tiff", ".heic", ".avif", ".svg"}
MAX_XML_BYTES = 20_000_000
_IGNORED = {"thumbs.db", "desktop.ini", "readme.md", "readme.txt", "license", "license.txt"}


@dataclass(frozen=True)
class LeftOut:
    """One thing that was not imported; `file` is relative to the data set, `line` counts from 1, 0 for the whole file."""

    file: str
    line: int
    reason: str


@dataclass(frozen=True)
class Record:
    """One labelled photo of a data set.

    Attributes:
        name: what people call it, relative to the data set; the file of every complaint about it.
        label: the truth, boxes in pixels of the upright photo.
        path, data: where its bytes are, or the bytes; exactly one is given.
        split: as the data set says; None leaves it to the import.
        group: photos of one group (one patient, one street) go to the same split.
        declared_wh: width and height that the annotation states; compared with the photo at import.
    """

    name: str
    label: Label
    path: Path | None = None
    data: bytes | None = None
    split: Split | None = None
    group: str | None = None
    declared_wh: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if (self.path is None) == (self.data is None):
            raise DatasetError(
                f"{self.name}: expected either a path or bytes, found {'both' if self.path else 'neither'}"
            )

    def read(self) -> bytes:
        """The photo's bytes.

        Raises:
            DatasetError: the file went away or cannot be read.
        """
        if self.data is not None:
            return self.data
        assert self.path is not None
        return _read(self.path, self.name)


@dataclass
class Import:
    """What a reader found. `clipped` counts boxes that reached over the photo's edge and were cut there."""

    format: str
    records: list[Record] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    clipped: int = 0

    def leave_out(self, file: str, line: int, reason: str) -> None:
        self.left_out.append(LeftOut(file, line, reason))


def detect_format(path: Path) -> str:
    """The name of the format that `path` is in.

    Raises:
        DatasetError: no folder there, or none of the known formats; says what each looks like.
    """
    _need_folder(path)
    folders = {f.name.casefold() for f in _folders(path)}
    if "annotations" in folders and "jpegimages" in folders:
        return "voc"
    if any(_photos_in(f) or any(_photos_in(g) for g in _folders(f)) for f in _folders(path)):
        inner = [f for f in _folders(path) if {g.name.casefold() for g in _folders(f)} >= {"annotations", "jpegimages"}]
        if not inner:
            return "imagefolder"
    below = [
        f.name for f in _folders(path) if {g.name.casefold() for g in _folders(f)} >= {"annotations", "jpegimages"}
    ]
    raise DatasetError(
        f"{path.name}: expected a data set, found {', '.join(sorted(folders)[:8]) or 'no folders'}",
        hint=f"{path.name}/{below[0]} looks like Pascal VOC, import that folder"
        if below
        else "imagefolder: one folder of photos per class, also under train/ val/ test/; "
        "voc: Annotations/*.xml beside JPEGImages/",
    )


def read_imagefolder(path: Path) -> Import:
    """One folder of photos per class, the folder's name is the class; optionally under train/, val/ and test/.

    Raises:
        DatasetError: no classes, photos outside a class folder, or a mix of both layouts.
    """
    _need_folder(path)
    found = Import("imagefolder")
    top = _folders(path)
    splits = [f for f in top if f.name.casefold() in SPLIT_FOLDERS and _folders(f)]
    if splits and len(splits) != len(top):
        odd = next(f.name for f in top if f not in splits)
        raise DatasetError(
            f"{odd}: expected only train/, val/ and test/ at the top, found this folder too",
            hint="put every class folder inside a split, or none",
        )
    roots: list[tuple[Path, Split | None]] = [(f, SPLIT_FOLDERS[f.name.casefold()]) for f in splits] or [(path, None)]
    if len({split for _, split in roots}) != len(roots):
        raise DatasetError(
            f"{', '.join(f.name for f, _ in roots)}: two folders for one split", hint="merge them into one"
        )
    for root, split in roots:
        _refuse_loose_photos(root, path)
        for folder in _folders(root):
            name = unicodedata.normalize("NFC", folder.name).strip()
            for file in sorted(f for f in folder.rglob("*") if f.is_file() and not _hidden(f, folder)):
                relative = file.relative_to(path).as_posix()
                if file.suffix.lower() in PHOTOS:
                    found.records.append(Record(relative, Label(classes=[name]), path=file, split=split))
                elif file.name.casefold() not in _IGNORED:
                    found.leave_out(relative, 0, _not_a_photo(file))
    if not found.records:
        raise DatasetError(
            f"{path.name}: expected folders of photos, one per class, found no photo in any",
            hint=f"photos end in {', '.join(sorted(PHOTOS))}",
        )
    return found


def read_voc(path: Path) -> Import:
    """Pascal VOC: Annotations/*.xml beside JPEGImages/, and ImageSets/Main/{train,val,test}.txt when there are splits.

    Annotations and photos belong together by stem, whatever the case of their letters. Corners are taken as they are
    written (xmin is the left edge, xmax the right edge) and clipped to the photo. `trainval.txt` fills `train`.

    Raises:
        DatasetError: XML that cannot be read, a number that is none, an unknown tag, a stem that stands for two files or
            in two splits.
    """
    _need_folder(path)
    folders = {f.name.casefold(): f for f in _folders(path)}
    for wanted in ("Annotations", "JPEGImages"):
        if wanted.casefold() not in folders:
            raise DatasetError(f"{path.name}: expected a folder {wanted}, found {', '.join(sorted(folders)) or 'none'}")
    found = Import("voc")
    photos = _by_stem(folders["jpegimages"], path, PHOTOS)
    notes = _by_stem(folders["annotations"], path, {".xml"})
    splits = _voc_splits(folders.get("imagesets"), path, set(notes), found)
    for file in sorted(f for f in folders["jpegimages"].iterdir() if f.suffix.lower() in OTHER_PHOTOS):
        found.leave_out(file.relative_to(path).as_posix(), 0, _not_a_photo(file))
    for stem, file in notes.items():
        relative = file.relative_to(path).as_posix()
        label, declared = _voc_label(_parse_xml(_read(file, relative), relative), relative, found)
        if stem not in photos:
            found.leave_out(relative, 0, "no photo of this name in JPEGImages")
            continue
        found.records.append(
            Record(relative, label, path=photos[stem], split=splits.get(stem), declared_wh=declared),
        )
    for stem in photos.keys() - notes.keys():
        found.leave_out(photos[stem].relative_to(path).as_posix(), 0, "no annotation of this name in Annotations")
    if splits and (missing := sum(r.split is None for r in found.records)):
        found.notes.append(f"{missing} photos are in none of the split files; the import assigns them")
    if not found.records:
        raise DatasetError(
            f"{path.name}: expected annotated photos, found none", hint="names must match but for the ending"
        )
    found.left_out.sort(key=lambda entry: (entry.file, entry.line))
    return found


FORMATS: dict[str, Callable[[Path], Import]] = {"imagefolder": read_imagefolder, "voc": read_voc}


def read(path: Path, *, format: str | None = None) -> Import:
    """Read `path` in the format named, or in the one it looks like.

    Raises:
        DatasetError: an unknown format (lists the known ones), or whatever the reader finds wrong.
    """
    name = format or detect_format(path)
    if name not in FORMATS:
        raise DatasetError(f"unknown format {name!r}", hint=f"known: {', '.join(FORMATS)}")
    return FORMATS[name](path)


def clip_boxes(boxes: list[tuple[Box, int]], wh: tuple[int, int], file: str, found: Import) -> list[Box]:
    """Boxes (with their lines) cut at the edges of a photo of `wh` pixels; those left without area are reported."""
    kept = []
    for box, line in boxes:
        x1, x2 = (min(max(v, 0.0), float(wh[0])) for v in (box.x1, box.x2))
        y1, y2 = (min(max(v, 0.0), float(wh[1])) for v in (box.y1, box.y2))
        if x1 >= x2 or y1 >= y2:
            found.leave_out(file, line, f"box of {box.label!r} lies outside the photo of {wh[0]} x {wh[1]} pixels")
            continue
        if (x1, y1, x2, y2) != (box.x1, box.y1, box.x2, box.y2):
            found.clipped += 1
        kept.append(Box(box.label, x1, y1, x2, y2))
    return kept


@dataclass
class _Node:
    """One XML element with the line it begins on."""

    tag: str
    line: int
    text: str = ""
    children: list[_Node] = field(default_factory=list)

    def all(self, tag: str) -> list[_Node]:
        return [c for c in self.children if c.tag == tag]

    def one(self, tag: str, file: str) -> _Node:
        nodes = self.all(tag)
        if len(nodes) != 1:
            raise DatasetError(f"{file}:{self.line}: expected one <{tag}> in <{self.tag}>, found {len(nodes)}")
        return nodes[0]


_KNOWN_TAGS = {
    "annotation": "attributes database filename folder image object owner path segmentation segmented size source verified",
    "size": "width height depth",
    "object": "actions attributes bndbox date deleted difficult id name occluded part point polygon pose truncated viewpoint",
    "bndbox": "xmin ymin xmax ymax",
}


def _voc_label(root: _Node, file: str, found: Import) -> tuple[Label, tuple[int, int] | None]:
    if root.tag != "annotation":
        raise DatasetError(f"{file}:{root.line}: expected <annotation> as the outermost tag, found <{root.tag}>")
    _check_tags(root, file)
    declared = None
    for size in root.all("size")[:1]:
        _check_tags(size, file)
        width, height = (_number(size.one(tag, file), file) for tag in ("width", "height"))
        declared = (int(width), int(height)) if width >= 1 and height >= 1 else None
    boxes = []
    for node in root.all("object"):
        _check_tags(node, file)
        name = unicodedata.normalize("NFC", node.one("name", file).text.strip())
        if not name:
            raise DatasetError(f"{file}:{node.line}: expected a class in <name>, found nothing", hint="name the object")
        corners = node.one("bndbox", file)
        _check_tags(corners, file)
        x1, y1, x2, y2 = (_number(corners.one(tag, file), file) for tag in ("xmin", "ymin", "xmax", "ymax"))
        if x1 >= x2 or y1 >= y2:
            found.leave_out(file, corners.line, f"box of {name!r} without area: {x1:g},{y1:g} to {x2:g},{y2:g}")
            continue
        boxes.append((Box(name, x1, y1, x2, y2), corners.line))
    kept = clip_boxes(boxes, declared, file, found) if declared else [box for box, _ in boxes]
    return Label(boxes=kept), declared


def _check_tags(node: _Node, file: str) -> None:
    for child in node.children:
        if child.tag not in _KNOWN_TAGS[node.tag].split():
            raise DatasetError(
                f"{file}:{child.line}: unknown tag <{child.tag}> in <{node.tag}>",
                hint=f"correct or remove it; known: {_KNOWN_TAGS[node.tag]}",
            )


def _number(node: _Node, file: str) -> float:
    try:
        value = float(node.text.strip())
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DatasetError(
            f"{file}:{node.line}: expected a number of pixels in <{node.tag}>, found {node.text.strip()[:40]!r}",
            hint="correct the number, or remove the whole <object>",
        )
    return value


def _parse_xml(data: bytes, file: str) -> _Node:
    """A tree with line numbers. No DOCTYPE, hence no entities: nothing can expand and nothing is fetched."""
    parser = expat.ParserCreate()
    root = _Node("", 0)
    stack = [root]

    def start(tag: str, _: dict[str, str]) -> None:
        if len(stack) > 50:
            raise DatasetError(
                f"{file}:{parser.CurrentLineNumber}: expected at most 50 tags inside each other, found more"
            )
        stack[-1].children.append(_Node(tag, parser.CurrentLineNumber))
        stack.append(stack[-1].children[-1])

    def end(_: str) -> None:
        stack.pop()

    def text(data: str) -> None:
        stack[-1].text += data

    def doctype(*_: object) -> None:
        raise DatasetError(
            f"{file}:{parser.CurrentLineNumber}: a DOCTYPE is not accepted in annotations",
            hint="remove the <!DOCTYPE ...> part",
        )

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = text, doctype
    parser.buffer_text = True
    if len(data) > MAX_XML_BYTES:
        raise DatasetError(f"{file}: expected at most {MAX_XML_BYTES:,} bytes of XML, found {len(data):,}")
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise DatasetError(
            f"{file}:{error.lineno}: not readable as XML: {reason}", hint="correct or remove it"
        ) from error
    except (LookupError, ValueError) as error:
        raise DatasetError(f"{file}:1: unknown text encoding: {error}", hint="save it as UTF-8") from error
    return root.children[0]


def _voc_splits(folder: Path | None, path: Path, stems: set[str], found: Import) -> dict[str, Split]:
    main = next((f for f in _folders(folder) if f.name.casefold() == "main"), None) if folder else None
    if main is None:
        return {}
    splits: dict[str, Split] = {}
    where: dict[str, str] = {}
    listed = {f.stem.casefold(): f for f in main.iterdir() if f.suffix.lower() == ".txt"}
    for name in ("train", "val", "test", "trainval"):
        file = listed.get(name)
        if file is None:
            continue
        relative = file.relative_to(path).as_posix()
        try:
            lines = _read(file, relative).decode("utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{relative}: expected UTF-8 text", hint="save it as UTF-8") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            stem = line.strip() if _stem(line.strip()) in stems else line.split()[0]
            key = _stem(Path(stem).stem if Path(stem).suffix.lower() in PHOTOS else stem)
            if key not in stems:
                if name != "trainval":
                    found.leave_out(relative, number, f"no annotation named {stem!r}")
                continue
            if name == "trainval":
                splits.setdefault(key, "train")
                continue
            if splits.get(key, name) != name:
                raise DatasetError(
                    f"{relative}:{number}: {stem!r} stands in {where[key]} too, expected it in one split only",
                    hint="remove one of the two lines",
                )
            splits[key], where[key] = SPLIT_FOLDERS[name], f"{relative}:{number}"
    return splits


def _by_stem(folder: Path, path: Path, endings: set[str]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if not file.is_file() or file.name.startswith(".") or file.suffix.lower() not in endings:
            continue
        key = _stem(file.stem)
        if key in found:
            raise DatasetError(
                f"{file.relative_to(path).as_posix()}: {found[key].name} has the same name but for case or ending",
                hint="rename one of the two, with its annotation",
            )
        found[key] = file
    return found


def _stem(text: str) -> str:
    """Names are equal when people read them as equal: composed Unicode, case folded."""
    return unicodedata.normalize("NFC", text).casefold()


def _refuse_loose_photos(root: Path, path: Path) -> None:
    loose = _photos_in(root)
    if loose:
        raise DatasetError(
            f"{loose[0].relative_to(path).as_posix()}: expected every photo in the folder of its class, "
            f"found {len(loose)} beside the class folders",
            hint="move them into a class folder, or out of the data set",
        )


def _not_a_photo(file: Path) -> str:
    kind = file.suffix.lower() or "no ending"
    return f"not a kind of photo we read ({kind}); expected {', '.join(sorted(PHOTOS))}"


def _need_folder(path: Path) -> None:
    if not path.is_dir():
        raise DatasetError(f"{path.name}: expected a folder, found {'a file' if path.exists() else 'nothing'} there")


def _folders(path: Path) -> list[Path]:
    return sorted(f for f in path.iterdir() if f.is_dir() and not f.name.startswith((".", "__")))


def _photos_in(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in PHOTOS and not f.name.startswith("."))


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith((".", "__")) for part in file.relative_to(folder).parts)


def _read(file: Path, name: str) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{name}: cannot be read: {error.strerror}", hint="check its permissions") from error


def count_labels(records: list[Record]) -> dict[str, int]:
    """How often each class stands in the records' labels, by name."""
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.label.classes)
        counts.update(box.label for box in record.label.boxes)
    return dict(sorted(counts.items()))
