"""Threshold studies on demand: a version is run on a split of the dataset version it was judged on.

    version -> its dataset version -> items of the split -> Predictor -> scores -> `thresholds.study`

Errors: NotFoundError for a version that came from no dataset version or whose samples are gone; InputError for an empty split.
"""

from __future__ import annotations

import numpy as np
from sqlmodel import select

from retrain.calibrate import held_out_scores
from sutdol import registry, thresholds
from sutdol.context import Context
from sutdol.errors import InputError, NotFoundError
from sutdol.predictor import Predictor
from sutdol.tables import DatasetItem
from sutdol.thresholds import Study


def on_split(context: Context, model: str, version: int, split: str) -> Study:
    """The study of one version on one split; nothing is stored."""
    with context.database.read() as session:
        row = registry.get_version(session, model, version)
        if row.dataset_version_id is None:
            raise NotFoundError(f"version {version} of {model} came from no data set here")
        wanted = (DatasetItem.dataset_version_id == row.dataset_version_id, DatasetItem.split == split)
        items = list(session.exec(select(DatasetItem).where(*wanted)))
    if not items:
        raise InputError(f"threshold study: the split {split!r} of {model} version {version} is empty")
    predictor = Predictor.open(context.store, model, version, providers=context.settings.provider_names or None)
    scores, truth = held_out_scores(predictor, items, lambda sample: context.store.get(f"samples/{sample}"))
    manifest = predictor.manifest
    return thresholds.study(
        manifest.task, np.asarray(scores, np.float64), truth, temperature=manifest.temperature, split=split
    )
