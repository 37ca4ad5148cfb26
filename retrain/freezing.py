"""The job `retrain.freeze`: the labels of a model, as they are, become a dataset version.

{"model", "name"} -> {"version", "number"}; the newest version again when nothing changed since.

Errors: DatasetError when the model has no labels yet.
"""

from __future__ import annotations

from typing import Any

from retrain import datasets
from sutdol.jobs import Running


def handle(running: Running) -> dict[str, Any]:
    """See the top of this file; a second attempt finds the version that the first one made."""
    payload = running.payload
    with running.commit() as session:
        version = datasets.freeze(session, str(payload["model"]))
        if payload.get("name"):
            datasets.describe(version, name=str(payload["name"]))
            session.add(version)
        return {"version": version.id, "number": version.number}
