"""The label config: constant names, escaping, looks that never change."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from labeling_bridge.config import color, control, label_config
from sutdol.errors import InputError

NASTY = ['a "quoted" one', "<b>", "a & b", "it's", "숫자", "10", "2", "née", "a,b;c", "$image", "100%", "\\n"]


@pytest.mark.parametrize(
    ("task", "tag", "item", "name"),
    [
        ("classify", "Choices", "Choice", "cls"),
        ("multilabel", "Choices", "Choice", "cls"),
        ("detect", "RectangleLabels", "Label", "bbox"),
    ],
)
def test_every_task_has_the_constant_names(task, tag, item, name):
    """Label Studio accepts another data key or control name and then breaks every task."""
    root = ElementTree.fromstring(label_config(task, NASTY))
    assert root.find("Image").attrib["name"] == "image"
    assert root.find("Image").attrib["value"] == "$image"
    assert root.find("Header").attrib["value"] == "$reason"
    found = root.find(tag)
    assert (found.attrib["name"], found.attrib["toName"]) == (name, "image")
    assert control(task) == name
    assert [e.attrib["value"] for e in found.findall(item)] == NASTY


def test_one_or_many_choices_and_no_rotation():
    """A rotated box has no place in YOLO or VOC, and one image has one class in a classification."""
    assert ElementTree.fromstring(label_config("classify", ["a"])).find("Choices").attrib["choice"] == "single-radio"
    assert ElementTree.fromstring(label_config("multilabel", ["a"])).find("Choices").attrib["choice"] == "multiple"
    boxes = ElementTree.fromstring(label_config("detect", ["a"])).find("RectangleLabels")
    assert boxes.attrib["canRotate"] == "false"


def test_a_new_class_changes_nothing_for_the_old_ones():
    """Labelers press keys from memory; a class must not change its key or colour when another one arrives."""
    before = list(ElementTree.fromstring(label_config("classify", ["a", "b"])).find("Choices"))
    after = list(ElementTree.fromstring(label_config("classify", ["a", "b", "c"])).find("Choices"))
    assert [e.attrib for e in after[:2]] == [e.attrib for e in before]


def test_looks_are_distinct():
    """Two classes with one key would make the second one unreachable."""
    names = [f"c{i}" for i in range(40)]
    items = list(ElementTree.fromstring(label_config("classify", names)).find("Choices"))
    keys = [e.attrib["hotkey"] for e in items if "hotkey" in e.attrib]
    assert len(keys) == len(set(keys)) == 33
    assert len({color(i) for i in range(40)}) == 40


@pytest.mark.parametrize("classes", [[], [""], [" a"], ["a\n"], ["a\x00b"], ["ok", "\t"]])
def test_names_that_xml_cannot_carry_are_refused(classes):
    """Blanks and control characters come back changed, and then no answer matches its class."""
    with pytest.raises(InputError):
        label_config("classify", classes)
