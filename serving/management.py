"""The routes by which people manage what serves, by subject. One line in the composition root."""

from __future__ import annotations

from litestar import Router

from serving import (
    adoptions,
    batches,
    comparisons,
    copies,
    datasets,
    diagnosis,
    evaluations,
    groups,
    labelling,
    training,
    versions,
)
from serving.auth import Keyring
from serving.bodies import Bodies
from serving.training import Families
from sutdol.context import Context


def routers(context: Context, keyring: Keyring, bodies: Bodies, families: Families) -> list[Router]:
    """One router per subject."""
    subjects = (adoptions, versions, evaluations, batches, copies, datasets, groups)
    return [
        *(module.build(context, keyring, bodies) for module in subjects),
        training.build(context, keyring, bodies, families),
        comparisons.build(context, keyring),
        diagnosis.build(context, keyring),
        labelling.build(context, keyring),
    ]
