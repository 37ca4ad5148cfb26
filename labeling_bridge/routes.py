"""What Label Studio and its labelers' browsers ask of us; mounted by the program that serves.

    GET  /v1/samples/{sample_id}/image?sig=...   the image, to whoever holds the signed URL, readable from Label Studio's origin
    POST /v1/label-studio/webhook                a hint that somebody answered -> job `bridge.hint`
    /label-studio/*                              the ML backend, opt-in; see `backend_routes`
    GET  /v1/models/{model}/labeling             how labeling goes: acceptance, anchoring, agreement, labelers (scope `label`)

The browser sends the image request with `Origin` and without cookies, so the right to see lies in the URL and the answer
carries CORS headers; without them labelers see an error box but can still submit, and label blindly. The webhook is
answered at once (Label Studio waits for it inside the labeler's own request); why its payload is kept: see `read`.

Errors: AuthError 403 (wrong signature), 401 (wrong secret); NotFoundError 404; InputError 400.
"""

from __future__ import annotations

import hmac
import time
from typing import Any
from urllib.parse import urlparse

from litestar import HttpMethod, Request, Response, Router, get, post, route
from litestar.datastructures import State
from litestar.enums import MediaType
from litestar.params import FromPath, FromQuery, JSONBody
from sqlmodel import Session, select

from labeling_bridge import backend_routes
from labeling_bridge.pictures import signing_keys
from labeling_bridge.quality import read_pairs, report_of
from labeling_bridge.studio import SECRET_HEADER
from sutdol import jobs, keys, registry
from sutdol.context import Context
from sutdol.errors import AuthError, InputError, unknown
from sutdol.events import tell
from sutdol.settings import Settings
from sutdol.tables import ApiKey, Job, LabelReport, Sample, StudioProject, now

HINT_DELAY_S = 0.5
"""What labelers answer within this time is read by one job and one request: each request costs them Label Studio's time."""
PRESIGNED_S = 600
KEYS_TTL_S = 5.0
SELF_TEST = "sutdol doctor: "
"""How the description of the doctor's project begins; a nonce follows."""
_FOR_EVER = "public, immutable, max-age=31536000"
_KEPT = (
    "id",
    "result",
    "was_cancelled",
    "ground_truth",
    "created_at",
    "updated_at",
    "lead_time",
    "completed_by",
    "updated_by",
    "parent_prediction",
    "import_id",
)
_TWINS = {"127.0.0.1": "localhost", "localhost": "127.0.0.1"}


def build(context: Context) -> Router:
    """The bridge's routes over this context; secrets are read once, here, but for the signing keys, which may change."""
    signing = _SigningKeys(context)
    webhook_secret = keys.secret(context.database, "label-studio-webhook").encode()
    origins = allowed_origins(context.settings)

    @route("/v1/samples/{sample_id:str}/image", http_method=[HttpMethod.GET, HttpMethod.HEAD], sync_to_thread=True)
    def image(request: Request[Any, Any, State], sample_id: FromPath[str], sig: FromQuery[str] = "") -> Response[bytes]:
        """A sample's image by its signed URL."""
        if not signing.accept(sample_id, sig):
            raise AuthError("image URL: the signature is not right", status=403)
        with context.database.read() as session:
            sample = session.get(Sample, sample_id)
        if sample is None:
            raise unknown("sample", sample_id, [])
        headers = {"Cache-Control": _FOR_EVER, "X-Content-Type-Options": "nosniff", "Vary": "Origin"}
        origin = request.headers.get("origin", "")
        if origin in origins or "*" in origins:
            headers["Access-Control-Allow-Origin"] = origin or "*"
        if context.settings.image_mode == "presign":
            address = context.store.presigned(f"samples/{sample_id}", PRESIGNED_S)
            if address is not None:
                headers |= {"Location": address, "Cache-Control": f"private, max-age={PRESIGNED_S // 2}"}
                return Response(b"", headers=headers, status_code=307, media_type=sample.media_type)
        data = context.store.get(f"samples/{sample_id}")
        return Response(data, headers=headers, media_type=sample.media_type)

    @post("/v1/label-studio/webhook", status_code=200, media_type=MediaType.JSON, sync_to_thread=True)
    def webhook(request: Request[Any, Any, State], data: JSONBody[dict[str, Any]]) -> dict[str, bool]:
        """A hint from Label Studio."""
        presented = request.headers.get(SECRET_HEADER, "").encode()
        if not hmac.compare_digest(presented, webhook_secret):
            raise AuthError(
                "webhook: the secret is missing or wrong", hint="run the job `bridge.sweep`, it sets it anew"
            )
        if _is_self_test(context, data):
            return {"known": True}
        project_id, task_ids = _ids(data)
        hinted = _hinted(data) if len(task_ids) == 1 else []
        with context.database.read() as session:
            found = session.exec(select(StudioProject).where(StudioProject.project_id == project_id)).first()
        if found is None:
            return {"known": False}
        with context.database.begin() as session:
            _hint(session, found, task_ids, hinted)
        return {"known": True}

    @get("/v1/models/{model:str}/labeling", sync_to_thread=True, summary="How labeling goes")
    def labeling(request: Request[Any, Any, State], model: FromPath[str]) -> dict[str, Any]:
        """Shares with counts and 95 % intervals; see `labeling_bridge.quality`."""
        with context.database.read() as session:
            _needs_key(session, request, "label")
            registry.get_model(session, model)
            stored = session.get(LabelReport, model)
            if stored is not None:
                return {"model": model, "at": stored.at} | stored.report
            pairs, open_conflicts = read_pairs(session, model)
        return {"model": model, "at": now()} | report_of(pairs) | {"open_conflicts": open_conflicts}

    more = [backend_routes.build(context)] if context.settings.ml_backend else []
    return Router(path="/", route_handlers=[image, webhook, labeling, *more], tags=["label studio"])


