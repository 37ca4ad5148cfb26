"""A Label Studio 1.23.2 in 20 ms: the routes that the bridge, its labelers and Label Studio's own page use, and its traps.

    FakeLabelStudio().start() -> url        a real port, threads, state in memory that survives kill() and start()
    fake.faults.lose_answers = .2           switches: probabilities, drawn by `faults.seed`

It passes the same suite as the real server (the parametrised fixture `studio_server`), and it behaves as badly where the real
one does: an import without a key that makes it once, patches of the label config that drop annotated classes, a webhook that
is sent once inside the labeler's request, skips that carry the pre-annotation, a page past the end that is a 404, tabs that go
with the last task. What it lacks: permissions, other people's projects, drafts, exports but JSON, every page but log-in and
sign-up.

Every request is one transaction under one lock: killed in the middle of it, it has happened or not.

Longer than the ceiling: one server with one state, and every route changes it; split, the lock would have to travel.
"""

from __future__ import annotations

import json
import random
import re
import socket
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit
from xml.etree import ElementTree

WEBHOOK_TIMEOUT_S = 1.0
LOCK_S = 3600.0
Row = dict[str, Any]


@dataclass
class Faults:
    """What goes wrong, each as a probability in [0, 1] for one request (or one event)."""

    lose_predictions: float = 0.0
    """An import is answered 201 and keeps neither predictions nor imported annotations (SQLite under load)."""
    lose_answers: float = 0.0
    """A write happens, and the connection ends without an answer (a time-out after the commit)."""
    late: float = 0.0
    """An import is not answered, and happens `late_s` after the client gave up."""
    late_s: float = 0.15
    drop_webhooks: float = 0.0
    fail_before: float = 0.0
    """500, nothing was done."""
    fail_after: float = 0.0
    """500, and it was done all the same."""
    locked: float = 0.0
    """500 `database is locked`, nothing was done."""
    slow: float = 0.0
    slow_s: float = 0.05
    seed: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    """How often each has struck."""

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def strikes(self, name: str) -> bool:
        chance = getattr(self, name)
        struck = chance > 0 and self._rng.random() < chance
        if struck:
            self.counts[name] = self.counts.get(name, 0) + 1
        return struck

    def end(self) -> None:
        """From now on nothing goes wrong."""
        for name in ("lose_predictions", "lose_answers", "late", "drop_webhooks", "fail_before", "fail_after"):
            setattr(self, name, 0.0)
        self.locked = self.slow = 0.0


