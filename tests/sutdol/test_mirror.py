"""The registry's copy in MLflow: everything arrives, catches up after an absence, and never stands in anybody's way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlmodel import col, select

from sutdol import mirror, versions
from sutdol.context import Context
from sutdol.errors import SetupError
from sutdol.jobs import clock, worker
from sutdol.settings import load
from sutdol.tables import Job
from tests.tiny_models import classifier_bundle

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # mlflow warns of its own future
pytest.importorskip("mlflow")


def mirrored(context: Context, address: str) -> Job:
    """The periodic job once, as the clock sends it."""
    told = Context(load(home=context.settings.home, mlflow_url=address), context.database, context.store)
    clock.send_periodic(told, ["registry.mirror"])
    worker.run_pending(told, mirror.HANDLERS)
    with context.database.read() as session:
        jobs = select(Job).where(Job.kind == "registry.mirror").order_by(col(Job.created_at).desc())
        job = session.exec(jobs).first()
    assert job is not None
    return job


def delete(context: Context, version: int) -> None:
    with context.database.begin() as session:
        for job in session.exec(select(Job).where(Job.state == "queued")):  # the bridge's refresh would protect it
            job.state = "done"
        plan = versions.plan_deletion(session, context.store, "tiny", version, lease_s=1)
        versions.delete(session, context.store, "tiny", version, confirm=plan.token, who="t", lease_s=1)


def test_versions_aliases_tags_and_deletions_arrive_also_after_an_absence(context: Context, tmp_path: Path) -> None:
    """A promotion commits while MLflow is away; what happened meanwhile is there at the next look."""
    first = classifier_bundle(context)
    assert mirrored(context, "").result == {"off": True}, "nobody asked for one"
    job = mirrored(context, "http://127.0.0.1:1")
    assert (job.state, "catches up by itself" in str(job.error)) == ("failed", True)
    second = classifier_bundle(context)  # registered and promoted, mirror or not
    with context.database.begin() as session:
        versions.tag(session, "tiny", second, "line", "2", who="t")
        versions.point(session, "tiny", "staging", first, who="t")

    from mlflow import MlflowClient

    address = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowClient(tracking_uri=address, registry_uri=address)
    client.create_experiment(mirror.EXPERIMENT, artifact_location=(tmp_path / "artifacts").as_uri())
    assert mirrored(context, address).result == {"added": 2, "changed": 0, "removed": 0}
    champion = client.get_model_version_by_alias("tiny", "champion")
    assert (champion.tags["sutdol.version"], champion.tags["line"]) == (str(second), "2")
    assert client.get_model_version_by_alias("tiny", "previous").tags["sutdol.version"] == str(first)
    assert client.get_model_version_by_alias("tiny", "staging").tags["sutdol.version"] == str(first)
    assert client.get_run(champion.run_id).data.metrics == {"accuracy": 1.0}
    folder = Path(client.download_artifacts(champion.run_id, "model", str(tmp_path)))
    assert (folder / "model.onnx").read_bytes() == context.store.get(f"models/tiny/{second}/model.onnx")
    assert "onnx" in (folder / "MLmodel").read_text()
    assert mirrored(context, address).result == {"added": 0, "changed": 0, "removed": 0}, "nothing twice"

    third = classifier_bundle(context)
    with context.database.begin() as session:
        versions.rename(session, "tiny", third, "the third", who="t")
        versions.tag(session, "tiny", second, "line", None, who="t")
        versions.point(session, "tiny", "staging", None, who="t")
    delete(context, first)
    assert mirrored(context, address).result == {"added": 1, "changed": 1, "removed": 1}
    known: dict[str, Any] = {v.tags["sutdol.version"]: v for v in client.search_model_versions("name='tiny'")}
    assert set(known) == {str(second), str(third)}
    assert "line" not in known[str(second)].tags
    assert known[str(third)].description.startswith("the third")
    assert client.get_model_version_by_alias("tiny", "champion").version == known[str(third)].version
    assert set(client.get_registered_model("tiny").aliases) == {"champion", "previous"}

    client.delete_registered_model("tiny")
    assert mirrored(context, address).result == {"added": 2, "changed": 0, "removed": 0}, "emptied, and filled again"


def test_without_the_library_the_remedy_is_told(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    import sys

    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(SetupError, match=r"pip install 'sutdol\[mlflow\]'"):
        mirror._open("http://127.0.0.1:1")
