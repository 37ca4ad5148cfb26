"""The ML backend as the real Label Studio calls it."""

from __future__ import annotations

import pytest
from bridge_rows import add_task
from bridge_server import serving_routes
from bridge_steps import forget_jobs, project, push, run

from labeling_bridge.studio import Studio
from sutdol import images
from sutdol.tables import Sample
from tests.studio_fixture import StudioServer
from tests.tiny_models import classifier_bundle, coloured_png

pytestmark = [pytest.mark.slow, pytest.mark.studio]


def test_label_studio_connects_and_takes_predictions_from_us(real_studio, tmp_path):
    """The protocol is what the server does, not what its documents say."""
    with serving_routes(real_studio, tmp_path / "home", ml_backend=True) as context, Studio.open(context) as studio:
        slug = StudioServer.slug()
        version = classifier_bundle(context, slug)
        forget_jobs(context)
        image = images.admit(coloured_png("green", seed=1))
        context.store.put(f"samples/{image.sample_id}", image.data)
        with context.database.begin() as session:
            session.add(Sample(id=image.sample_id, width_px=40, height_px=40, media_type="image/png", size_bytes=1))
        answer = {"classes": [{"label": "red", "index": 0, "confidence": 0.5}], "boxes": []}
        add_task(context, slug, image.sample_id, version=version, answer=answer)
        push(context, slug)
        project_id = project(context, slug).project_id
        (connected,) = studio.ask("GET", "/api/ml/", params={"project": project_id}).json()
        assert (connected["state"], connected["is_interactive"]) == ("CO", False)
        assert studio.project(project_id)["model_version"] == f"{slug}-v{version}", "not the backend's title"
        bare = {"image": "http://127.0.0.1/x.png", "sample_id": image.sample_id, "reason": "bare"}
        (task_id,) = studio.import_tasks(project_id, [{"data": bare}])
        studio.ask("GET", f"/api/tasks/{task_id}/", params={"project": project_id})
        found = {p["model_version"]: p for p in studio.ask("GET", f"/api/tasks/{task_id}/").json()["predictions"]}
        assert found[f"{slug}-v{version}"]["result"][0]["value"] == {"choices": ["green"]}
        run(context, "bridge.sweep", model=slug)
        assert len(studio.ask("GET", "/api/ml/", params={"project": project_id}).json()) == 1, "connected once"
