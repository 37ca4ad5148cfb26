"""The bridge and its labelers in a bad hour, by a seed: what may go wrong does, at once, and afterwards everything is counted.

    Chaos(server, home, seed, plan).run() -> Verdict

Real: the bridge's jobs in a process of their own that is killed with SIGKILL, its routes (webhook) on a port, the database, two
labelers with accounts of their own. Label Studio is the fake or the real server, killed and started again; its network loses
answers (`LossyProxy` before the real one, `faults` in the fake). Nobody stops working while it happens.

What is promised about a submitted answer: if it stands in Label Studio at the end, was there during one whole poll, or its
webhook was answered, it is in our database exactly once, with its class. What was deleted sooner is counted as lost there.

Longer than the ceiling: what happens and how it is counted have to be read together, or a loss is counted as somebody's wish.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

from sqlmodel import select

from labeling_bridge.convert import label_results
from labeling_bridge.studio import Studio, StudioTask
from sutdol import registry
from sutdol.context import Context, open_context
from sutdol.errors import StudioError
from sutdol.settings import child_environment
from sutdol.tables import Annotation, Job, JobAttempt, LabelRow, LabelTask, Sample, StudioProject
from sutdol.types import Label
from tests.studio_fixture import FakeStudio, RealStudio, StudioServer, free_port

CLASSES = ["a", "b", "c"]
PRELOAD = ["sutdol.jobs.worker", "sutdol.jobs.clock", "alembic.command", "labeling_bridge.jobs", "label_studio_sdk"]


@dataclass(frozen=True)
class Plan:
    """How bad, how long: until `answers` times `samples` answers were given.

    `pace` stretches every waiting time of the bridge: 1 for the fake, more for the real server.
    """

    samples: int = 120
    answers: float = 0.6
    patience_s: float = 0.4
    bridge_kills: int = 2
    studio_kills: int = 2
    deleted_tasks: int = 3
    deleted_projects: int = 1
    pace: float = 1.0
    settle_s: float = 60.0
    labeler_pause_s: float = 0.02
    network: float = 0.08
    """Probability of each of the network's faults for one request."""


@dataclass
class Said:
    """One answer as its labeler remembers it."""

    annotation: int
    task: int
    project: int
    sample_id: str
    kind: str
    """valid | skipped | empty | taken-back"""
    name: str
    at: float
    gone_at: float | None = None


@dataclass
class Verdict:
    """What was found when all was quiet again."""

    tasks: int = 0
    twice: int = 0
    missing: int = 0
    without_prediction: int = 0
    submitted: int = 0
    labels: int = 0
    lost_by_us: list[str] = field(default_factory=list)
    lost_in_studio: int = 0
    """Deleted there sooner than a poll, and no hint was answered."""
    wrong: list[str] = field(default_factory=list)
    trained_on_nothing: list[str] = field(default_factory=list)
    drawn_gone: int = 0
    states: Counter[str] = field(default_factory=Counter)
    faults: dict[str, int] = field(default_factory=dict)
    failed_jobs: list[str] = field(default_factory=list)
    seconds: float = 0.0


def check(verdict: Verdict, samples: int) -> None:
    """The promise, in numbers."""
    assert (verdict.tasks, verdict.twice, verdict.missing) == (samples, 0, 0), verdict
    assert verdict.without_prediction == 0, verdict
    assert not verdict.lost_by_us, verdict
    assert not verdict.wrong, verdict
    assert not verdict.trained_on_nothing, verdict
    assert verdict.drawn_gone == 0, verdict
    assert verdict.submitted > samples / 10, f"nobody was working: {verdict}"


def truth(sample_id: str) -> str:
    return CLASSES[int(sample_id[:8], 16) % len(CLASSES)]


