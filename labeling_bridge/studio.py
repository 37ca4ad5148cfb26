"""Label Studio over HTTP: the only file that knows its SDK and, with `account`, its routes. One `Studio` is one account.

Projects and views go through label_studio_sdk with its own retries off. Imports and task lists go through httpx: the SDK
repeats POSTs after a timeout, and an import that timed out may have succeeded; its typed models cost seconds on hundreds of
tasks, and we need the raw regions.

Errors: StudioError, UnknownOutcome; see `account`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import httpx
import msgspec

from labeling_bridge.account import Account, UnknownOutcome, explain, unexpected
from sutdol.errors import StudioError

T = TypeVar("T")
_COLOR = "#617ADA"
VIEW_TITLE = "Most valuable first"
SECRET_HEADER = "X-Sutdol-Secret"
HINTS = ["ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED"]
PAGE = 100
IMPORT_TIMEOUT_S = 120.0
"""An import may wait for a locked database; giving up early only makes its outcome unknown."""
_UNANSWERED = [
    {"filter": f"filter:tasks:{count}", "operator": "equal", "type": "Number", "value": 0}
    for count in ("total_annotations", "cancelled_annotations")
]
_OPEN = {"filter": "filter:tasks:completed_at", "operator": "empty", "type": "Datetime", "value": "true"}
"""Tasks of which Label Studio wants one more answer."""


class StudioTask(msgspec.Struct, frozen=True):
    """A task as Label Studio lists it; what a listing leaves out is empty."""

    id: int
    data: dict[str, Any] = {}
    updated_at: str = ""
    total_annotations: int = 0
    cancelled_annotations: int = 0
    total_predictions: int = 0
    annotations: list[dict[str, Any]] = []
    predictions: list[dict[str, Any]] = []

    @property
    def sample_id(self) -> str:
        """Our sample's id; empty for a task that somebody else put there."""
        return str(self.data.get("sample_id", ""))

    @property
    def answered(self) -> bool:
        """Whether anybody submitted or skipped it."""
        return bool(self.total_annotations or self.cancelled_annotations or self.annotations)


