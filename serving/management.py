"""The routes by which people manage what serves, by subject. One line in the composition root."""

from __future__ import annotations

from litestar import Router

from serving import adoptions, batches, comparisons, copies, datasets, evaluations, groups, training, versions
from serving.auth import Keyring
from serving.bodies import Bodies
from sutdol.context import Context


def routers(context: Context, keyring: Keyring, bodies: Bodies) -> list[Router]:
    """One router per subject."""
    subjects = (adoptions, versions, evaluations, batches, copies, datasets, groups, training)
    return [*(module.build(context, keyring, bodies) for module in subjects), comparisons.build(context, keyring)]