class Chaos:
    """One run; use it once."""

    def __init__(
        self, server: StudioServer, home: Path, seed: int, plan: Plan | None = None, *, database_url: str = ""
    ) -> None:
        self.server, self.seed, self.plan = server, seed, plan or Plan()
        self.rng = random.Random(seed)
        self.receiver = _Receiver()
        self.proxy: Any = None
        url = server.url
        if not isinstance(server, FakeStudio):
            from tests.labeling_bridge.lossy_proxy import LossyProxy

            self.proxy = LossyProxy(server.port)
            self.proxy.__enter__()
            url = self.proxy.url
        pace = self.plan.pace
        self.context = server.open(
            home,
            label_studio_url=url,
            public_url=self.receiver.url,
            database_url=database_url,
            lease_s=0.6 * pace,
            heartbeat_s=0.15 * pace,
            max_open_tasks=self.plan.samples,
            unlabelable_after_skips=2,
        )
        self.receiver.serve(self.context)
        self.slug = server.slug()
        self.said: list[Said] = []
        self.tried: dict[str, set[str]] = {}
        """Sample -> classes that somebody sent, whether it was confirmed or not."""
        self.sample_ids: list[str] = []
        self.bridge: Any = None
        self.stopping = threading.Event()
        self.trouble: list[str] = []

    # ---- the run

    def run(self) -> Verdict:
        began = time.monotonic()
        try:
            self._add_samples()
            people = [self.server.annotator() for _ in range(2)]
            self._start_bridge()
            threads = [threading.Thread(target=self._label, args=(p, i)) for i, p in enumerate(people)]
            for thread in threads:
                thread.start()
            self._misbehave(people[0])
            self.stopping.set()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive(), "a labeler hangs"
            self._settle()
            verdict = self._judge()
            for person in people:
                person.close()
        finally:
            self.stopping.set()
            self._kill_bridge()
            self.receiver.close()
            if self.proxy is not None:
                self.proxy.__exit__(None, None, None)
            self.context.database.close()
        verdict.seconds = time.monotonic() - began
        return verdict

    def _add_samples(self) -> None:
        with self.context.database.begin() as session:
            registry.create_model(session, self.slug, task="classify", classes=CLASSES, family="timm")
        rng = random.Random(self.seed + 1000)
        with self.context.database.begin() as session:
            for i in range(self.plan.samples):
                sample_id = f"{rng.getrandbits(256):064x}"
                self.sample_ids.append(sample_id)
                session.add(Sample(id=sample_id, width_px=8, height_px=8, media_type="image/png", size_bytes=1))
                drawn = i % 2 == 0
                row = LabelTask(
                    model=self.slug,
                    sample_id=sample_id,
                    prediction_id=str(uuid4()),
                    version=1,
                    arm="drawn" if drawn else "unfamiliar",
                    inclusion_probability=0.25 if drawn else None,
                    reason="drawn at random (1 in 4)" if drawn else "unlike anything seen before",
                    priority=rng.random(),
                    uncertainty=0.5,
                    answer={"classes": [{"label": rng.choice(CLASSES), "index": 0, "confidence": 0.6}], "boxes": []},
                    blind=i % 10 == 9,
                    state="queued",
                )
                session.add(row)

    def _misbehave(self, person: Studio) -> None:
        """Everything that goes wrong, spread over the labelers' work in an order that the seed decides.

        By answers and not by the clock, so that a slow machine sees the same; where nobody can work, the next thing happens
        after `patience_s`.
        """
        plan = self.plan
        acts = ["bridge"] * plan.bridge_kills + ["studio"] * plan.studio_kills
        acts += ["task"] * plan.deleted_tasks + ["project"] * plan.deleted_projects + ["hooks"] * 4
        self.rng.shuffle(acts)
        moments = sorted(self.rng.uniform(0.02, plan.answers) * plan.samples for _ in acts)
        self._network(plan.network)
        for moment, act in zip(moments, acts, strict=True):
            self._await_answers(moment)
            if act == "bridge":
                self._kill_bridge()
                self._start_bridge()
            elif act == "studio":
                self.server.kill()
                time.sleep(self.rng.uniform(0.02, 0.2) * plan.pace)
                self.server.start()
            elif act == "hooks":
                self.receiver.on = not self.receiver.on
            else:
                with contextlib.suppress(StudioError):  # it is down or was deleted; another time
                    self._delete(person, act)
        self._await_answers(plan.answers * plan.samples)

    def _await_answers(self, count: float) -> None:
        deadline, patience = time.monotonic() + self.plan.settle_s, len(self.said)
        stalled = time.monotonic() + self.plan.patience_s
        while len(self.said) < count and time.monotonic() < deadline:
            if len(self.said) > patience or not self.said:
                patience, stalled = len(self.said), time.monotonic() + self.plan.patience_s
            elif time.monotonic() > stalled:
                return
            time.sleep(0.005)

    def _network(self, chance: float) -> None:
        if isinstance(self.server, FakeStudio):
            faults = self.server.fake.faults
            faults.__init__(seed=self.seed)  # type: ignore[misc]
            for name in ("lose_answers", "late", "fail_before", "fail_after", "locked", "lose_predictions", "slow"):
                setattr(faults, name, chance)
            faults.late, faults.lose_predictions, faults.drop_webhooks = 3 * chance, 3 * chance, 0.2
        elif self.proxy is not None:
            self.proxy.lose, self.proxy.early = 10**9 if chance else 0, True
            self.proxy.chance, self.proxy.rng = chance * 3, random.Random(self.seed)

    def _delete(self, person: Studio, what: str) -> None:
        with self.context.database.read() as session:
            project = session.get(StudioProject, self.slug)
        if project is None:
            return
        # What may vanish at any moment from here on is not promised; what is deleted is known only afterwards.
        before = time.time()
        if what == "project":
            with self.receiver.lock:
                for said in self.said:
                    if said.project == project.project_id and said.gone_at is None:
                        said.gone_at = before
            person.ask("DELETE", f"/api/projects/{project.project_id}/", allowed=(404,))
            return
        tasks = list(person.changed_since(project.project_id, ""))
        if not tasks:
            return
        chosen = self.rng.choice(tasks)
        with self.receiver.lock:
            for said in self.said:
                if said.task == chosen and said.gone_at is None:
                    said.gone_at = before
        person.ask("DELETE", f"/api/tasks/{chosen}/", allowed=(404,))

    # ---- the labelers

    def _label(self, person: Studio, number: int) -> None:
        rng = random.Random(self.seed * 10 + number)
        while not self.stopping.is_set():
            try:
                self._one(person, rng)
            except StudioError:
                time.sleep(0.02 * self.plan.pace)  # they reload the page
            except Exception as error:  # the outermost loop of this thread: told at the end
                self.trouble.append(repr(error))
                return

    def _one(self, person: Studio, rng: random.Random) -> None:
        with self.context.database.read() as session:
            project = session.get(StudioProject, self.slug)
        task = person.next_task(project.project_id) if project is not None else None
        if project is None or task is None:
            time.sleep(0.05 * self.plan.pace)
            return
        time.sleep(self.plan.labeler_pause_s)
        sample_id = task["data"]["sample_id"]
        luck, name = rng.random(), truth(sample_id)
        if luck < 0.10:
            self._submit(person, task, "skipped", "")
        elif luck < 0.15:
            self._submit(person, task, "empty", "")
        elif luck < 0.25:  # another class first, then the right one
            said = self._submit(person, task, "valid", CLASSES[(CLASSES.index(name) + 1) % 3])
            changed = {"result": _choice(name), "lead_time": 1.0}
            said.name = "?"  # until the change is confirmed, either may stand there
            self.tried[sample_id].add(name)
            person.ask("PATCH", f"/api/annotations/{said.annotation}/", json=changed)
            said.name = name
        elif luck < 0.30:  # and changes their mind
            said = self._submit(person, task, "valid", name)
            said.kind = "taken-back"
            person.ask("DELETE", f"/api/annotations/{said.annotation}/", allowed=(404,))
        else:
            self._submit(person, task, "valid", name)

    def _submit(self, person: Studio, task: dict[str, Any], kind: str, name: str) -> Said:
        body: dict[str, Any] = {"lead_time": 1.0, "was_cancelled": kind == "skipped"}
        shown = task["predictions"][0]["result"] if task.get("predictions") else []
        body["result"] = _choice(name) if kind == "valid" else shown if kind == "skipped" else []
        self.tried.setdefault(task["data"]["sample_id"], set()).add(name)  # it may arrive and never be confirmed
        annotation = person.submit(task["id"], body)
        said = Said(annotation, task["id"], task["project"], task["data"]["sample_id"], kind, name, time.time())
        with self.receiver.lock:
            self.said.append(said)
        return said

    # ---- the bridge

    def _start_bridge(self) -> None:
        server = multiprocessing.get_context("forkserver")
        server.set_forkserver_preload(PRELOAD)
        environment = child_environment(self.context.settings)
        log = self.context.settings.home / "bridge.log"
        self.bridge = server.Process(target=bridge_process, args=(environment, log, self.plan.pace))
        self.bridge.start()

    def _kill_bridge(self) -> None:
        if self.bridge is not None:
            self.bridge.kill()
            self.bridge.join(10)

    def _settle(self) -> None:
        """The faults end, the processes stay; wait until nothing is left to do."""
        if isinstance(self.server, FakeStudio):
            self.server.fake.faults.end()
            self.server.fake.settle()
        else:
            self._network(0.0)
        self.receiver.on = True
        assert not self.trouble, self.trouble
        deadline, quiet_since = time.monotonic() + self.plan.settle_s, time.time()
        while self._rounds(quiet_since) < 2:
            assert time.monotonic() < deadline, f"it does not settle: {self._left()}\n{self._log()}"
            assert self.bridge.is_alive(), self._log()
            if self._left():
                quiet_since = time.time()
            time.sleep(0.05 * self.plan.pace)

    def _rounds(self, since: float) -> int:
        """How many whole rounds of poll, sweep and push were begun and ended since then, whatever the machine's speed."""
        with self.context.database.read() as session:
            done = session.exec(
                select(Job.kind)
                .join(JobAttempt, JobAttempt.job_id == Job.id)  # type: ignore[arg-type]
                .where(JobAttempt.started_at > since, JobAttempt.outcome == "done")
            ).all()
        counts = Counter(done)
        return min(counts[kind] for kind in ("bridge.read", "bridge.sweep", "bridge.push"))

    def _left(self) -> str:
        """What is still to be done; empty when nothing is."""
        with self.context.database.read() as session:
            queued = session.exec(
                select(LabelTask.id).where(LabelTask.model == self.slug, LabelTask.state == "queued")
            ).all()
            kinds = ("bridge.reask", "bridge.refresh", "bridge.hint")
            jobs = session.exec(
                select(Job.kind).where(Job.kind.in_(kinds), Job.state.in_(("queued", "running")))  # type: ignore[attr-defined]
            ).all()
        return f"{len(queued)} queued tasks, jobs {jobs}" if queued or jobs else ""

    def _log(self) -> str:
        log = self.context.settings.home / "bridge.log"
        return log.read_text()[-3000:] if log.exists() else ""

    # ---- the count

    def _judge(self) -> Verdict:
        verdict = Verdict(submitted=len(self.said))
        with self.context.database.read() as session:
            rows = session.exec(select(LabelTask).where(LabelTask.model == self.slug)).all()
            labels = {r.sample_id: r for r in session.exec(select(LabelRow).where(LabelRow.model == self.slug))}
            revisions = session.exec(select(Annotation)).all()
            project = session.get_one(StudioProject, self.slug)
            polls = session.exec(
                select(JobAttempt.started_at, JobAttempt.ended_at)
                .join(Job, Job.id == JobAttempt.job_id)  # type: ignore[arg-type]
                .where(Job.kind == "bridge.read", Job.flight_key == "chaos:bridge.read", JobAttempt.outcome == "done")
            ).all()
        with Studio.open(self.server.context) as studio:
            known = studio.changed_since(project.project_id, "")
            tasks = list(studio.whole(project.project_id, known))
            version = (studio.project(project.project_id) or {})["model_version"]
        counts = Counter(t.sample_id for t in tasks)
        verdict.tasks, verdict.twice = len(tasks), sum(n > 1 for n in counts.values())
        verdict.missing = len(set(self.sample_ids) - set(counts))
        verdict.without_prediction = sum(all(p["model_version"] != version for p in t.predictions) for t in tasks)
        verdict.states = Counter(row.state for row in rows)
        verdict.labels = len(labels)
        verdict.drawn_gone = sum(row.arm == "drawn" and row.state == "withdrawn" for row in rows)
        verdict.drawn_gone += self.plan.samples - len(rows)
        self._judge_answers(verdict, tasks, project.project_id, revisions, polls)
        self._judge_labels(verdict, rows, labels)
        with self.context.database.read() as session:
            failed = session.exec(select(Job.kind, Job.error).where(Job.state == "failed")).all()
        verdict.failed_jobs = [f"{kind}: {error}"[:300] for kind, error in failed]
        verdict.faults = dict(self.server.fake.faults.counts) if isinstance(self.server, FakeStudio) else {}
        if self.proxy is not None:
            verdict.faults = {"lose_answers": self.proxy.lost}
        return verdict

    def _judge_answers(
        self, verdict: Verdict, tasks: list[StudioTask], project_id: int, revisions: Any, polls: Any
    ) -> None:
        newest: dict[tuple[int, int], Annotation] = {}
        for revision in sorted(revisions, key=lambda r: r.updated_at):
            newest[(revision.project_id, revision.annotation_id)] = revision
        present = {int(a["id"]): a for t in tasks for a in t.annotations}
        for number, annotation in present.items():
            mine = newest.get((project_id, number))
            if mine is None or mine.updated_at != annotation["updated_at"]:
                verdict.lost_by_us.append(f"annotation {number} stands in Label Studio and not with us")
        for said in self.said:
            if said.gone_at is None and (said.project != project_id or said.task not in {t.id for t in tasks}):
                said.gone_at = said.at  # it was deleted before its labeler had written it down
            mine = newest.get((said.project, said.annotation))
            polled = any(
                began > said.at and ended is not None and ended < (said.gone_at or 1e18) for began, ended in polls
            )
            answered = said.annotation in self.receiver.answered
            if mine is None:
                here = said.project == project_id and said.annotation in present
                if here or answered or (polled and said.kind != "taken-back"):
                    verdict.lost_by_us.append(f"{said}: polled {polled}, hint answered {answered}")
                elif said.kind != "taken-back":
                    verdict.lost_in_studio += 1
            elif said.kind == "valid" and mine.state == "valid" and said.name != "?":
                assert mine.value is not None
                if said.gone_at is None and mine.value["classes"] != [said.name]:
                    verdict.wrong.append(f"{said}: {mine.value}")

    def _judge_labels(self, verdict: Verdict, rows: Any, labels: dict[str, LabelRow]) -> None:
        for row in rows:
            label = labels.get(row.sample_id)
            if row.state == "annotated" and label is None:
                verdict.lost_by_us.append(f"task {row.studio_task_id} is annotated and has no label")
            if row.state != "annotated" and label is not None:
                verdict.trained_on_nothing.append(f"{row.sample_id[:8]} is {row.state} and has a label")
            if label is not None:
                name = label.value["classes"][0]
                if name not in self.tried.get(row.sample_id, set()):
                    verdict.wrong.append(f"{row.sample_id[:8]}: label {name}, said {self.tried.get(row.sample_id)}")


