"""The job `retrain.export`: a dataset version becomes a zip in the store, for whoever cannot see our disk.

{"model", "version" or None, "format"} -> folder -> zip -> store `exports/JOB.zip` -> {"key", "photos", "size_bytes"}
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

from retrain import datasets
from sutdol.jobs import Running


def handle(running: Running) -> dict[str, Any]:
    """See the top of this file; a second attempt begins anew."""
    context, payload = running.context, running.payload
    work = context.settings.home / "exports" / running.job_id
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        with context.database.read() as session:
            version = datasets.get_version(session, str(payload["model"]), payload.get("version"))

        def progress(done: int, total: int) -> None:
            if done % 200 == 0:
                running.check_cancelled()
                running.report(step="exporting", photo=done, photos=total)

        name = f"{version.model}-{version.number}-{payload['format']}"
        photos = datasets.export(context, version, work / name, str(payload["format"]), progress=progress)
        archive = work / "export.zip"
        _zip(work / name, archive, running)
        key = f"exports/{running.job_id}.zip"
        context.store.put_file(key, archive)
        return {"key": key, "photos": photos, "size_bytes": archive.stat().st_size}
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _zip(folder: Path, archive: Path, running: Running) -> None:
    """Photos are packed as they are: they do not shrink."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as out:
        for number, file in enumerate(sorted(f for f in folder.rglob("*") if f.is_file())):
            if number % 200 == 0:
                running.check_cancelled()
            out.write(file, file.relative_to(folder.parent).as_posix())
