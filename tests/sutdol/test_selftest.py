"""What nobody knows is tried in a child: thirty-odd bad models refused with the reason, a good one told as it is."""

from __future__ import annotations

import time

import numpy as np
import pytest

from sutdol import selftest
from sutdol.errors import ModelError
from sutdol.types import InputSpec, Manifest
from tests.hostile_models import HOSTILE
from tests.tiny_models import CLASSES, SIDE_PX, classifier_onnx

MANIFEST = Manifest(task="classify", classes=list(CLASSES), input=InputSpec((SIDE_PX, SIDE_PX)), family="tiny")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_model_is_refused_with_the_reason(name: str) -> None:
    """Each of them once loaded in somebody's server."""
    data, words = HOSTILE[name]
    began = time.monotonic()
    with pytest.raises(ModelError) as refused:
        selftest.check_contract(data, MANIFEST, memory_bytes=500_000_000, timeout_s=3)
    assert words in str(refused.value)
    assert time.monotonic() - began < 15


def test_there_are_thirty_of_them() -> None:
    """The promise is a number."""
    assert len(HOSTILE) >= 30
    assert len({data for data, _ in HOSTILE.values()}) == len(HOSTILE)


def test_a_good_model_is_told_as_it_is() -> None:
    """Names, shapes, times, and the very answers."""
    trial = selftest.check_contract(classifier_onnx(), MANIFEST)
    assert [(p.name, p.shape) for p in trial.inputs] == [("images", ["n", 3, SIDE_PX, SIDE_PX])]
    assert {p.name for p in trial.results} == {"scores", "features"}
    assert trial.outputs[0]["scores"].shape == (selftest.PROBES, 3)
    assert np.isfinite(trial.outputs[0]["scores"]).all()
    assert 0 < trial.peak_bytes < 2e9


def test_the_child_inherits_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that found a way to run code would still find nothing."""
    monkeypatch.setenv("SUTDOL_LABEL_STUDIO_API_KEY", "secret")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    assert not any("secret" in value for value in selftest.child_variables().values())
