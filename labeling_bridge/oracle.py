"""A labeler who knows the answers: for the demo and for tests, in place of a person at the page.

    next task (Label Studio's own choice) -> image from the signed URL -> pixels -> truth -> submit or skip -> a JSON line

It has its own account, sees only what the page would show it, and knows an image by its pixels alone. A share of its
answers is wrong and a share are skips, by a seed. It never touches our database.

    python -m labeling_bridge.oracle --url http://127.0.0.1:8080 --project-model digits --email eve@example.org \
        --password ... --invite URL --truth truth.json --until-file stop

truth.json: {pixel_key: {"classes": [...]} or {"boxes": [{"label", "x1", "y1", "x2", "y2"}, ...]}}.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from labeling_bridge.account import UnknownOutcome, sign_up
from labeling_bridge.config import CLASSES_CONTROL
from labeling_bridge.convert import Result, label_results
from labeling_bridge.project import project_description
from labeling_bridge.studio import Studio
from sutdol import images
from sutdol.agreement import same
from sutdol.errors import StudioError
from sutdol.settings import load
from sutdol.types import Box, Label, Task

GOOD_FIT_IOU = 0.85


@dataclass(frozen=True)
class Habits:
    """How the labeler errs: shares in [0, 1] of wrong answers and of skips, drawn by `seed`."""

    wrong: float = 0.0
    skip: float = 0.0
    seed: int = 0


class Oracle:
    """One labeler at one project."""

    def __init__(self, studio: Studio, project_id: int, truth: dict[str, Label], habits: Habits) -> None:
        self._studio, self._project_id, self._truth, self._habits = studio, project_id, truth, habits
        self._rng = random.Random(habits.seed)
        self._classes = sorted({c for t in truth.values() for c in [*t.classes, *(b.label for b in t.boxes)]})

    def answers(self) -> Iterator[dict[str, Any]]:
        """Answer until Label Studio has no task left for this account; one record for each answer.

        Raises:
            StudioError: Label Studio or the image server failed.
        """
        while (task := self._studio.next_task(self._project_id)) is not None:
            yield self._answer(task)

    def _answer(self, task: dict[str, Any]) -> dict[str, Any]:
        started = time.monotonic()
        rgb = images.decode(self._studio.download(task["data"]["image"]))
        truth = self._truth.get(images.pixel_key(rgb))
        luck = self._rng.random()
        skips = truth is None or luck < self._habits.skip
        wrong = not skips and luck < self._habits.skip + self._habits.wrong
        shown = task["predictions"][0] if task.get("predictions") else None
        annotation: dict[str, Any] = {"was_cancelled": skips}
        accepted = False
        if skips:  # the page sends the pre-annotation along with a skip
            annotation["result"] = shown["result"] if shown else []
        else:
            assert truth is not None
            said = self._wrong(truth) if wrong else truth
            kind: Task = "detect" if _is_boxes(said) else "classify"
            height, width = rgb.shape[:2]
            results = label_results(said, kind, width_px=width, height_px=height)
            accepted = shown is not None and _says(shown["result"], said, width, height)
            if accepted and shown is not None:
                results = [r | {"origin": "prediction"} for r in shown["result"]]
            else:
                results = [
                    r | {"origin": "prediction-changed" if shown and shown["result"] else "manual"} for r in results
                ]
            annotation["result"] = results
            if shown is not None:
                annotation["parent_prediction"] = shown["id"]
        annotation["lead_time"] = round(time.monotonic() - started, 3)
        annotation_id = self._studio.submit(task["id"], annotation)
        return {
            "task": task["id"],
            "annotation": annotation_id,
            "sample_id": task["data"].get("sample_id"),
            "skipped": skips,
            "known": truth is not None,
            "wrong": wrong,
            "accepted": accepted,
        }

    def _wrong(self, truth: Label) -> Label:
        """Another class; for boxes one object forgotten, or one seen where nothing is."""
        if truth.classes:
            others = [c for c in self._classes if c not in truth.classes]
            return Label(classes=[self._rng.choice(others)]) if others else truth
        if truth.boxes:
            boxes = list(truth.boxes)
            boxes.pop(self._rng.randrange(len(boxes)))
            return Label(boxes=boxes)
        return Label(boxes=[Box(self._rng.choice(self._classes), 0, 0, 8, 8)]) if self._classes else truth


def account(url: str, email: str, password: str, *, invite: str = "") -> Studio:
    """The labeler's own account; signs up when there is none yet.

    Args:
        invite: the invite link; empty: asked of Label Studio with the token that the bridge keeps in the home folder.

    Raises:
        StudioError: neither log-in nor sign-up work.
    """
    studio = Studio(url, email=email, password=password)
    try:
        studio.authorization()
    except UnknownOutcome:
        studio.close()
        raise
    except StudioError:
        try:
            sign_up(invite or _invite(url), email, password)
            studio.authorization()
        except BaseException:
            studio.close()
            raise
    return studio


def read_truth(path: Path) -> dict[str, Label]:
    """The answers by pixel key."""
    return msgspec.json.decode(path.read_bytes(), type=dict[str, Label])


def main(arguments: list[str] | None = None) -> int:
    """Answer until the file of `--until-file` exists, or, without one, until nothing is left."""
    options = _parser().parse_args(arguments)
    truth = read_truth(options.truth)
    habits = Habits(wrong=options.wrong, skip=options.skip, seed=options.seed)
    description = project_description(options.project_model)
    patient = options.until_file is not None
    left = options.limit
    oracle: Oracle | None = None
    studio: Studio | None = None
    try:
        while True:
            try:
                if studio is None:
                    studio = account(options.url, options.email, options.password, invite=options.invite)
                if oracle is None and (project_id := studio.find_project(description)) is not None:
                    oracle = Oracle(studio, project_id, truth, habits)
                for record in oracle.answers() if oracle is not None else ():
                    print(msgspec.json.encode(record).decode(), flush=True)
                    left -= not record["skipped"]
                    if left <= 0:
                        return 0
            except StudioError as error:  # a server that starts late or again must not send the labeler home
                print(str(error), file=sys.stderr, flush=True)
                if not patient:
                    return 1
                oracle = None
            if not patient or options.until_file.exists():
                return 0
            time.sleep(options.pause)
    finally:
        if studio is not None:
            studio.close()


def _invite(url: str) -> str:
    settings = load()
    kept = settings.home / "label-studio.json"
    with Studio(url, key=settings.label_studio_api_key, email=settings.label_studio_email, token_file=kept) as bridge:
        return bridge.invite_url()


def _is_boxes(label: Label) -> bool:
    return not label.classes


def _says(results: list[Result], label: Label, width_px: int, height_px: int) -> bool:
    """Whether a pre-annotation says just this, so that a person would accept it; boxes must fit well."""
    if any(r.get("from_name") == CLASSES_CONTROL for r in results) or label.classes:
        return {c for r in results for c in r["value"].get("choices", [])} == set(label.classes)
    boxes = []
    for result in results:
        v = result["value"]
        x1, y1 = v["x"] / 100 * width_px, v["y"] / 100 * height_px
        x2, y2 = x1 + v["width"] / 100 * width_px, y1 + v["height"] / 100 * height_px
        boxes.append(Box(v["rectanglelabels"][0], x1, y1, x2, y2))
    return same(Label(boxes=boxes), label, least_iou=GOOD_FIT_IOU)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m labeling_bridge.oracle", description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True, help="Label Studio")
    parser.add_argument("--project-model", required=True, help="the model whose project to work on")
    parser.add_argument("--email", required=True)
    parser.add_argument("--password", required=True)
    parser.add_argument("--invite", default="", help="invite link, for an account that does not exist yet")
    parser.add_argument("--truth", required=True, type=Path, help="JSON: pixel key -> label")
    parser.add_argument("--wrong", type=float, default=0.0, help="share of wrong answers")
    parser.add_argument("--skip", type=float, default=0.0, help="share of skips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=sys.maxsize, help="go home after so many labels (skips are none)")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds between two looks when nothing is left")
    parser.add_argument("--until-file", type=Path, help="work until this file exists")
    return parser


if __name__ == "__main__":
    sys.exit(main())
