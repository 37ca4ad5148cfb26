"""How fast the bridge is beside the real Label Studio on PostgreSQL, and what it costs the people who label.

    python -m tests.benchmarks.bridge [SAMPLES]

    push: SAMPLES tasks by the bridge and by Label Studio's own import, in turns of 500, both in batches of 50 (target >= 70 %)
    submit: a labeler's submit with our webhook and without, in turns (target: at most 100 ms slower)
    usable: from the submit to the label in our database, with the webhook (target <= 2 s) and by the poll alone
    rescore: all open tasks after a swap, the refresh killed with SIGKILL half-way (target: it goes on where it was)

Needs Label Studio's virtual environment and a PostgreSQL server that may make databases.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "labeling_bridge"))

from sqlmodel import col, select

from labeling_bridge.convert import label_results
from labeling_bridge.jobs import HANDLERS
from labeling_bridge.project import task_body
from labeling_bridge.push import BATCH
from labeling_bridge.studio import Studio
from sutdol import images, jobs
from sutdol.context import Context
from sutdol.jobs import rows
from sutdol.jobs.worker import run_pending
from sutdol.settings import child_environment
from sutdol.tables import Job, LabelRow, LabelTask, Model, Sample, now
from sutdol.types import Label
from tests.job_processes import postgres
from tests.studio_fixture import RealStudio

TURN = 500
SUBMITS = 40
ANSWER = {"classes": [{"label": "red", "index": 0, "confidence": 0.55}], "boxes": []}


def main(samples: int = 10_000) -> None:
    """Print every figure beside its target."""
    with tempfile.TemporaryDirectory() as folder, postgres() as ours, postgres() as theirs:
        server = RealStudio(Path(folder) / "studio", label_studio_database_url=theirs)
        server.start()
        try:
            from bridge_server import serving_routes  # type: ignore[import-not-found]

            home = Path(folder) / "home"
            more = {"database_url": ours, "max_open_tasks": samples + 1000, "labels_per_day": 10**6}
            with serving_routes(server, home, **more) as context, Studio.open(context) as studio:
                slug = make_model(context)
                push(context, studio, slug, samples)
                submit_and_usable(server, context, studio, slug)
                rescore(context, studio, slug)
        finally:
            server.kill()


def make_model(context: Context) -> str:
    """A model with one version that knows colours; its champion has scored nothing yet."""
    from tests.tiny_models import classifier_bundle

    classifier_bundle(context, "bench")
    forget(context)
    return "bench"


def forget(context: Context) -> None:
    with context.database.begin() as session:
        for job in session.exec(select(Job).where(Job.state == "queued")):
            session.delete(job)


def add(context: Context, slug: str, count: int, *, first: int, image: bytes) -> None:
    """`count` queued tasks; their images are copies of one, stored under each id."""
    with context.database.begin() as session:
        for i in range(first, first + count):
            sample_id = f"{i:064x}"
            context.store.put(f"samples/{sample_id}", image)
            session.add(Sample(id=sample_id, width_px=40, height_px=40, media_type="image/png", size_bytes=len(image)))
            row = LabelTask(
                model=slug,
                sample_id=sample_id,
                prediction_id="p",
                version=1,
                arm="drawn",
                inclusion_probability=0.5,
                reason="drawn at random (1 in 2)",
                priority=(i % 997) / 997,
                uncertainty=0.5,
                answer=ANSWER,
                state="queued",
                queued_at=now(),
            )
            session.add(row)


def push(context: Context, studio: Studio, slug: str, samples: int) -> None:
    """Both roads in turns, so that both see Label Studio grow and the machine's moods."""
    from tests.tiny_models import coloured_png

    image = coloured_png("green", seed=1)
    with context.database.read() as session:
        model = session.get_one(Model, slug)
    add(context, slug, 1, first=0, image=image)
    job(context, "bridge.push", model=slug)  # makes the project
    plain = studio.create_project("plain import", "benchmark", "<View><Image name='image' value='$image'/></View>")
    bridge_s = own_s = 0.0
    for turn in range(samples // TURN):
        first = 1 + turn * TURN
        add(context, slug, TURN, first=first, image=image)
        with context.database.read() as session:
            found = session.exec(select(LabelTask).where(LabelTask.state == "queued")).all()
            ids = [row.sample_id for row in found]
            known = {s.id: s for s in session.exec(select(Sample).where(col(Sample.id).in_(ids)))}
        bodies = [task_body(row, known[row.sample_id], model, f"http://127.0.0.1/{row.sample_id}") for row in found]
        began = time.perf_counter()
        for start in range(0, TURN, BATCH):
            studio.import_tasks(plain, bodies[start : start + BATCH])
        own_s += time.perf_counter() - began
        began = time.perf_counter()
        done = job(context, "bridge.push", model=slug)["pushed"][slug]
        bridge_s += time.perf_counter() - began
        assert done == TURN, done
    count = samples // TURN * TURN
    there = sum(1 for _ in studio.listing(project_of(context, slug)))
    print(f"own import, batches of {BATCH}: {count / own_s:.0f} tasks/s")
    print(f"bridge, batches of {BATCH}:     {count / bridge_s:.0f} tasks/s")
    print(
        f"bridge / own import:         {own_s / bridge_s:.0%} (target >= 70 %); {there} tasks for {count + 1} samples"
    )
    studio.delete_project(plain)


def submit_and_usable(server: RealStudio, context: Context, studio: Studio, slug: str) -> None:
    """A labeler's submits, with the webhook and without, in turns; then how soon a label counts."""
    project_id = project_of(context, slug)
    hook = studio.ask("GET", "/api/webhooks/", params={"project": project_id}).json()[0]["id"]
    with context.database.read() as session:
        waiting = select(LabelTask).where(LabelTask.model == slug, LabelTask.state == "in_studio")
        tasks = list(session.exec(waiting.limit(2 * SUBMITS + 20)))
    body = {"result": label_results(Label(classes=["green"]), "classify", width_px=1, height_px=1), "lead_time": 1.0}
    times: dict[bool, list[float]] = {True: [], False: []}
    with server.annotator() as person:
        person.next_task(project_id)
        for i, task in enumerate(tasks[: 2 * SUBMITS]):
            active = i % 2 == 0
            studio.ask("PATCH", f"/api/webhooks/{hook}/", json={"is_active": active})
            began = time.perf_counter()
            person.submit(int(task.studio_task_id or 0), body)
            times[active].append(time.perf_counter() - began)
        on, off = (statistics.median(times[k]) * 1000 for k in (True, False))
        print(f"submit, median of {SUBMITS}: {on:.0f} ms with the webhook, {off:.0f} ms without")
        print(f"webhook costs a submit {on - off:+.0f} ms (target <= +100 ms)")
        studio.ask("PATCH", f"/api/webhooks/{hook}/", json={"is_active": True})
        forget(context)
        with working(context):
            by_hook = [_usable(person, context, slug, task, body) for task in tasks[2 * SUBMITS : 2 * SUBMITS + 10]]
            studio.ask("PATCH", f"/api/webhooks/{hook}/", json={"is_active": False})
            by_poll = [_usable(person, context, slug, task, body) for task in tasks[2 * SUBMITS + 10 :]]
    print(
        f"label -> usable: {statistics.median(by_hook):.2f} s, at most {max(by_hook):.2f} s by webhook (target <= 2 s)"
    )
    interval = context.settings.poll_interval_s
    print(f"label -> usable: at most {max(by_poll):.2f} s by poll alone (target: its interval, here {interval:.0f} s)")


def _usable(person: Studio, context: Context, slug: str, task: LabelTask, body: dict[str, Any]) -> float:
    began = time.perf_counter()
    person.submit(int(task.studio_task_id or 0), body)
    while time.perf_counter() - began < 60:
        with context.database.read() as session:
            if session.get(LabelRow, (slug, task.sample_id)) is not None:
                break
        time.sleep(0.01)
    return time.perf_counter() - began


@contextmanager
def working(context: Context) -> Iterator[None]:
    """A worker and a clock for reading, in a thread."""
    stop = threading.Event()

    def work() -> None:
        due = 0.0
        while not stop.is_set():
            if time.monotonic() >= due:
                due = time.monotonic() + context.settings.poll_interval_s
                with context.database.begin() as session:
                    jobs.send(session, "bridge.read", {}, unique_key="clock:bridge.read")
            run_pending(context, {k: HANDLERS[k] for k in ("bridge.read", "bridge.hint")})
            stop.wait(0.05)

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


def rescore(context: Context, studio: Studio, slug: str) -> None:
    """A swap with everything open; the worker is killed half-way, the next one goes on."""
    from tests.tiny_models import classifier_bundle, classifier_onnx

    new = classifier_bundle(context, slug, onnx_bytes=classifier_onnx(sharpness=20.0))
    forget(context)

    def left() -> int:
        with context.database.read() as session:
            old = (LabelTask.model == slug, LabelTask.state == "in_studio", LabelTask.version != new)
            return len(session.exec(select(LabelTask.id).where(*old)).all())

    total = left()
    with context.database.begin() as session:
        jobs.send(session, "bridge.refresh", {"model": slug, "version": new})
    began = time.perf_counter()
    worker = _refresher(context)
    while left() > total / 2:
        time.sleep(0.2)
    worker.kill()
    worker.join()
    half, killed = left(), time.perf_counter() - began
    worker = _refresher(context)
    while left():
        time.sleep(0.2)
    seconds = time.perf_counter() - began
    worker.kill()
    worker.join()
    known = studio.changed_since(project_of(context, slug), "")
    double = 0
    for task in studio.whole(project_of(context, slug), sorted(known)[:: max(len(known) // 1000, 1)]):
        names = [p["model_version"] for p in task.predictions]
        double += len(names) != len(set(names))
    print(f"re-scored {total} open tasks in {seconds:.0f} s ({total / seconds:.0f}/s), killed after {killed:.0f} s")
    print(
        f"after the kill {half} were left and were done by the next worker; predictions doubled: {double} of 1,000 tasks"
    )


def _refresher(context: Context) -> Any:
    process = multiprocessing.get_context("spawn").Process(
        target=_refresh, args=(child_environment(context.settings, SUTDOL_LEASE_S="3", SUTDOL_HEARTBEAT_S="0.5"),)
    )
    process.start()
    return process


def _refresh(environment: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(environment)
    from labeling_bridge import project
    from sutdol.context import open_context
    from sutdol.settings import load

    project.LEASE_S = 10.0
    context = open_context(load())
    while True:
        rows.sweep(context.database)
        run_pending(context, {"bridge.refresh": HANDLERS["bridge.refresh"]})
        time.sleep(0.1)


def job(context: Context, kind: str, **payload: object) -> dict[str, Any]:
    """Do one job here."""
    with context.database.begin() as session:
        job_id = jobs.send(session, kind, payload)
    run_pending(context, {kind: HANDLERS[kind]})
    with context.database.read() as session:
        done = session.get_one(Job, job_id)
    assert done.state == "done", done.error
    forget(context)
    return done.result or {}


def project_of(context: Context, slug: str) -> int:
    from sutdol.tables import StudioProject

    with context.database.read() as session:
        return session.get_one(StudioProject, slug).project_id


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)

__all__ = ["images", "main"]
