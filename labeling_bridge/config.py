"""A model's task and class list become Label Studio's label config.

    task, classes -> XML with the constant names CLASSES_CONTROL / BOXES_CONTROL, OBJECT, `$image`, `$reason`

A class keeps its colour and hotkey for ever, because both depend on its index alone and indices are never reused. A retired
class is hidden, where Label Studio allows it (`project.ensure_project` asks).

Errors: InputError for a class name that XML cannot carry.
"""

from __future__ import annotations

import colorsys
from collections.abc import Collection
from xml.sax.saxutils import escape, quoteattr

from sutdol.errors import InputError
from sutdol.types import Task

CLASSES_CONTROL = "cls"
BOXES_CONTROL = "bbox"
OBJECT = "image"
HOTKEYS = "1234567890qwetasdfgzxcvbyiopjklnm"
"""In the order in which Label Studio gives them out itself; later classes have none."""
_GOLDEN_ANGLE = 0.618033988749895


def control(task: Task) -> str:
    """The name of the control tag that carries the answers of such a task."""
    return BOXES_CONTROL if task == "detect" else CLASSES_CONTROL


def label_config(task: Task, classes: list[str], *, hidden: Collection[str] = ()) -> str:
    """The label config of a model; equal input gives equal text, so a change is seen by comparing.

    Args:
        classes: in the order of the model's class list; at least one.
        hidden: classes to leave out; the others keep colour and hotkey.

    Raises:
        InputError: no classes, an empty name, or a control character in one.
    """
    if not classes:
        raise InputError("label config: expected at least one class, found none")
    for name in classes:
        if not name.strip() or name != name.strip() or any(not _allowed(c) for c in name):
            raise InputError(f"class name {name!r}: expected printable text without blanks around it")
    if task == "detect":
        control_tag = "\n".join(
            [
                f'  <RectangleLabels name="{BOXES_CONTROL}" toName="{OBJECT}" canRotate="false">',
                *(f"    <Label value={quoteattr(c)}{_look(i)}/>" for i, c in enumerate(classes) if c not in hidden),
                "  </RectangleLabels>",
            ]
        )
    else:
        choice = "multiple" if task == "multilabel" else "single-radio"
        control_tag = "\n".join(
            [
                f'  <Choices name="{CLASSES_CONTROL}" toName="{OBJECT}" choice="{choice}" showInLine="true">',
                *(f"    <Choice value={quoteattr(c)}{_look(i)}/>" for i, c in enumerate(classes) if c not in hidden),
                "  </Choices>",
            ]
        )
    return (
        "<View>\n"
        '  <Header value="$reason" size="5"/>\n'
        f'  <Image name="{OBJECT}" value="$image" zoom="true"/>\n'
        f"{control_tag}\n"
        "</View>"
    )


_ASK = {
    "classify": "Choose the one class that fits the image.",
    "multilabel": "Choose every class that fits the image.",
    "detect": "Draw a box around every object, each as tight as you can. No object: submit without a box, that is an answer.",
}


def instructions(task: Task, classes: list[str], *, hidden: Collection[str] = ()) -> str:
    """What the project says to labelers, as HTML: what to do, which key is which class, what the header means."""
    keys = ", ".join(
        f"<b>{HOTKEYS[i]}</b> {escape(c)}" for i, c in enumerate(classes) if c not in hidden and i < len(HOTKEYS)
    )
    return (
        f"<p>{_ASK[task]}</p>\n<p>Keys: {keys}.</p>\n"
        "<p>The line above the image says why you are asked. Where an answer is filled in, it is the model's: correct what is "
        "wrong. Some tasks show none on purpose.</p>\n"
        "<p>Skip what nobody could say; after some people have skipped it, nobody is asked again.</p>"
    )


def color(index: int) -> str:
    """The colour of class `index`, `#rrggbb`; neighbours differ strongly, because hues advance by the golden ratio."""
    red, green, blue = colorsys.hls_to_rgb((index * _GOLDEN_ANGLE) % 1.0, 0.45 + 0.1 * (index % 2), 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"


def _look(index: int) -> str:
    hotkey = f' hotkey="{HOTKEYS[index]}"' if index < len(HOTKEYS) else ""
    return f' background="{color(index)}"{hotkey}'


def _allowed(character: str) -> bool:
    return character.isprintable()
