"""The state of the whole installation as gauges: workers and the clock have no port, the database knows what they do.

    rows -> read(session, settings) -> Reading -> Installation.collect, at a scrape, from memory

One reading every few seconds by the thread of `watching.Gauges`; a scrape never waits for the database. A series is gone with
the thing it tells of. Every replica shows the same numbers: boards take the maximum.

Errors: SQLAlchemy's own, from `read`.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func
from sqlmodel import Session, col, select

from sutdol.settings import Settings
from sutdol.tables import Alias, Job, LabelReport, LabelRow, LabelTask, Lease, Replica, TrainingRun, now

RUNNING = ("queued", "preparing", "waiting", "training", "exporting", "evaluating", "deciding")
"""States of a training run that has not ended."""
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "sutdol_jobs": ("Jobs by where they are: queued, running, failed.", ("queue", "state")),
    "sutdol_job_wait_seconds": ("How long the oldest job that may start has waited.", ("queue",)),
    "sutdol_lease_left_seconds": ("Until a leadership runs out; negative when nobody leads.", ("name",)),
    "sutdol_replicas": ("Processes that showed signs of life lately.", ("role",)),
    "sutdol_rollout_replicas": ("Servers, all and those on the champion.", ("model", "which")),
    "sutdol_label_tasks": ("Label tasks by state.", ("model", "state")),
    "sutdol_labels": ("Labelled samples by where the label is from.", ("model", "source")),
    "sutdol_training_runs": ("Training runs by state.", ("model", "state")),
    "sutdol_training_epochs_ratio": ("Epochs done of the run under way.", ("model",)),
    "sutdol_training_left_seconds": ("What the run under way still needs, as it thinks.", ("model",)),
    "sutdol_labeling_answers": ("Answers of people that count.", ("model",)),
    "sutdol_labeling_accepted_ratio": ("Pre-annotations that were submitted untouched.", ("model",)),
    "sutdol_labeling_agreement_ratio": ("Pairs of people who answered one task and said the same.", ("model",)),
    "sutdol_labeling_lead_time_seconds": ("Median time for an answer, pre-annotation shown.", ("model",)),
    "sutdol_studio_read_age_seconds": ("Since Label Studio was last read with success.", ()),
    "sutdol_disk_free_bytes": ("In the home folder of this server.", ()),
}
"""Name -> meaning, labels. Values of labels are models, roles, queues and states: what people made or what the code names."""


@dataclass
class Reading:
    """Numbers by gauge and labels."""

    values: dict[str, dict[tuple[str, ...], float]] = field(default_factory=dict)

    def set(self, name: str, value: float | None, *labels: str) -> None:
        """Nothing happens for None: what is not known has no series."""
        if value is not None:
            self.values.setdefault(name, {})[labels] = float(value)


class Installation(Collector):
    """What was read last, for `registry`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.reading = Reading()
        registry.register(self)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        reading = self.reading
        for name, (meaning, labels) in GAUGES.items():
            family = GaugeMetricFamily(name, meaning, labels=labels)
            for values, number in sorted(reading.values.get(name, {}).items()):
                family.add_metric(values, number)
            yield family


def read(session: Session, settings: Settings) -> Reading:
    """Everything at this moment."""
    found, at = Reading(), now()
    _jobs(session, found, at)
    _processes(session, found, at, settings)
    _labels(session, found)
    _training(session, found)
    found.set("sutdol_disk_free_bytes", shutil.disk_usage(settings.home).free)
    return found


def _jobs(session: Session, found: Reading, at: float) -> None:
    states = ("queued", "running", "failed")
    counted = select(Job.queue, Job.state, func.count()).where(col(Job.state).in_(states))
    for queue, state, n in session.exec(counted.group_by(Job.queue, Job.state)):
        found.set("sutdol_jobs", n, queue, state)
    due = select(Job.queue, func.min(Job.not_before)).where(Job.state == "queued", Job.not_before <= at)
    for queue, since in session.exec(due.group_by(Job.queue)):
        found.set("sutdol_job_wait_seconds", at - since, queue)
    read_at = session.exec(
        select(func.max(Job.finished_at)).where(Job.state == "done", Job.queue == "bridge", Job.kind == "bridge.read")
    ).one()
    found.set("sutdol_studio_read_age_seconds", at - read_at if read_at else None)
    for name, until in session.exec(
        select(Lease.name, Lease.until).where(col(Lease.name).in_(("clock", "job-sweeper")))
    ):
        found.set("sutdol_lease_left_seconds", until - at, name)


def _processes(session: Session, found: Reading, at: float, settings: Settings) -> None:
    replicas = session.exec(select(Replica).where(Replica.heartbeat_at > at - 3 * settings.lease_s)).all()
    for role in ("serve", "work", "clock"):
        found.set("sutdol_replicas", sum(replica.role == role for replica in replicas), role)
    champions = session.exec(select(Alias.model, Alias.version).where(Alias.name == "champion")).all()
    servers = [replica.serving for replica in replicas if replica.role == "serve"]
    for model, version in champions:
        on = sum(serving.get(model, {}).get("version") == version for serving in servers)
        found.set("sutdol_rollout_replicas", on, model, "champion")
        found.set("sutdol_rollout_replicas", len(servers), model, "all")


def _labels(session: Session, found: Reading) -> None:
    tasks = select(LabelTask.model, LabelTask.state, func.count()).group_by(LabelTask.model, LabelTask.state)
    for model, state, n in session.exec(tasks):
        found.set("sutdol_label_tasks", n, model, state)
    labels = select(LabelRow.model, LabelRow.source, func.count()).group_by(LabelRow.model, LabelRow.source)
    for model, source, n in session.exec(labels):
        found.set("sutdol_labels", n, model, source)
    for row in session.exec(select(LabelReport)):
        report: dict[str, Any] = row.report
        found.set("sutdol_labeling_answers", report.get("answers"), row.model)
        found.set("sutdol_labeling_accepted_ratio", report.get("accepted", {}).get("share"), row.model)
        found.set("sutdol_labeling_agreement_ratio", report.get("agreement", {}).get("share"), row.model)
        found.set("sutdol_labeling_lead_time_seconds", report.get("lead_time_s", {}).get("shown"), row.model)


def _training(session: Session, found: Reading) -> None:
    states = session.exec(select(TrainingRun.model, TrainingRun.state)).all()
    for (model, state), n in Counter((m, s) for m, s in states).items():
        found.set("sutdol_training_runs", n, model, state)
    for run in session.exec(select(TrainingRun).where(col(TrainingRun.state).in_(RUNNING))):
        found.set("sutdol_training_epochs_ratio", run.epoch / run.epochs if run.epochs else 0.0, run.model)
        found.set("sutdol_training_left_seconds", run.eta_s, run.model)
