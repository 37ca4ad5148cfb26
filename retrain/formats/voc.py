"""Pascal VOC: Annotations/*.xml beside JPEGImages/, and ImageSets/Main/{train,val,test}.txt when there are splits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat
from xml.sax.saxutils import escape

from retrain.formats.records import (
    PHOTOS,
    SPLIT_FOLDERS,
    Import,
    Photo,
    Record,
    by_stem,
    class_name,
    clip_boxes,
    folders,
    leave_out_other_photos,
    need_folder,
    put,
    read_file,
    read_text,
    stem_key,
)
from sutdol.errors import DatasetError
from sutdol.types import Box, Label, Split

MAX_XML_BYTES = 20_000_000


def read_voc(path: Path, found: Import) -> Iterator[Record]:
    """Annotations and photos belong together by stem, whatever the case of their letters. Corners are taken as they are
    written (xmin is the left edge, xmax the right edge) and clipped to the photo. `trainval.txt` fills `train`.

    Raises:
        DatasetError: XML that cannot be read, a number that is none, an unknown tag, a stem that stands for two files or
            in two splits.
    """
    need_folder(path)
    below = {f.name.casefold(): f for f in folders(path)}
    for wanted in ("Annotations", "JPEGImages"):
        if wanted.casefold() not in below:
            raise DatasetError(f"{path.name}: expected a folder {wanted}, found {', '.join(sorted(below)) or 'none'}")
    photos = by_stem(below["jpegimages"], path, PHOTOS)
    notes = by_stem(below["annotations"], path, {".xml"})
    splits = _voc_splits(below.get("imagesets"), path, set(notes), found)
    leave_out_other_photos(below["jpegimages"], path, found)
    found.expected = len(notes)
    seen = unsplit = 0
    for stem, file in notes.items():
        relative = file.relative_to(path).as_posix()
        label, declared = _voc_label(_parse_xml(read_file(file, relative), relative), relative, found)
        if stem not in photos:
            found.leave_out(relative, 0, "no photo of this name in JPEGImages")
            continue
        seen += 1
        unsplit += stem not in splits
        yield Record(relative, label, path=photos[stem], split=splits.get(stem), declared_wh=declared)
    for stem in photos.keys() - notes.keys():
        found.leave_out(photos[stem].relative_to(path).as_posix(), 0, "no annotation of this name in Annotations")
    if splits and unsplit:
        found.notes.append(f"{unsplit} photos are in none of the split files; the import assigns them")
    if not seen:
        raise DatasetError(
            f"{path.name}: expected annotated photos, found none", hint="names must match but for the ending"
        )


class VocWriter:
    """Annotations/STEM.xml, JPEGImages/STEM.SUFFIX and ImageSets/Main/SPLIT.txt; corners as they are, without an offset."""

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._folder, self._classes = folder, list(classes)
        (folder / "ImageSets" / "Main").mkdir(parents=True)

    def add(self, photo: Photo) -> None:
        name = f"{photo.stem}{photo.suffix}"
        put(self._folder / "JPEGImages" / name, photo.read())
        size = f"<size><width>{photo.wh[0]}</width><height>{photo.wh[1]}</height><depth>3</depth></size>"
        lines = ["<annotation>", f"<filename>{escape(name)}</filename>", size]
        for box in photo.label.boxes:
            values = zip(_CORNERS, (box.x1, box.y1, box.x2, box.y2), strict=True)
            corners = "".join(f"<{tag}>{_shown(value)}</{tag}>" for tag, value in values)
            lines.append(f"<object><name>{escape(box.label)}</name><bndbox>{corners}</bndbox></object>")
        put(self._folder / "Annotations" / f"{photo.stem}.xml", "\n".join([*lines, "</annotation>\n"]).encode())
        with (self._folder / "ImageSets" / "Main" / f"{photo.split}.txt").open("a", encoding="utf-8") as file:
            file.write(f"{photo.stem}\n")

    def close(self) -> None:
        """The class list as CVAT and datumaro want it beside a VOC folder; without it they know the twenty of 2012 only."""
        lines = ["# label:color_rgb:parts:actions", *(f"{name}:::" for name in self._classes)]
        put(self._folder / "labelmap.txt", ("\n".join(lines) + "\n").encode())


_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)


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
        name = class_name(node.one("name", file).text, f"{file}:{node.line}")
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
    main = next((f for f in folders(folder) if f.name.casefold() == "main"), None) if folder else None
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
        lines = read_text(file, relative).splitlines()
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            stem = line.strip() if stem_key(line.strip()) in stems else line.split()[0]
            key = stem_key(Path(stem).stem if Path(stem).suffix.lower() in PHOTOS else stem)
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
