"""Rename, tag, alias, delete: what stands on a version protects it, and every change says who made it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlmodel import Session, select

from sutdol import cli, registry, rollouts, versions
from sutdol.context import Context
from sutdol.errors import ConflictError, InputError, NotFoundError, SutdolError
from sutdol.tables import Event, Job, ModelVersion, Replica, TrainingRun, now
from tests.tiny_models import classifier_bundle


@pytest.fixture
def tiny(context: Context) -> Context:
    """Version 1 is `previous`, 2 the champion, 3 refused, 4 ready and nothing stands on it."""
    for state in ("ready", "ready", "refused", "ready"):
        classifier_bundle(context, promote=False, state=state)
    with context.database.begin() as session:
        registry.promote(session, "tiny", 1, who="test", text="first")
        registry.promote(session, "tiny", 2, who="test", text="second")
    return context


def audit(context: Context) -> list[Event]:
    kinds = ("version.renamed", "version.tagged", "version.deleted", "alias.changed")
    with context.database.read() as session:
        return [e for e in session.exec(select(Event).order_by(Event.id)) if e.kind in kinds]


def delete(context: Context, version: int, **confirm: str) -> None:
    with context.database.begin() as session:
        plan = versions.delete(
            session, context.store, "tiny", version, confirm=confirm.get("confirm", ""), who="Kim", lease_s=12
        )
    versions.remove_files(context.store, plan)


def token(context: Context, version: int) -> str:
    with context.database.read() as session:
        return versions.plan_deletion(session, context.store, "tiny", version, lease_s=12).token


RENAMES: list[tuple[int, str, type[SutdolError] | None]] = [
    (4, "after the new camera", None),
    (4, "새 카메라 뒤", None),
    (4, "tiny v4", None),  # its own name again
    (4, "  padded  ", None),
    (4, "", InputError),
    (4, "   ", InputError),
    (4, "x" * 101, InputError),
    (4, "two\nlines", InputError),
    (4, "tiny v2", ConflictError),  # another one is called so
    (9, "x", NotFoundError),
]


@pytest.mark.parametrize(("version", "name", "error"), RENAMES)
def test_rename_rules(tiny: Context, version: int, name: str, error: type[SutdolError] | None) -> None:
    """A display name is for people: short, printable, theirs alone."""

    def act() -> None:
        with tiny.database.begin() as session:
            versions.rename(session, "tiny", version, name, who="Kim")

    if error is not None:
        with pytest.raises(error):
            act()
        assert audit(tiny) == []
        return
    act()
    with tiny.database.read() as session:
        assert registry.get_version(session, "tiny", version).name == name.strip()
    told = audit(tiny)
    assert len(told) == (name.strip() != "tiny v4")
    assert all(e.data["who"] == "Kim" and e.data["old"] == "tiny v4" for e in told)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        ("line", "2", None),
        ("reviewed-by", "김", None),
        ("mlflow.source", "a/b", None),
        ("gone", None, None),
        ("", "x", InputError),
        ("a=b", "x", InputError),
        ("k", "x" * 501, InputError),
        ("k", "a\0b", InputError),
    ],
)
def test_tag_rules(tiny: Context, key: str, value: str | None, error: type[SutdolError] | None) -> None:
    """Tags are plain words, removed by None, and a change that changes nothing leaves no row."""
    with tiny.database.begin() as session:
        versions.tag(session, "tiny", 4, "gone", "soon", who="Kim")
    if error is not None:
        with pytest.raises(error), tiny.database.begin() as session:
            versions.tag(session, "tiny", 4, key, value, who="Kim")
        return
    for _ in range(2):
        with tiny.database.begin() as session:
            found = versions.tag(session, "tiny", 4, key, value, who="Kim")
    assert found.get(key) == value
    assert len(audit(tiny)) == 2


@pytest.mark.parametrize(
    ("name", "version", "error"),
    [
        ("staging", 4, None),
        ("line-2", 1, None),
        ("champion", 4, ConflictError),
        ("previous", 4, ConflictError),
        ("challenger", 4, ConflictError),
        ("staging", 3, ConflictError),  # refused by the gate
        ("Staging", 4, InputError),
        ("3", 4, InputError),  # would be a version number
        ("staging", 9, NotFoundError),
    ],
)
def test_alias_rules(tiny: Context, name: str, version: int, error: type[SutdolError] | None) -> None:
    """The house keeps its own three; yours work in references."""
    if error is not None:
        with pytest.raises(error), tiny.database.begin() as session:
            versions.point(session, "tiny", name, version, who="Kim")
        assert audit(tiny) == []
        return
    with tiny.database.begin() as session:
        versions.point(session, "tiny", name, version, who="Kim")
        assert registry.resolve(session, f"models:/tiny@{name}") == ("tiny", version)
        versions.point(session, "tiny", name, None, who="Kim")
    assert [e.data["new"] for e in audit(tiny)] == [version, None]


def job(session: Session, **payload: Any) -> None:
    session.add(Job(kind="batch.predict", queue="batch", payload={"model": "tiny", **payload}, state="running"))


STANDING: list[tuple[str, int, Callable[[Session], None], str]] = [
    ("champion", 2, lambda s: None, "it is the champion"),
    ("previous", 1, lambda s: None, "it is the previous"),
    ("challenger", 4, lambda s: registry.set_alias(s, "tiny", "challenger", 4), "it is the challenger"),
    ("an alias of one's own", 4, lambda s: versions.point(s, "tiny", "staging", 4, who="t"), "it is the staging"),
    (
        "parent of the champion",
        4,
        lambda s: setattr(s.get_one(ModelVersion, ("tiny", 2)), "parent_version", 4),
        "version 2, the champion, was made from it",
    ),
    ("a job", 4, lambda s: job(s, version=4), "a job needs it"),
    ("a comparison", 4, lambda s: job(s, version=2, against=4), "a job needs it"),
    (
        "a training from it",
        4,
        lambda s: s.add(
            TrainingRun(model="tiny", family="timm", params={}, cause="t", state="training", parent_version=4)
        ),
        "training run",
    ),
    (
        "a replica that serves it",
        4,
        lambda s: s.add(Replica(role="serve", pid=1, host="here", serving={"tiny": {"version": 4}})),
        "the replica on here serves it",
    ),
]


@pytest.mark.parametrize(("name", "version", "stand", "words"), STANDING, ids=[s[0] for s in STANDING])
def test_what_something_stands_on_is_never_deleted(
    tiny: Context, name: str, version: int, stand: Callable[[Session], None], words: str
) -> None:
    """A rollback to a version that is gone would be the second accident of the night."""
    with tiny.database.begin() as session:
        stand(session)
    with pytest.raises(ConflictError, match=words):
        delete(tiny, version, confirm="whatever")
    assert tiny.store.has(registry.bundle_key("tiny", version, "manifest.json"))
    assert [e for e in audit(tiny) if e.kind == "version.deleted"] == []


def test_a_replica_long_gone_protects_nothing(tiny: Context) -> None:
    """Its row is a memory, not a use."""
    with tiny.database.begin() as session:
        old = Replica(role="serve", pid=1, host="x", serving={"tiny": {"version": 4}}, heartbeat_at=now() - 3600)
        session.add(old)
    delete(tiny, 4, confirm=token(tiny, 4))


@pytest.mark.parametrize("version", [3, 4])
def test_deleting_asks_twice_and_leaves_the_row(tiny: Context, version: int) -> None:
    """The files go, the number and the history stay, and the number is never given out again."""
    with pytest.raises(ConflictError, match="must be confirmed") as refused:
        delete(tiny, version)
    assert token(tiny, version) in str(refused.value)
    assert tiny.store.has(registry.bundle_key("tiny", version, "model.onnx"))
    delete(tiny, version, confirm=token(tiny, version))
    assert tiny.store.keys(f"models/tiny/{version}") == []
    with tiny.database.begin() as session:
        assert versions.lineage(session, "tiny", version).state == "deleted"
        assert registry.allocate_version(session, "tiny") == 5
        with pytest.raises(NotFoundError, match="deleted"):
            registry.resolve(session, f"tiny@{version}")
        with pytest.raises(ConflictError, match="deleted"):
            registry.promote(session, "tiny", version, who="t", text="x")
        with pytest.raises(ConflictError, match="deleted"):
            versions.rename(session, "tiny", version, "x", who="t")
    with pytest.raises(ConflictError, match="is deleted"):
        delete(tiny, version, confirm="again")
    told = audit(tiny)
    assert [e.kind for e in told] == ["version.deleted"]
    assert told[0].data["who"] == "Kim"


def test_a_plan_that_is_out_of_date_confirms_nothing(tiny: Context) -> None:
    """Somebody renamed it to "do not delete" in between."""
    old = token(tiny, 4)
    with tiny.database.begin() as session:
        versions.rename(session, "tiny", 4, "do not delete", who="Lee")
    with pytest.raises(ConflictError, match="must be confirmed"):
        delete(tiny, 4, confirm=old)


def test_lineage_names_everything_upwards_and_downwards(tiny: Context) -> None:
    """Why is this model in production? One answer, without reading logs."""
    with tiny.database.begin() as session:
        session.get_one(ModelVersion, ("tiny", 2)).parent_version = 1
        session.get_one(ModelVersion, ("tiny", 4)).parent_version = 2
        versions.tag(session, "tiny", 4, "line", "2", who="t")
    with tiny.database.read() as session:
        found = versions.lineage(session, "tiny", 4)
        assert (found.parents, found.children, found.tags) == ([2, 1], [], {"line": "2"})
        middle = versions.lineage(session, "tiny", 2)
    assert (middle.aliases, middle.children) == (["champion"], [4])
    assert [d["kind"] for d in middle.decisions] == ["promote"]


CHANGES: list[tuple[str, Callable[[Session], object]]] = [
    ("model.created", lambda s: registry.create_model(s, "other", task="classify", classes=[], family="timm")),
    ("class.added", lambda s: registry.add_classes(s, "tiny", ["violet"])),
    ("class.retired", lambda s: registry.retire_class(s, "tiny", "red")),
    ("model.promote", lambda s: registry.promote(s, "tiny", 4, who="Kim", text="by hand")),
    ("model.rollback", lambda s: registry.rollback(s, "tiny", who="Kim")),
    (
        "rollout.shadow",
        lambda s: rollouts.start(s, "tiny", 4, mode="shadow", share=0.5, max_disagreement=0.0, who="Kim"),
    ),
    ("version.renamed", lambda s: versions.rename(s, "tiny", 4, "new", who="Kim")),
    ("version.tagged", lambda s: versions.tag(s, "tiny", 4, "line", "2", who="Kim")),
    ("alias.changed", lambda s: versions.point(s, "tiny", "staging", 4, who="Kim")),
]


@pytest.mark.parametrize(("kind", "change"), CHANGES, ids=[c[0] for c in CHANGES])
def test_each_change_of_the_registry_leaves_one_audit_row(
    tiny: Context, kind: str, change: Callable[[Session], object]
) -> None:
    """In the transaction of the change: who asks later what happened finds all of it (deleting: see above)."""
    with tiny.database.read() as session:
        before = len(session.exec(select(Event)).all())
    with tiny.database.begin() as session:
        change(session)
    with tiny.database.read() as session:
        new = session.exec(select(Event).order_by(Event.id)).all()[before:]
    assert [(e.kind, e.model) for e in new] == [(kind, "other" if kind == "model.created" else "tiny")]
    if not kind.startswith(("class.", "model.created")):
        assert new[0].data["who"] == "Kim"


def test_the_code_that_made_a_version_has_a_name() -> None:
    """The same sources, the same name; it stands in the provenance of what is trained."""
    assert versions.code_version() == versions.code_version()
    assert versions.code_version().startswith("0.")
    assert len(versions.code_version().split("+")[1]) == 12


def test_the_commands_do_the_same(tiny: Context, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """What the API can, the command line can."""
    monkeypatch.setenv("SUTDOL_HOME", str(tiny.settings.home))

    def run(*arguments: str) -> int:
        try:
            cli.main(list(arguments))
        except SystemExit as exit_:
            return int(exit_.code or 0)
        return 0

    assert run("rename", "tiny", "4", "for line 2") == 0
    assert run("tag", "tiny", "4", "line=2", "by=Kim") == 0
    assert run("tag", "tiny", "4", "line=") == 0
    assert run("alias", "tiny", "staging", "4") == 0
    assert run("alias", "tiny", "staging") == 0
    assert run("lineage", "tiny", "4") == 0
    assert '"by": "Kim"' in capsys.readouterr().out
    assert run("delete", "tiny", "4") == 1
    confirm = capsys.readouterr().err.split("--confirm ")[1].split()[0]
    assert run("delete", "tiny", "4", "--confirm", confirm) == 0
    assert [e.kind for e in audit(tiny)] == [
        "version.renamed", "version.tagged", "version.tagged", "version.tagged", "alias.changed", "alias.changed",
        "version.deleted",
    ]  # fmt: skip
    assert all(e.data["who"] == "command line" for e in audit(tiny))
