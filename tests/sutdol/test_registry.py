"""Models, versions, aliases: what is promoted serves, what is refused never does, one step back is always there."""

from __future__ import annotations

import pytest
from sqlmodel import select

from sutdol import registry
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, ModelError, NotFoundError
from sutdol.tables import Decision, Event, Job
from sutdol.types import InputSpec, Manifest

MANIFEST = Manifest("classify", ["a", "b"], InputSpec((8, 8)), "timm")


def add_version(context: Context, *, state: str = "ready") -> int:
    with context.database.begin() as session:
        version = registry.allocate_version(session, "digits")
    manifest = registry.write_bundle(context.store, "digits", version, MANIFEST, {"model.onnx": b"onnx %d" % version})
    with context.database.begin() as session:
        registry.register(session, "digits", version, manifest, size_bytes=6, metrics={}, state=state)
    return version


@pytest.fixture
def digits(context: Context) -> Context:
    with context.database.begin() as session:
        registry.create_model(session, "digits", task="classify", classes=["a", "b"], family="timm")
    return context


def test_versions_count_up_and_promotion_keeps_the_way_back(digits: Context) -> None:
    """Rolling back is one step, whatever happened before."""
    assert [add_version(digits), add_version(digits)] == [1, 2]
    with digits.database.begin() as session:
        registry.promote(session, "digits", 1, who="test", text="first")
        assert registry.alias(session, "digits", "previous") is None
        registry.promote(session, "digits", 2, who="test", text="second")
        assert (registry.alias(session, "digits", "champion"), registry.alias(session, "digits", "previous")) == (2, 1)
        registry.rollback(session, "digits", who="test")
        assert (registry.alias(session, "digits", "champion"), registry.alias(session, "digits", "previous")) == (1, 2)
    with digits.database.read() as session:
        assert [d.kind for d in session.exec(select(Decision).order_by(Decision.at))] == [
            "promote",
            "promote",
            "rollback",
        ]
        assert len(session.exec(select(Event).where(Event.model == "digits")).all()) == 4
        assert session.exec(select(Job).where(Job.kind == "bridge.refresh")).first() is not None


def test_a_refused_version_cannot_be_promoted(digits: Context) -> None:
    """The gate's word holds for people too."""
    add_version(digits, state="refused")
    with pytest.raises(ConflictError, match="refused"), digits.database.begin() as session:
        registry.promote(session, "digits", 1, who="test", text="x")


@pytest.mark.parametrize(
    ("reference", "version"),
    [("digits", 2), ("digits@champion", 2), ("digits@1", 1), ("models:/digits@previous", 1), ("models:/digits/1", 1)],
)
def test_references_are_mlflows(digits: Context, reference: str, version: int) -> None:
    """People bring their habits and scripts."""
    add_version(digits)
    add_version(digits)
    with digits.database.begin() as session:
        registry.promote(session, "digits", 1, who="test", text="x")
        registry.promote(session, "digits", 2, who="test", text="x")
        assert registry.resolve(session, reference) == ("digits", version)


@pytest.mark.parametrize(
    ("reference", "error"),
    [("nope", NotFoundError), ("digits@7", NotFoundError), ("digits@champion", NotFoundError), ("A b", InputError)],
)
def test_an_unknown_reference_lists_what_there_is(digits: Context, reference: str, error: type[Exception]) -> None:
    """A typing mistake should be mended without reading the code."""
    add_version(digits)
    with pytest.raises(error), digits.database.read() as session:
        registry.resolve(session, reference)


def test_classes_are_only_ever_appended(digits: Context) -> None:
    """An index that changed its meaning would turn old labels into wrong ones."""
    with digits.database.begin() as session:
        assert registry.add_classes(session, "digits", ["b", "고양이", "a"]) == ["a", "b", "고양이"]
    with digits.database.read() as session:
        assert registry.get_model(session, "digits").classes == ["a", "b", "고양이"]


@pytest.mark.parametrize("slug", ["", "Digits", "a b", "-a", "x" * 70, "a/b"])
def test_a_model_name_fits_into_a_url(context: Context, slug: str) -> None:
    """It is part of a path."""
    with pytest.raises(InputError), context.database.begin() as session:
        registry.create_model(session, slug, task="classify", classes=[], family="timm")


def test_a_changed_file_is_noticed(digits: Context) -> None:
    """Flipped weights load without a word in ONNX Runtime."""
    version = add_version(digits)
    manifest = registry.read_manifest(digits.store, "digits", version)
    assert digits.store.root is not None
    (digits.store.root / registry.bundle_key("digits", version, "model.onnx")).write_bytes(b"other")
    with pytest.raises(ModelError, match="sha256"):
        registry.read_file(digits.store, "digits", version, manifest, "model.onnx")


def test_writing_a_bundle_again_is_harmless_and_another_one_is_refused(digits: Context) -> None:
    """A job may run twice; a version never changes."""
    version = add_version(digits)
    registry.write_bundle(digits.store, "digits", version, MANIFEST, {"model.onnx": b"onnx %d" % version})
    with pytest.raises(ConflictError):
        registry.write_bundle(digits.store, "digits", version, MANIFEST, {"model.onnx": b"other"})