def _needs_key(session: Session, request: Request[Any, Any, State], scope: str) -> None:
    """Raises AuthError unless the request carries an API key with `scope`."""
    kind, _, presented = request.headers.get("authorization", "").partition(" ")
    key_id, digest = keys.parse(presented if kind.lower() == "bearer" else "")
    keys.check(session.get(ApiKey, key_id), digest, scope)


class _SigningKeys:
    """The keys whose signatures are accepted, looked up anew every KEYS_TTL_S."""

    def __init__(self, context: Context) -> None:
        self._database = context.database
        self._known = signing_keys(context.database)
        self._until = time.monotonic() + KEYS_TTL_S

    def accept(self, sample_id: str, signature: str) -> bool:
        if time.monotonic() >= self._until:
            self._known, self._until = signing_keys(self._database), time.monotonic() + KEYS_TTL_S
        return any(keys.signature_is_right(sample_id, signature, key) for key in self._known)


def _is_self_test(context: Context, data: dict[str, Any]) -> bool:
    """An event of the project that `sutdol doctor` makes; noted, so that the doctor sees that it came."""
    project = data.get("project")
    text = str(project.get("description") or "") if isinstance(project, dict) else ""
    if not text.startswith(SELF_TEST):
        return False
    with context.database.begin() as session:
        tell(session, "bridge.self-test", text.removeprefix(SELF_TEST)[:64])
    return True


def allowed_origins(settings: Settings) -> frozenset[str]:
    """Origins that may read images: Label Studio's (127.0.0.1 and localhost are the same machine) and those of the settings."""
    address = urlparse(settings.studio_url)
    hosts = [address.hostname or "", _TWINS.get(address.hostname or "", "")]
    port = f":{address.port}" if address.port else ""
    return frozenset([f"{address.scheme}://{host}{port}" for host in hosts if host] + settings.origins)


def _hint(session: Session, project: StudioProject, task_ids: list[int], hinted: list[dict[str, Any]]) -> None:
    """Have these tasks read in HINT_DELAY_S, together with those of hints that come until then; without ids, all changed."""
    model = project.model
    if not task_ids:
        jobs.send(session, "bridge.read", {"model": model}, unique_key=f"bridge.read:{model}", delay_s=HINT_DELAY_S)
        return
    key = f"bridge.hint:{model}:{project.project_id}"
    payload = {"model": model, "project_id": project.project_id, "studio_task_ids": task_ids, "hinted": hinted}
    if jobs.send(session, "bridge.hint", payload, unique_key=key, delay_s=HINT_DELAY_S) is None:
        # `send` has locked the queued job until our commit, so no worker has taken it yet.
        job = session.exec(select(Job).where(Job.unique_key == key)).one()
        both = {"studio_task_ids": sorted({*job.payload["studio_task_ids"], *task_ids})}
        job.payload = payload | both | {"hinted": [*job.payload["hinted"], *hinted]}
        session.add(job)


def _hinted(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The task as the hint shows it, with the one annotation and nothing else; for when it can no longer be asked for."""
    task, annotation = data.get("task"), data.get("annotation")
    if not isinstance(task, dict) or not isinstance(annotation, dict) or "id" not in annotation:
        return []
    known = {name: annotation[name] for name in _KEPT if name in annotation}
    sample_id = (task.get("data") or {}).get("sample_id", "")
    return [{"id": task["id"], "data": {"sample_id": sample_id}, "annotations": [known]}]


def _ids(data: dict[str, Any]) -> tuple[int | None, list[int]]:
    """(project id, task ids) of a webhook's payload; an event about deleted annotations names no task."""
    try:
        tasks = data.get("task") or []
        task_ids = [int(t["id"]) for t in (tasks if isinstance(tasks, list) else [tasks])]
        project = data.get("project") or {}
        project_id = project["id"] if isinstance(project, dict) else project
        return (int(project_id) if project_id is not None else None), sorted(set(task_ids))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"webhook: expected `project.id` and `task.id`, found {type(error).__name__}") from error
