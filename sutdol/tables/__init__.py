"""All tables. One row class per thing of DESIGN section 3; times are UTC epoch seconds (float), ids are text.

Who writes what:

    serving            prediction, shadow, sample, label_task (state `candidate`), feedback, replica, batch_run
    labeling_bridge    label_task (from `queued` on), annotation, label (source `annotation`), studio_project
    retrain            dataset, label (source `imported`), dataset_version, dataset_item, training_run, run_candidate,
                       run_progress, model_version, evaluation, decision
    monitor            drift_state, version_profile, snapshot, event
    registry           model, alias, rollout, decision, event
    jobs               job, job_attempt, message, lease

Append-only: prediction, shadow, annotation, dataset_version, dataset_item, run_progress, decision, event,
version_profile, snapshot.
SQLite drops time zones, so no datetime columns. JSON columns hold what `sutdol.types` defines (msgspec.to_builtins).
SQLModel tables do not validate: build rows from checked structs only.
"""

from __future__ import annotations

from sutdol.tables.base import first_id, new_id, now
from sutdol.tables.batch import BatchRun
from sutdol.tables.house import ApiKey, Event, Secret
from sutdol.tables.jobs import Job, JobAttempt, Lease, Message
from sutdol.tables.labels import Annotation, Collection, LabelReport, LabelRow, LabelTask, StudioProject
from sutdol.tables.models import Alias, Decision, Model, ModelVersion, Replica, Rollout
from sutdol.tables.monitor import DriftState, Snapshot, VersionProfile
from sutdol.tables.predictions import Feedback, PredictionRow, Sample, ShadowRow
from sutdol.tables.training import (
    Dataset,
    DatasetItem,
    DatasetVersion,
    Evaluation,
    RunCandidate,
    RunProgress,
    TrainingRun,
)

__all__ = [
    "Alias",
    "Annotation",
    "ApiKey",
    "BatchRun",
    "Collection",
    "Dataset",
    "DatasetItem",
    "DatasetVersion",
    "Decision",
    "DriftState",
    "Evaluation",
    "Event",
    "Feedback",
    "Job",
    "JobAttempt",
    "LabelReport",
    "LabelRow",
    "LabelTask",
    "Lease",
    "Message",
    "Model",
    "ModelVersion",
    "PredictionRow",
    "Replica",
    "Rollout",
    "RunCandidate",
    "RunProgress",
    "Sample",
    "Secret",
    "ShadowRow",
    "Snapshot",
    "StudioProject",
    "TrainingRun",
    "VersionProfile",
    "first_id",
    "new_id",
    "now",
]