class Refused(Exception):
    """An answer other than 200: status and body."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


class FakeLabelStudio:
    """The server: `start`, `kill`, and the state for tests that look behind it."""

    def __init__(self, port: int, email: str, password: str) -> None:
        self.port, self.url = port, f"http://127.0.0.1:{port}"
        self.faults = Faults()
        self.lock = threading.RLock()
        self.users: dict[int, Row] = {}
        self.tokens: dict[str, int] = {}
        """Personal access tokens -> user."""
        self.access: dict[str, int] = {}
        self.sessions: dict[str, int] = {}
        self.projects: dict[int, Row] = {}
        self.tasks: dict[int, Row] = {}
        self.annotations: dict[int, Row] = {}
        self.predictions: dict[int, Row] = {}
        self.views: dict[int, Row] = {}
        self.hooks: dict[int, Row] = {}
        self.uploads: dict[int, tuple[str, bytes]] = {}
        self.locks: dict[int, tuple[int, float]] = {}
        """Task -> (user, until)."""
        self.requests: list[str] = []
        self._last_id = 0
        self._last_stamp = ""
        self._invite = "fake-invite"
        self._server: _Server | None = None
        self._timers: list[threading.Timer] = []
        self.add_user(email, password)

    # ---- the process

    def start(self) -> None:
        self._server = _Server(("127.0.0.1", self.port), _Handler)
        self._server.fake = self
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def kill(self) -> None:
        """kill -9: every connection ends, what was committed stays."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.hang_up()

    # ---- state

    def add_user(self, email: str, password: str) -> int:
        user_id = self.new_id()
        self.users[user_id] = {"id": user_id, "email": email, "password": password}
        return user_id

    def new_id(self) -> int:
        self._last_id += 1
        return self._last_id

    def stamp(self) -> str:
        """Now, as Label Studio writes it; never the same text twice."""
        moment = datetime.now(UTC)
        while (text := moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")) <= self._last_stamp:
            moment = datetime.now(UTC)
        self._last_stamp = text
        return text

    def of_task(self, rows: dict[int, Row], task_id: int) -> list[Row]:
        return [row for row in rows.values() if row["task"] == task_id]

    def touch(self, task: Row) -> None:
        """Bring a task's stamp and its `is_labeled` up to date."""
        task["updated_at"] = self.stamp()
        project = self.projects[task["project"]]
        mine = self.of_task(self.annotations, task["id"])
        ignored = project["skip_queue"] == "IGNORE_SKIPPED"
        counted = [a for a in mine if ignored or not a["was_cancelled"]]
        task["is_labeled"] = len(counted) >= task["overlap"]

    def shown_task(self, task: Row, user: int = 0) -> Row:
        """A task with everything."""
        annotations = self.of_task(self.annotations, task["id"])
        predictions = self.of_task(self.predictions, task["id"])
        version = self.projects[task["project"]]["model_version"]
        scores = [p["score"] or 0.0 for p in predictions if p["model_version"] == version]
        done = [a["created_at"] for a in annotations] if task["is_labeled"] else []
        return task | {
            "annotations": annotations,
            "predictions": predictions,
            "total_annotations": sum(not a["was_cancelled"] for a in annotations),
            "cancelled_annotations": sum(a["was_cancelled"] for a in annotations),
            "total_predictions": len(predictions),
            "predictions_score": sum(scores) / len(scores) if scores else None,
            "completed_at": max(done, default=None),
        }

    def add_prediction(self, project_id: int, task_id: int, body: Row) -> None:
        project = self.projects[project_id]
        row = {
            "id": self.new_id(),
            "task": task_id,
            "project": project_id,
            "model_version": body.get("model_version") or "undefined",
            "score": body.get("score"),
            "result": body.get("result", []),
            "created_at": self.stamp(),
        }
        self.predictions[row["id"]] = row
        self.touch(self.tasks[task_id])
        project["counts"] += 1

    def add_annotation(self, task: Row, user_id: int, body: Row) -> Row:
        now = self.stamp()
        row = {
            "id": self.new_id(),
            "task": task["id"],
            "project": task["project"],
            "completed_by": body.get("completed_by", user_id),
            "updated_by": user_id,
            "result": body.get("result", []),
            "was_cancelled": bool(body.get("was_cancelled")),
            "ground_truth": bool(body.get("ground_truth")),
            "lead_time": body.get("lead_time"),
            "parent_prediction": body.get("parent_prediction"),
            "created_at": now,
            "updated_at": now,
        }
        self.annotations[row["id"]] = row
        self.locks.pop(task["id"], None)
        self.touch(task)
        return row

    def delete_tasks(self, task_ids: list[int]) -> None:
        projects = {self.tasks[i]["project"] for i in task_ids if i in self.tasks}
        for task_id in task_ids:
            for rows in (self.annotations, self.predictions):
                for row in self.of_task(rows, task_id):
                    del rows[row["id"]]
            self.tasks.pop(task_id, None)
            self.locks.pop(task_id, None)
        for project_id in projects:
            if all(t["project"] != project_id for t in self.tasks.values()):
                self.views = {k: v for k, v in self.views.items() if v["project"] != project_id}

    def later(self, seconds: float, project_id: int, body: Any) -> None:
        def happen() -> None:
            with self.lock:
                if project_id in self.projects:
                    _import(self, project_id, body)

        timer = threading.Timer(seconds, happen)
        timer.daemon = True
        self._timers.append(timer)
        timer.start()

    def settle(self) -> None:
        """Return when every late import has happened."""
        for timer in self._timers:
            timer.join()

    # ---- webhooks

    def tell(self, event: str, project_id: int, payload: Row) -> list[tuple[str, bytes, dict[str, str]]]:
        """What is to be sent for an event; sent after the commit, inside the labeler's request."""
        found = []
        for hook in self.hooks.values():
            wanted = hook["send_for_all_actions"] or event in hook["actions"]
            if hook["project"] == project_id and hook["is_active"] and wanted:
                shown = {"id": project_id, "description": self.projects[project_id]["description"]}
                body = {"action": event, **payload, "project": shown}
                headers = {"Content-Type": "application/json"} | hook["headers"]
                found.append((hook["url"], json.dumps(body).encode(), headers))
        return found


# ---- what the routes do; each gets (fake, user id, query, body, ids of the path)


def _project(fake: FakeLabelStudio, project_id: int) -> Row:
    if project_id not in fake.projects:
        raise Refused(404, {"detail": "No Project matches the given query."})
    return fake.projects[project_id]


def _task(fake: FakeLabelStudio, task_id: int) -> Row:
    if task_id not in fake.tasks:
        raise Refused(404, {"detail": "No Task matches the given query."})
    return fake.tasks[task_id]


def _classes(config: str) -> set[str]:
    tree = ElementTree.fromstring(config)
    return {e.attrib["value"] for e in tree.iter() if e.tag in ("Choice", "Label") and "value" in e.attrib}


def _controls(config: str) -> set[tuple[str, str]]:
    tree = ElementTree.fromstring(config)
    return {(e.attrib["name"], e.tag) for e in tree.iter() if e.tag in ("Choices", "RectangleLabels")}


def _chosen(annotation: Row) -> list[str]:
    found = []
    for region in annotation["result"]:
        value = region.get("value", {})
        found += value.get("choices", []) + value.get("rectanglelabels", [])
    return found


def projects_list(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    size, page = int(query.get("page_size", 30)), int(query.get("page", 1))
    rows = sorted(fake.projects.values(), key=lambda p: -p["id"])
    part = rows[(page - 1) * size : page * size]
    if page > 1 and not part:
        raise Refused(404, {"detail": "Invalid page."})
    return {"count": len(rows), "results": part}


def projects_create(fake: FakeLabelStudio, user: int, query: Row, body: Row) -> Any:
    if len(body.get("title", "")) < 3:
        raise Refused(400, {"validation_errors": {"title": ["Ensure this field has at least 3 characters."]}})
    known = {
        "id": fake.new_id(),
        "title": "",
        "description": "",
        "label_config": "<View></View>",
        "sampling": "Sequential sampling",
        "maximum_annotations": 1,
        "model_version": "",
        "skip_queue": "REQUEUE_FOR_OTHERS",
        "show_collab_predictions": True,
        "expert_instruction": "",
        "show_instruction": False,
        "created_by": {"id": user},
        "counts": 0,
    }
    fake.projects[known["id"]] = known | body
    raise Refused(201, fake.projects[known["id"]])


def project_get(fake: FakeLabelStudio, user: int, query: Row, body: Any, project_id: int) -> Any:
    return _project(fake, project_id)


def project_patch(fake: FakeLabelStudio, user: int, query: Row, body: Row, project_id: int) -> Any:
    project = _project(fake, project_id)
    if "label_config" in body:
        answered = [a for a in fake.annotations.values() if a["project"] == project_id]
        if answered and _controls(body["label_config"]) != _controls(project["label_config"]):
            raise Refused(400, {"detail": "Created annotations are incompatible with provided labeling schema"})
    if body.get("model_version"):
        versions = {p["model_version"] for p in fake.predictions.values() if p["project"] == project_id}
        if body["model_version"] not in versions:
            text = "Model version doesn't exist either as live model or as static predictions."
            raise Refused(400, {"validation_errors": {"model_version": [text]}})
    project.update(body)
    if "maximum_annotations" in body:
        for task in fake.tasks.values():
            if task["project"] == project_id:
                task["overlap"] = body["maximum_annotations"]
                fake.touch(task)
    return Sent(200, project, fake.tell("PROJECT_UPDATED", project_id, {}))


def project_delete(fake: FakeLabelStudio, user: int, query: Row, body: Any, project_id: int) -> Any:
    _project(fake, project_id)
    fake.delete_tasks([t["id"] for t in fake.tasks.values() if t["project"] == project_id])
    del fake.projects[project_id]
    fake.hooks = {k: v for k, v in fake.hooks.items() if v["project"] != project_id}
    raise Refused(204, None)


def project_validate(fake: FakeLabelStudio, user: int, query: Row, body: Row, project_id: int) -> Any:
    project = _project(fake, project_id)
    mine = [a for a in fake.annotations.values() if a["project"] == project_id]
    if mine and _controls(body["label_config"]) != _controls(project["label_config"]):
        raise Refused(400, {"validation_errors": {"label_config": ["These fields are not present in the data"]}})
    names = _classes(body["label_config"])
    gone = [name for a in mine if not a["was_cancelled"] for name in _chosen(a) if name not in names]
    if gone:
        text = f"These labels still exist in annotations: {gone[0]} ({gone.count(gone[0])} annotation)"
        raise Refused(400, {"validation_errors": {"label_config": [text]}})
    return {}


def _import(fake: FakeLabelStudio, project_id: int, tasks: list[Row]) -> Row:
    if not isinstance(tasks, list) or not tasks:
        raise Refused(400, {"validation_errors": {"non_field_errors": ["Cannot import empty list of tasks"]}})
    project = _project(fake, project_id)
    for task in tasks:
        if "image" not in (task.get("data") or {}):
            raise Refused(400, {"validation_errors": {"non_field_errors": ['"image" key is expected in task data']}})
    lost, ids, predictions, annotations = fake.faults.strikes("lose_predictions"), [], 0, 0
    for body in tasks:
        task_id = fake.new_id()
        fake.tasks[task_id] = {
            "id": task_id,
            "project": project_id,
            "data": body["data"],
            "meta": body.get("meta", {}),
            "overlap": project["maximum_annotations"],
            "is_labeled": False,
            "created_at": fake.stamp(),
            "updated_at": fake.stamp(),
        }
        ids.append(task_id)
        if lost:
            continue
        for prediction in body.get("predictions", []):
            fake.add_prediction(project_id, task_id, prediction)
            predictions += 1
            project["model_version"] = project["model_version"] or prediction.get("model_version", "")
        for annotation in body.get("annotations", []):
            author = annotation.get("completed_by")
            if author is not None and author not in fake.users:
                text = f"Import data contains completed_by={author} which is not a valid annotator's email or ID"
                raise Refused(400, {"validation_errors": {"non_field_errors": [text]}})
            annotation = {k: v for k, v in annotation.items() if k != "completed_by" or v is not None}
            truth = {"ground_truth": True}  # what Label Studio takes an import for unless told otherwise
            row = fake.add_annotation(fake.tasks[task_id], project["created_by"]["id"], truth | annotation)
            row["updated_by"], row["import_id"] = None, annotation.get("id")
            annotations += 1
    counts = {"task_count": len(ids), "annotation_count": annotations, "prediction_count": predictions}
    return counts | {"duration": 0.01, "task_ids": ids}


def tasks_import(fake: FakeLabelStudio, user: int, query: Row, body: Any, project_id: int) -> Any:
    _project(fake, project_id)
    if isinstance(body, bytes):
        return _upload(fake, project_id, body)
    raise Refused(201, _import(fake, project_id, body))


def _upload(fake: FakeLabelStudio, project_id: int, body: bytes) -> Any:
    """multipart/form-data with files; what Label Studio does with `commit_to_project=false`."""
    boundary = body.split(b"\r\n", 1)[0]
    ids = []
    for part in body.split(boundary)[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        name = re.search(rb'filename="([^"]+)"', head)
        if name:
            upload_id = fake.new_id()
            path = f"upload/{project_id}/{upload_id:08x}-{name[1].decode()}"
            fake.uploads[upload_id] = (path, data.removesuffix(b"\r\n"))
            ids.append(upload_id)
    if len(ids) > 100:
        raise Refused(500, {"detail": "The number of files exceeded settings.DATA_UPLOAD_MAX_NUMBER_FILES."})
    raise Refused(201, {"file_upload_ids": ids, "could_be_tasks_list": False, "task_count": len(ids)})


def upload_get(fake: FakeLabelStudio, user: int, query: Row, body: Any, upload_id: int) -> Any:
    if upload_id not in fake.uploads:
        raise Refused(404, {"detail": "Not found."})
    return {"id": upload_id, "file": fake.uploads[upload_id][0]}


def predictions_import(fake: FakeLabelStudio, user: int, query: Row, body: list[Row], project_id: int) -> Any:
    _project(fake, project_id)
    for row in body:
        task = fake.tasks.get(row["task"])
        if task is None or task["project"] != project_id:
            raise Refused(400, {"validation_errors": {"task": ["not in the project"]}})
    for row in body:
        fake.add_prediction(project_id, row["task"], row)
    raise Refused(201, {"created": len(body)})


def project_export(fake: FakeLabelStudio, user: int, query: Row, body: Any, project_id: int) -> Any:
    _project(fake, project_id)
    only = query.get("download_all_tasks") != "true"
    rows = [fake.shown_task(t) for t in sorted(fake.tasks.values(), key=lambda t: t["id"])]
    return [r for r in rows if r["project"] == project_id and (r["annotations"] or not only)]


def _matches(task: Row, item: Row) -> bool:
    name = item["filter"].removeprefix("filter:tasks:")
    found = task["data"].get(name[5:]) if name.startswith("data.") else task.get(name)
    value, operator = item["value"], item["operator"]
    if operator == "in_list":
        return found in value
    if operator == "equal":
        return found == value
    if operator == "greater":
        return str(found) > str(value) if item["type"] == "Datetime" else found > value
    if operator == "empty":
        return (found is None) == (str(value).lower() == "true")
    raise Refused(500, {"detail": f"operator {operator}"})


def tasks_list(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    project_id = int(query.get("project", 0))
    if "view" in query:
        view = fake.views.get(int(query["view"]))
        if view is None:
            raise Refused(404, {"detail": "No View matches the given query."})
        project_id, wanted = view["project"], view["data"]
    else:
        wanted = json.loads(query.get("query", "{}"))
    _project(fake, project_id)
    rows = [fake.shown_task(t) for t in fake.tasks.values() if t["project"] == project_id]
    rows = [r for r in rows if all(_matches(r, i) for i in wanted.get("filters", {}).get("items", []))]
    rows.sort(key=lambda r: r["id"])
    for order in reversed(wanted.get("ordering", [])):
        name = order.lstrip("-").removeprefix("tasks:")
        if name == "predictions_score" and all(t["project"] != project_id for t in fake.tasks.values()):
            raise Refused(500, {"detail": "ordering nothing by score"})
        # Nothing stands last, whatever the direction.
        rows.sort(key=lambda r: r[name] if r[name] is not None else 9e9, reverse=order.startswith("-"))
    size, page = int(query.get("page_size", 100)), int(query.get("page", 1))
    part = rows[(page - 1) * size : page * size]
    if page > 1 and not part:
        raise Refused(404, {"detail": "Invalid page."})
    if query.get("include"):
        names = query["include"].split(",")
        part = [{name: row[name] for name in names if name in row} for row in part]
    elif query.get("fields") != "all":
        part = [row | {"annotations": [], "predictions": []} for row in part]
    return {"total": len(rows), "tasks": part}


def task_get(fake: FakeLabelStudio, user: int, query: Row, body: Any, task_id: int) -> Any:
    return fake.shown_task(_task(fake, task_id))


def task_patch(fake: FakeLabelStudio, user: int, query: Row, body: Row, task_id: int) -> Any:
    task = _task(fake, task_id)
    task.update({k: v for k, v in body.items() if k in ("data", "overlap", "is_labeled", "meta")})
    task["updated_at"] = fake.stamp()  # `is_labeled` is not computed anew, whatever the overlap says
    return fake.shown_task(task)


def task_delete(fake: FakeLabelStudio, user: int, query: Row, body: Any, task_id: int) -> Any:
    _task(fake, task_id)
    fake.delete_tasks([task_id])
    raise Refused(204, None)


def annotation_create(fake: FakeLabelStudio, user: int, query: Row, body: Row, task_id: int) -> Any:
    task = _task(fake, task_id)
    row = fake.add_annotation(task, user, body)
    shown = {k: v for k, v in fake.shown_task(task).items() if k not in ("annotations", "predictions")}
    sent = fake.tell("ANNOTATION_CREATED", task["project"], {"annotation": row, "task": shown})
    return Sent(201, row, sent)


def annotation_patch(fake: FakeLabelStudio, user: int, query: Row, body: Row, annotation_id: int) -> Any:
    row = fake.annotations.get(annotation_id)
    if row is None:
        raise Refused(404, {"detail": "No Annotation matches the given query."})
    row.update({k: v for k, v in body.items() if k in ("result", "was_cancelled", "ground_truth", "lead_time")})
    row["updated_by"], row["updated_at"] = user, fake.stamp()
    task = fake.tasks[row["task"]]
    fake.touch(task)
    shown = {k: v for k, v in fake.shown_task(task).items() if k not in ("annotations", "predictions")}
    return Sent(200, row, fake.tell("ANNOTATION_UPDATED", task["project"], {"annotation": row, "task": shown}))


def annotation_delete(fake: FakeLabelStudio, user: int, query: Row, body: Any, annotation_id: int) -> Any:
    row = fake.annotations.pop(annotation_id, None)
    if row is None:
        raise Refused(404, {"detail": "No Annotation matches the given query."})
    fake.touch(fake.tasks[row["task"]])
    sent = fake.tell("ANNOTATIONS_DELETED", row["project"], {"annotations": [{"id": annotation_id}]})
    return Sent(204, None, sent)


def prediction_patch(fake: FakeLabelStudio, user: int, query: Row, body: Row, prediction_id: int) -> Any:
    row = fake.predictions.get(prediction_id)
    if row is None:
        raise Refused(404, {"detail": "No Prediction matches the given query."})
    row.update({k: v for k, v in body.items() if k in ("score", "result", "model_version")})
    return row


def prediction_delete(fake: FakeLabelStudio, user: int, query: Row, body: Any, prediction_id: int) -> Any:
    fake.predictions.pop(prediction_id, None)
    raise Refused(204, None)


def views_list(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    return [v for v in fake.views.values() if v["project"] == int(query["project"])]


def views_create(fake: FakeLabelStudio, user: int, query: Row, body: Row) -> Any:
    _project(fake, body["project"])
    row = {"id": fake.new_id(), "project": body["project"], "data": body.get("data", {}), "user": user}
    fake.views[row["id"]] = row
    raise Refused(201, row)


def view_patch(fake: FakeLabelStudio, user: int, query: Row, body: Row, view_id: int) -> Any:
    if view_id not in fake.views:
        raise Refused(404, {"detail": "No View matches the given query."})
    fake.views[view_id].update(body)
    return fake.views[view_id]


def hooks_list(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    wanted = query.get("project")
    return [h for h in fake.hooks.values() if wanted is None or h["project"] == int(wanted)]


def hooks_create(fake: FakeLabelStudio, user: int, query: Row, body: Row) -> Any:
    host = urlsplit(body["url"]).hostname or ""
    if "." not in host and host != "localhost":
        raise Refused(400, {"validation_errors": {"url": ["Enter a valid URL."]}})
    if host.startswith(("10.", "192.168.", "169.254.")):
        raise Refused(403, {"detail": "URL resolves to a reserved network address"})
    known = {"send_payload": True, "send_for_all_actions": True, "actions": [], "headers": {}, "is_active": True}
    row = known | body | {"id": fake.new_id()}
    fake.hooks[row["id"]] = row
    raise Refused(201, row)


def hook_patch(fake: FakeLabelStudio, user: int, query: Row, body: Row, hook_id: int) -> Any:
    fake.hooks[hook_id].update(body)
    return fake.hooks[hook_id]


def actions(fake: FakeLabelStudio, user: int, query: Row, body: Row) -> Any:
    project_id = int(query["project"])
    project = _project(fake, project_id)
    mine = [t for t in fake.tasks.values() if t["project"] == project_id]
    if query["id"] == "next_task":
        return _next_task(fake, user, project, mine)
    chosen = body.get("selectedItems", {})
    ids = set(chosen.get("included", [])) if not chosen.get("all") else {t["id"] for t in mine}
    ids -= set(chosen.get("excluded", []))
    items = body.get("filters", {}).get("items", [])
    tasks = [t for t in mine if t["id"] in ids and all(_matches(fake.shown_task(t), i) for i in items)]
    if query["id"] == "delete_tasks":
        fake.delete_tasks([t["id"] for t in tasks])
        return {"processed_items": len(tasks)}
    if query["id"] == "predictions_to_annotations":
        made = []
        for task in tasks:
            for prediction in fake.of_task(fake.predictions, task["id"]):
                if prediction["model_version"] == project["model_version"]:
                    body = {"result": prediction["result"], "parent_prediction": prediction["id"]}
                    made.append(fake.add_annotation(task, user, body) | {})
                    fake.annotations[made[-1]["id"]]["updated_by"] = None
        sent = fake.tell("ANNOTATIONS_CREATED", project_id, {"annotation": made, "task": tasks})
        return Sent(200, {"response": f"Created {len(made)} annotations"}, sent)
    raise Refused(404, {"detail": f"action {query['id']}"})


def _next_task(fake: FakeLabelStudio, user: int, project: Row, tasks: list[Row]) -> Row:
    now = time.monotonic()
    seen = {a["task"] for a in fake.annotations.values() if a["completed_by"] == user}
    open_ = [t for t in tasks if not t["is_labeled"] and t["id"] not in seen]
    held = {i: u for i, (u, until) in fake.locks.items() if until > now}
    kept = [t for t in open_ if held.get(t["id"]) == user]
    if kept:
        return _stream(fake, project, kept[0])
    free = []
    for task in open_:
        others = [a for a in fake.of_task(fake.annotations, task["id"]) if not a["was_cancelled"]]
        if len(others) + (task["id"] in held) < task["overlap"]:
            free.append(task)

    def score(task: Row) -> tuple[bool, float, int]:
        rows = fake.of_task(fake.predictions, task["id"])
        current = any(p["model_version"] == project["model_version"] for p in rows)
        return not current, min((p["score"] or 0.0 for p in rows), default=9e9), task["id"]

    if not free:
        raise Refused(404, {"detail": f"There are no tasks for {fake.users[user]['email']}"})
    task = min(free, key=score) if project["sampling"] == "Uncertainty sampling" else free[0]
    fake.locks[task["id"]] = (user, now + LOCK_S)
    return _stream(fake, project, task)


def _stream(fake: FakeLabelStudio, project: Row, task: Row) -> Row:
    shown = fake.shown_task(task)
    rows = [p for p in shown["predictions"] if p["model_version"] == project["model_version"]]
    return shown | {"predictions": rows if project["show_collab_predictions"] else [], "queue": "fake"}


def invite(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    return {"token": fake._invite, "invite_url": f"/user/signup/?token={fake._invite}"}


def whoami(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    return {k: v for k, v in fake.users[user].items() if k != "password"}


def users_list(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    return [{k: v for k, v in u.items() if k != "password"} for u in fake.users.values()]


def version(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    return {"release": "1.23.2", "edition": "Community"}


def tokens_list(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    return [{"token": t[:20], "created_at": ""} for t, u in fake.tokens.items() if u == user]


def tokens_create(fake: FakeLabelStudio, user: int, query: Row, body: Any) -> Any:
    if any(u == user for u in fake.tokens.values()):
        raise Refused(409, {"detail": "You can have only one token"})
    token = f"pat.{fake.new_id():08d}{random.randrange(10**9):09d}.fake"
    fake.tokens[token] = user
    raise Refused(201, {"token": token})


def tokens_blacklist(fake: FakeLabelStudio, user: int, query: Row, body: Row) -> Any:
    fake.tokens = {t: u for t, u in fake.tokens.items() if not t.startswith(body["refresh"][:20])}
    raise Refused(204, None)


def tokens_refresh(fake: FakeLabelStudio, user: int, query: Row, body: Row) -> Any:
    if body.get("refresh") not in fake.tokens:
        raise Refused(401, {"detail": "Token is invalid or expired", "code": "token_not_valid"})
    token = f"access.{fake.new_id()}.{random.randrange(10**9)}"
    fake.access[token] = fake.tokens[body["refresh"]]
    return {"access": token}


@dataclass
class Sent:
    """An answer that is given after webhooks were sent."""

    status: int
    body: Any
    webhooks: list[tuple[str, bytes, dict[str, str]]]


OPEN = {("POST", "/api/token/refresh/"), ("GET", "/api/version")}
ROUTES: dict[tuple[str, str], Any] = {
    ("GET", "/api/version"): version,
    ("GET", "/api/invite"): invite,
    ("GET", "/api/current-user/whoami"): whoami,
    ("GET", "/api/users/"): users_list,
    ("GET", "/api/token/"): tokens_list,
    ("POST", "/api/token/"): tokens_create,
    ("POST", "/api/token/blacklist/"): tokens_blacklist,
    ("POST", "/api/token/refresh/"): tokens_refresh,
    ("GET", "/api/projects/"): projects_list,
    ("POST", "/api/projects/"): projects_create,
    ("GET", "/api/projects/#/"): project_get,
    ("PATCH", "/api/projects/#/"): project_patch,
    ("DELETE", "/api/projects/#/"): project_delete,
    ("POST", "/api/projects/#/validate/"): project_validate,
    ("POST", "/api/projects/#/import"): tasks_import,
    ("POST", "/api/projects/#/import/predictions"): predictions_import,
    ("GET", "/api/projects/#/export"): project_export,
    ("GET", "/api/import/file-upload/#"): upload_get,
    ("GET", "/api/tasks"): tasks_list,
    ("GET", "/api/tasks/#/"): task_get,
    ("PATCH", "/api/tasks/#/"): task_patch,
    ("DELETE", "/api/tasks/#/"): task_delete,
    ("POST", "/api/tasks/#/annotations/"): annotation_create,
    ("PATCH", "/api/annotations/#/"): annotation_patch,
    ("DELETE", "/api/annotations/#/"): annotation_delete,
    ("PATCH", "/api/predictions/#/"): prediction_patch,
    ("DELETE", "/api/predictions/#/"): prediction_delete,
    ("GET", "/api/dm/views/"): views_list,
    ("POST", "/api/dm/views/"): views_create,
    ("PATCH", "/api/dm/views/#/"): view_patch,
    ("POST", "/api/dm/actions"): actions,
    ("GET", "/api/webhooks/"): hooks_list,
    ("POST", "/api/webhooks/"): hooks_create,
    ("PATCH", "/api/webhooks/#/"): hook_patch,
}
LOSSY = {tasks_import, predictions_import, annotation_create, actions, project_patch, task_patch}
"""Writes whose answer may get lost; the others are too few to matter."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    fake: FakeLabelStudio

    def __init__(self, *arguments: Any) -> None:
        self._connections: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that went away is no news


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        fake, parts = self.server.fake, urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        raw = self.rfile.read(length)
        with fake.lock:
            fake.requests.append(f"{self.command} {self.path}")
        if parts.path == "/health":
            return self._answer(200, {"status": "UP"})
        if parts.path.startswith("/user/"):
            return self._people(parts.path, dict(parse_qsl(parts.query)), dict(parse_qsl(raw.decode())))
        if parts.path.startswith("/data/upload/"):
            found = [d for path, d in fake.uploads.values() if f"/data/{path}" == parts.path]
            known = self._user() is not None
            return self._answer(200 if found and known else 401, found[0] if found and known else {"detail": "no"})
        return self._api(parts.path, dict(parse_qsl(parts.query)), raw)

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _api(self, path: str, query: Row, raw: bytes) -> None:
        fake = self.server.fake
        shape = re.sub(r"/\d+", "/#", path)
        shape = shape if (self.command, shape) in ROUTES else shape.rstrip("/")
        if (self.command, shape) not in ROUTES:
            shape += "/"
        route = ROUTES.get((self.command, shape))
        user = self._user()
        if route is None:
            return self._answer(404, {"detail": f"the fake has no {self.command} {path}"})
        if user is None and (self.command, shape) not in OPEN:
            return self._answer(401, {"detail": "Authentication credentials were not provided."})
        if fake.faults.strikes("slow"):
            time.sleep(fake.faults.slow_s)
        for fault, text in (("fail_before", "Internal Server Error"), ("locked", "database is locked")):
            if "token" not in path and fake.faults.strikes(fault):
                return self._answer(500, {"detail": text})
        multipart = "multipart" in (self.headers.get("Content-Type") or "")
        body = raw if multipart else json.loads(raw) if raw else None
        ids = [int(n) for n in re.findall(r"/(\d+)", path)]
        if route is tasks_import and not multipart and fake.faults.strikes("late"):
            fake.later(fake.faults.late_s, ids[0], body)
            return self._hang_up()
        with fake.lock:
            try:
                answer = route(fake, user, query, body, *ids)
            except Refused as refused:
                answer = Sent(refused.status, refused.body, [])
        if not isinstance(answer, Sent):
            answer = Sent(200, answer, [])
        for webhook in answer.webhooks:
            self._send(*webhook)
        if route in LOSSY and answer.status < 400:
            if fake.faults.strikes("lose_answers"):
                return self._hang_up()
            if fake.faults.strikes("fail_after"):
                return self._answer(500, {"detail": "Internal Server Error"})
        return self._answer(answer.status, answer.body)

    def _send(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        if self.server.fake.faults.strikes("drop_webhooks"):
            return
        request = urllib.request.Request(url, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=WEBHOOK_TIMEOUT_S):
                pass
        except (urllib.error.URLError, OSError):
            pass  # once and never again

    def _user(self) -> int | None:
        fake, header = self.server.fake, self.headers.get("Authorization", "")
        if header.startswith("Bearer "):
            return fake.access.get(header[7:])
        return fake.sessions.get(self._cookie("sessionid"))

    def _cookie(self, name: str) -> str:
        found = re.search(rf"{name}=([^;]+)", self.headers.get("Cookie", ""))
        return found[1] if found else ""

    def _people(self, path: str, query: Row, form: Row) -> None:
        fake = self.server.fake
        if self.command == "GET":
            return self._answer(200, {}, {"Set-Cookie": "csrftoken=fake; Path=/"})
        with fake.lock:
            known = {u["email"]: u for u in fake.users.values()}
            if path.startswith("/user/signup"):
                if query.get("token") != fake._invite or form["email"] in known:
                    return self._answer(403 if query.get("token") != fake._invite else 200, {})
                user = fake.add_user(form["email"], form["password"])
            else:
                found = known.get(form.get("email", ""))
                if found is None or found["password"] != form.get("password"):
                    return self._answer(200, {})
                user = found["id"]
            session = f"s{fake.new_id()}"
            fake.sessions[session] = user
        return self._answer(302, {}, {"Location": "/", "Set-Cookie": f"sessionid={session}; Path=/"})

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else b"" if status == 204 else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        if status != 204:
            self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)
        self.wfile.flush()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)