def _choice(name: str) -> list[dict[str, Any]]:
    return label_results(Label(classes=[name]), "classify", width_px=1, height_px=1)


class _Receiver:
    """The bridge's routes on a port, in this process, for Label Studio's webhook; off, it answers nobody."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.on = True
        self.lock = threading.RLock()
        self.answered: set[int] = set()
        """Annotations whose hint was answered with 200 as one of ours."""
        self._server: ThreadingHTTPServer | None = None
        self._client: Any = None

    def serve(self, context: Context) -> None:
        from litestar import Litestar
        from litestar.testing import TestClient

        from labeling_bridge import routes

        routes.HINT_DELAY_S = 0.02
        app = Litestar([routes.build(context)], openapi_config=None)
        self._client = TestClient(app)
        self._client.__enter__()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if not outer.on:
                    self.close_connection = True
                    return
                headers = {k: v for k, v in self.headers.items() if k.lower() not in ("host", "content-length")}
                with outer.lock:
                    answer = outer._client.post("/v1/label-studio/webhook", content=body, headers=headers)
                    if answer.status_code == 200 and answer.json()["known"]:
                        import json

                        one = json.loads(body).get("annotation")
                        if isinstance(one, dict):
                            outer.answered.add(int(one["id"]))
                self.send_response(answer.status_code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", self.port), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        if self._client is not None:
            self._client.__exit__(None, None, None)


def bridge_process(environment: dict[str, str], log: Path, pace: float) -> None:
    """Clock and worker of the bridge in one process, with short waits; ended by SIGKILL alone."""
    os.environ.clear()
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    from labeling_bridge import jobs as bridge_jobs
    from labeling_bridge import project, push, read, routes
    from sutdol import jobs
    from sutdol.jobs import rows
    from sutdol.jobs.worker import run_pending
    from sutdol.settings import load

    push.QUARANTINE_S, read.SETTLE_S, routes.HINT_DELAY_S = 0.3 * pace, 0.15 * pace, 0.02
    project.LEASE_S = 0.7 * pace
    project.PATIENCE_S = 3 * pace
    context = open_context(load())
    handlers = bridge_jobs.HANDLERS | {"retrain.trigger": lambda running: None}
    every = {"bridge.push": 0.1, "bridge.read": 0.15, "bridge.sweep": 0.5}
    due = dict.fromkeys(every, 0.0)
    while True:
        rows.sweep(context.database)
        for kind, seconds in every.items():
            if time.monotonic() >= due[kind]:
                due[kind] = time.monotonic() + seconds * pace
                with context.database.begin() as session:
                    jobs.send(session, kind, {}, unique_key=f"chaos:{kind}")
        run_pending(context, handlers)
        time.sleep(0.01 * pace)


__all__ = ["Chaos", "Plan", "RealStudio", "Verdict", "check"]
