"""How a labeler's browser gets an image: three ways, by the setting `image_mode`.

    url      data.image = our own address with a signature that never expires; `routes` answers it (default)
    presign  the same address, answered with a redirect to the store's own, presigned for some minutes (S3, for big sites)
    upload   data.image = a copy that we put into Label Studio; for browsers that cannot reach us

Signatures are HMACs over the sample id. Task data in Label Studio live for ever, so they do not expire; a new key revokes
them. Job `bridge.rotate`: new key -> both are accepted -> every task's address is written anew -> the old key is forgotten.

Errors: StudioError, NotFoundError (an image that was never stored).
"""

from __future__ import annotations

import secrets
from typing import Any

from sqlmodel import Session, select

from labeling_bridge.project import await_turn, writing
from labeling_bridge.studio import Studio
from sutdol import keys
from sutdol.context import Context
from sutdol.db import Database, upsert
from sutdol.errors import StudioError
from sutdol.events import tell
from sutdol.images import Image
from sutdol.jobs import Running
from sutdol.tables import LabelTask, Sample, Secret, StudioProject

CURRENT, BEFORE = "image-urls", "image-urls-before"


def signing_keys(database: Database) -> list[str]:
    """The keys whose signatures are accepted: the one in use, and during a rotation the one before."""
    current = keys.secret(database, CURRENT)
    with database.read() as session:
        before = session.get(Secret, BEFORE)
    return [current] if before is None else [current, before.value]


def image_url(context: Context, sample_id: str, key: str = "") -> str:
    """Where the labeler's browser fetches a sample; see `routes`. `key` spares looking up the signing key."""
    signature = keys.sign(sample_id, key or keys.secret(context.database, CURRENT))
    return f"{context.settings.url}/v1/samples/{sample_id}/image?sig={signature}"


def addresses(context: Context, studio: Studio, project_id: int, samples: list[Sample]) -> dict[str, str]:
    """`data.image` of these samples; with `upload` the images are copied into Label Studio now."""
    if context.settings.image_mode != "upload":
        key = keys.secret(context.database, CURRENT)
        return {s.id: image_url(context, s.id, key) for s in samples}
    files = [
        (f"{s.id}.{s.media_type.split('/')[-1]}", context.store.get(f"samples/{s.id}"), s.media_type) for s in samples
    ]
    return dict(zip([s.id for s in samples], studio.upload(project_id, files), strict=True))


def sample_row(image: Image) -> Sample:
    """The row of an admitted image."""
    return Sample(
        id=image.sample_id,
        width_px=image.width_px,
        height_px=image.height_px,
        media_type=image.media_type,
        size_bytes=len(image.data),
    )


def rotate(running: Running) -> dict[str, Any]:
    """Payload {}: a new signing key. A second attempt goes on where the first ended; returns how many tasks were changed."""
    context = running.context
    with running.commit() as session:
        if session.get(Secret, BEFORE) is None:
            _begin(session, keys.secret(context.database, CURRENT))
        projects = session.exec(select(StudioProject)).all()
    changed = 0
    with Studio.open(context) as studio:
        for project in projects:
            with writing(running, project.model) as ours:
                await_turn(running, ours, project.model)
                changed += _readdress(running, studio, project, ours)
    with running.commit() as session:
        old = session.get(Secret, BEFORE)
        if old is not None:
            session.delete(old)
        tell(session, "images.rotated", f"images have a new signing key, {changed} tasks a new address")
    return {"changed": changed}


def _begin(session: Session, current: str) -> None:
    upsert(session, Secret(name=BEFORE, value=current), keys=["name"], update=["value"])
    upsert(session, Secret(name=CURRENT, value=secrets.token_urlsafe(32)), keys=["name"], update=["value"])


def _readdress(running: Running, studio: Studio, project: StudioProject, ours: Any) -> int:
    changed = 0
    with running.context.database.read() as session:
        known = set(session.exec(select(LabelTask.sample_id).where(LabelTask.model == project.model)))
    for task in studio.listing(project.project_id):
        image = str(task.data.get("image", ""))
        if task.sample_id not in known or "/v1/samples/" not in image:
            continue
        wanted = image_url(running.context, task.sample_id)
        if image == wanted:
            continue
        if changed % 20 == 0:
            running.report(readdressed=changed)
            if not ours():
                raise StudioError(f"the project of {project.model} was taken over by another writer")
        studio.set_data(task.id, task.data | {"image": wanted})
        changed += 1
    return changed