class Studio(Account):
    """The calls the bridge needs, and no more. Thread-safe; close it."""

    _client: Any = None

    # ---- projects

    def find_project(self, description: str) -> int | None:
        """The project with exactly this description, the oldest of several; None when there is none."""
        found: list[int] = []
        page = 1
        while True:
            query = {"page": page, "page_size": PAGE, "include": "id,description"}
            response = self.ask("GET", "/api/projects/", params=query, allowed=(404,))
            results = response.json()["results"] if response.status_code == 200 else []
            found += [int(p["id"]) for p in results if p.get("description") == description]
            if len(results) < PAGE:
                return min(found, default=None)
            page += 1

    def create_project(
        self, title: str, description: str, label_config: str, *, annotators: int = 1, instructions: str = ""
    ) -> int:
        """A project that hands out the most valuable task first (Label Studio wants titles of at least 3 characters)."""
        project = self._sdk(
            lambda c: c.projects.create(
                title=title.ljust(3, "_")[:50],
                description=description,
                label_config=label_config,
                sampling="Uncertainty sampling",
                show_collab_predictions=True,
                maximum_annotations=annotators,
                expert_instruction=instructions,
                show_instruction=bool(instructions),
                color=_COLOR,
            ),
            f"create the project {title!r}",
        )
        return int(project.id)

    def project(self, project_id: int) -> dict[str, Any] | None:
        """The project's fields; None when it was deleted."""
        response = self.ask("GET", f"/api/projects/{project_id}/", allowed=(404,))
        return None if response.status_code == 404 else dict(response.json())

    def config_problem(self, project_id: int, label_config: str) -> str | None:
        """Why a label config does not fit the project's annotations, in Label Studio's words; None when it does."""
        path = f"/api/projects/{project_id}/validate/"
        response = self.ask("POST", path, json={"label_config": label_config}, allowed=(400,))
        return explain(response) if response.status_code == 400 else None

    def set_label_config(self, project_id: int, label_config: str, instructions: str) -> None:
        """Check with `config_problem` first: this drops classes that have annotations without a word."""
        self._sdk(
            lambda c: c.projects.update(project_id, label_config=label_config, expert_instruction=instructions),
            "change the label config",
        )

    def set_model_version(self, project_id: int, version: str) -> bool:
        """Show the pre-annotations of `version`; False when no task has one yet (Label Studio refuses that)."""
        path = f"/api/projects/{project_id}/"
        response = self.ask("PATCH", path, json={"model_version": version}, allowed=(400,))
        if response.status_code == 400 and "model_version" not in response.text:
            raise unexpected(f"PATCH {path}", response)
        return response.status_code != 400

    def ensure_view(self, project_id: int) -> int:
        """The tab that shows open tasks by our priority (see `project.prediction_body`); made when it is missing.

        Its score is that of the project's `model_version`; tasks without a prediction of that version come last. Not for a
        project without tasks: ordering nothing by score is an error (500) to Label Studio, and it shows that in the tab.
        """
        views = self.ask("GET", "/api/dm/views/", params={"project": project_id}).json()
        for view in views:
            if view["data"].get("title") == VIEW_TITLE:
                return int(view["id"])
        data = {
            "title": VIEW_TITLE,
            "type": "list",
            "target": "tasks",
            "ordering": ["tasks:predictions_score"],
            "filters": {"conjunction": "and", "items": [_OPEN]},
        }
        return int(self._sdk(lambda c: c.views.create(project=project_id, data=data), "create a view").id)

    def ensure_webhook(self, project_id: int, url: str, secret: str, *, actions: list[str] = HINTS) -> int | None:
        """Have Label Studio tell `url` about annotations; None when it refuses such a URL (the poll finds everything)."""
        hooks = self.ask("GET", "/api/webhooks/", params={"project": project_id}).json()
        wanted = {SECRET_HEADER: secret}
        for hook in hooks:
            if hook.get("project") == project_id and hook["url"] == url:
                if hook.get("headers") != wanted or not hook.get("is_active"):
                    change = {"headers": wanted, "is_active": True}
                    self.ask("PATCH", f"/api/webhooks/{hook['id']}/", json=change)
                return int(hook["id"])
        body = {
            "url": url,
            "project": project_id,
            "send_payload": True,
            "send_for_all_actions": False,
            "actions": actions,
            "headers": wanted,
        }
        response = self.ask("POST", "/api/webhooks/", json=body, allowed=(400, 403))
        return int(response.json()["id"]) if response.status_code == 201 else None

    def ensure_backend(self, project_id: int, url: str, user: str, password: str, *, interactive: bool) -> int | None:
        """Connect an ML backend; None when Label Studio refuses it (it asks `url` for its health first)."""
        for known in self.ask("GET", "/api/ml/", params={"project": project_id}).json():
            if known["url"].rstrip("/") == url:
                return int(known["id"])
        body = {
            "url": url,
            "project": project_id,
            "title": "sutdol",
            "is_interactive": interactive,
            "auth_method": "BASIC_AUTH",
            "basic_auth_user": user,
            "basic_auth_pass": password,
        }
        response = self.ask("POST", "/api/ml/", json=body, allowed=(400, 403))
        return int(response.json()["id"]) if response.status_code == 201 else None

    def touch_project(self, project_id: int) -> None:
        """Change something about a project, so that its PROJECT_UPDATED is sent."""
        self.ask("PATCH", f"/api/projects/{project_id}/", json={"title": "sutdol doctor, asked"})

    def delete_project(self, project_id: int) -> None:
        """Delete a project with everything in it; no error when it is gone."""
        self.ask("DELETE", f"/api/projects/{project_id}/", allowed=(404,))

    def upload(self, project_id: int, files: list[tuple[str, bytes, str]]) -> list[str]:
        """Copy (name, bytes, media type) into Label Studio; the paths for `data.image`, in the same order.

        Raises:
            UnknownOutcome: some may lie there without a task; they do no harm.
        """
        parts = [(f"file{i}", file) for i, file in enumerate(files)]
        query = {"commit_to_project": "false"}
        answer = self.ask("POST", f"/api/projects/{project_id}/import", params=query, files=parts).json()
        found = {}
        for upload_id in answer["file_upload_ids"]:
            path = str(self.ask("GET", f"/api/import/file-upload/{upload_id}").json()["file"])
            found[path.rsplit("/", 1)[-1].split("-", 1)[-1]] = f"/data/{path}"
        if missing := [name for name, _, _ in files if name not in found]:
            raise StudioError(f"Label Studio took {len(found)} of {len(files)} images; {missing[0]} is not among them")
        return [found[name] for name, _, _ in files]

    # ---- tasks

    def import_tasks(self, project_id: int, tasks: list[dict[str, Any]]) -> list[int]:
        """Create tasks, never repeated by itself; the ids it names, which may be none.

        Compare with `present` or `find` afterwards: on SQLite predictions and annotations may be lost.

        Raises:
            UnknownOutcome: the tasks may be there, or appear later.
        """
        path, query = f"/api/projects/{project_id}/import", {"return_task_ids": "true"}
        answer = self.ask("POST", path, params=query, json=tasks, timeout=IMPORT_TIMEOUT_S).json()
        return [int(number) for number in answer.get("task_ids") or []]

    def import_predictions(self, project_id: int, predictions: list[dict[str, Any]]) -> None:
        """Add pre-annotations {"task", "model_version", "score", "result"} to tasks; a second call adds them twice.

        Raises:
            UnknownOutcome: they may be there.
        """
        path = f"/api/projects/{project_id}/import/predictions"
        self.ask("POST", path, json=predictions, timeout=IMPORT_TIMEOUT_S)

    def present(self, project_id: int, task_ids: list[int]) -> list[StudioTask]:
        """Those of these tasks that are there, with their data and counts; a tenth of the cost of `find`."""
        include = "id,data,total_annotations,cancelled_annotations,total_predictions"
        query = [_among(task_ids)]
        return (
            list(self._tasks(project_id, query, ["tasks:id"], len(task_ids) + 1, include=include)) if task_ids else []
        )

    def find(self, project_id: int, sample_ids: list[str]) -> list[StudioTask]:
        """All tasks of these samples, whole, by id; one sample may have several."""
        if not sample_ids:
            return []
        item = {"filter": "filter:tasks:data.sample_id", "operator": "in_list", "type": "String", "value": sample_ids}
        return list(self._tasks(project_id, [item], ["tasks:id"], fields="all"))

    def listing(self, project_id: int) -> Iterator[StudioTask]:
        """Every task of a project by id, without its annotations and predictions."""
        include = "id,data,updated_at,total_annotations,cancelled_annotations,total_predictions"
        return self._tasks(project_id, [], ["tasks:id"], include=include, page_size=1000)

    def changed_since(self, project_id: int, updated_at: str) -> dict[int, StudioTask]:
        """The tasks changed after `updated_at` (Label Studio's own text; empty: all), by id: stamps and counts alone.

        In the order of ids, because then a change moves no task to another page. A fifth of the cost of reading them whole.
        """
        item = {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime"}
        item["value"] = updated_at or "1970-01-01T00:00:00.000Z"
        include = "id,updated_at,total_annotations,cancelled_annotations"
        return {t.id: t for t in self._tasks(project_id, [item], ["tasks:id"], include=include, page_size=1000)}

    def whole(self, project_id: int, task_ids: Iterable[int]) -> Iterator[StudioTask]:
        """These tasks with annotations and predictions, in one request for each PAGE of them; deleted ones are left out."""
        ids = sorted(task_ids)
        for start in range(0, len(ids), PAGE):
            yield from self._tasks(project_id, [_among(ids[start : start + PAGE])], ["tasks:id"], fields="all")

    def delete_unanswered(self, project_id: int, task_ids: Iterable[int]) -> set[int]:
        """Delete those of these tasks that nobody submitted or skipped; ids of those that are gone now.

        Label Studio looks at its counts in the request that deletes, so an answer is lost only when it is being stored
        within those few milliseconds. With a project's last task Label Studio deletes all its tabs.
        """
        ids = sorted(task_ids)
        if not ids:
            return set()
        only = {"conjunction": "and", "items": _UNANSWERED}
        body = {"project": project_id, "selectedItems": {"all": False, "included": ids}, "filters": only}
        query = {"id": "delete_tasks", "project": project_id}
        answer = self.ask("POST", "/api/dm/actions", params=query, json=body).json()
        if answer.get("processed_items") == len(ids):
            return set(ids)
        return set(ids) - {
            t.id for t in self._tasks(project_id, [_among(ids)], ["tasks:id"], len(ids) + 1, include="id")
        }

    def set_data(self, task_id: int, data: dict[str, Any]) -> None:
        """Replace the data of a task; no error when it is gone."""
        self.ask("PATCH", f"/api/tasks/{task_id}/", json={"data": data}, allowed=(404,))

    def ask_more(self, task: StudioTask, people: int, score: float) -> bool:
        """Have a task answered by `people` in all, with `score` deciding its place; False when it is gone."""
        change = {"overlap": people, "is_labeled": False}  # the second does not follow from the first there
        response = self.ask("PATCH", f"/api/tasks/{task.id}/", json=change, allowed=(404,))
        for prediction in task.predictions:
            if prediction.get("score") != score:
                self.ask("PATCH", f"/api/predictions/{prediction['id']}/", json={"score": score}, allowed=(404,))
        return response.status_code != 404

    def delete_annotation(self, annotation_id: int) -> None:
        """Take an annotation away; no error when it is gone."""
        self.ask("DELETE", f"/api/annotations/{annotation_id}/", allowed=(404,))

    # ---- people

    def version(self) -> str:
        """Label Studio's version, `1.23.2`."""
        answer = self.ask("GET", "/api/version", headers={"Accept": "application/json"}).json()
        return str(answer.get("release") or answer.get("label-studio-os-package", {}).get("version", "unknown"))

    def people(self) -> set[int]:
        """Ids of all accounts; annotations can be imported under their names alone."""
        return {int(user["id"]) for user in self.ask("GET", "/api/users/").json()}

    def whoami(self) -> str:
        """The e-mail of this account."""
        return str(self.ask("GET", "/api/current-user/whoami").json()["email"])

    def invite_url(self) -> str:
        """The page on which a labeler signs up."""
        return self.url + str(self.ask("GET", "/api/invite").json()["invite_url"])

    def next_task(self, project_id: int) -> dict[str, Any] | None:
        """The task that the page would show this account now; it stays locked for it. None when there is none left.

        For labelers only: the bridge itself must never hold locks.
        """
        query = {"id": "next_task", "project": project_id}
        response = self.ask("POST", "/api/dm/actions", params=query, json={"project": project_id}, allowed=(404,))
        return None if response.status_code == 404 else dict(response.json())

    def submit(self, task_id: int, annotation: dict[str, Any]) -> int:
        """Answer a task as the page does; the annotation's id."""
        return int(self.ask("POST", f"/api/tasks/{task_id}/annotations/", json=annotation).json()["id"])

    def download(self, url: str) -> bytes:
        """An image as the labeler's browser would fetch it: by its URL alone, without our token."""
        client, bare = (self._plain if url.startswith("http:") else httpx), url.split("?", 1)[0]
        try:
            response = client.get(url, headers={"Origin": self.url})
        except httpx.HTTPError as error:
            raise StudioError(f"image at {bare} cannot be fetched: {type(error).__name__}") from error
        if response.status_code != 200:
            raise StudioError(f"image at {bare}: expected 200, found {response.status_code}")
        return response.content

    # ---- inside

    def _tasks(
        self, project_id: int, items: list[dict[str, Any]], ordering: list[str], page_size: int = PAGE, **shape: str
    ) -> Iterator[StudioTask]:
        query = json.dumps({"filters": {"conjunction": "and", "items": items}, "ordering": ordering})
        page = 1
        while True:
            params = {"project": project_id, "query": query, "page_size": page_size, "page": page, **shape}
            response = self.ask("GET", "/api/tasks", params=params, allowed=(404,))
            if response.status_code == 404:
                if "page" in response.text.lower():
                    return  # the list shrank under us, or its length is a multiple of the page
                raise unexpected(f"tasks of project {project_id}", response)
            tasks = msgspec.convert(response.json()["tasks"], list[StudioTask], strict=False)
            yield from tasks
            if len(tasks) < page_size:
                return
            page += 1

    def _sdk(self, call: Callable[[Any], T], asked: str) -> T:
        """Run `call` with the SDK's client; imported here, because that costs 1.5 s and 110 MB."""
        from label_studio_sdk import LabelStudio
        from label_studio_sdk.core.api_error import ApiError

        with self._lock:
            if self._client is None:
                self._client = LabelStudio(  # type: ignore[no-untyped-call]
                    base_url=self.url, api_key="-", httpx_client=self._http, max_retries=0
                )
        try:
            return self._try(asked, lambda: call(self._client))
        except ApiError as error:
            status = error.status_code or 0
            kind = UnknownOutcome if status >= 500 or status == 0 else StudioError
            raise kind(f"Label Studio at {self.url}, {asked}: found {status} {str(error.body)[:500]}") from error


def _among(task_ids: list[int]) -> dict[str, Any]:
    return {"filter": "filter:tasks:id", "operator": "in_list", "type": "Number", "value": task_ids}
