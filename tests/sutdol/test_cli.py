"""The command line: what goes wrong is one line with its remedy, what works says what comes next."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from sqlmodel import select

from sutdol import cli, images
from sutdol.context import Context
from sutdol.tables import Collection, DatasetItem, DatasetVersion, ModelVersion
from tests import tiny_models


@pytest.fixture(autouse=True)
def _home(monkeypatch: pytest.MonkeyPatch, context: Context) -> None:
    monkeypatch.setenv("SUTDOL_HOME", str(context.settings.home))
    monkeypatch.setattr(cli.console, "_width", 200, raising=False)


def run(*arguments: str) -> int:
    try:
        cli.main(list(arguments))
    except SystemExit as exit_:
        return int(exit_.code or 0)
    return 0


def test_promote_and_rollback_by_hand(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    """The two commands one wants in an emergency."""
    tiny_models.classifier_bundle(context)
    tiny_models.classifier_bundle(context, promote=False)
    assert run("promote", "tiny", "2") == 0
    assert run("rollback", "tiny") == 0
    assert "version 1 is the champion again" in capsys.readouterr().out
    assert run("models", "tiny") == 0
    assert "champion" in capsys.readouterr().out


def test_a_bad_version_is_refused_before_the_alias_moves(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    """The command checks as a replica would."""
    tiny_models.classifier_bundle(context)
    tiny_models.classifier_bundle(context, golden="wrong", promote=False)
    assert run("promote", "tiny", "2") == 1
    assert "golden check" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models", "nope"], "unknown model 'nope'"),
        (["rollback", "nope"], "unknown model 'nope'"),
        (["train", "nope"], "unknown model 'nope'"),
        (["work", "--queue", "nope"], "expected one of bridge, train, batch"),
        (["import", "flowers", "/does/not/exist"], "expected a folder"),
        (["keys", "revoke", "nope"], "unknown API key"),
        (["demo", "--task", "detect"], "--data DIR"),
    ],
)
def test_a_mistake_is_one_line_with_its_remedy(
    capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    """Nobody should read a traceback because of a typing mistake."""
    assert run(*arguments) == 1
    said = capsys.readouterr().err
    assert words in said.replace("\n", " ").replace("  ", " ")
    assert "Traceback" not in said


def test_a_folder_becomes_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The first step of the README."""
    rng = np.random.default_rng(0)
    for label in ("고양이", "dog"):
        for i in range(6):
            path = tmp_path / "pets" / label / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(".png", rng.integers(0, 255, (16, 16, 3), np.uint8))[1].tobytes())
    assert run("import", "pets", str(tmp_path / "pets")) == 0
    said = capsys.readouterr().out
    assert "고양이" in said
    assert "next: sutdol train pets" in said


def test_a_broken_folder_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All in or not in: no half model that the next try stumbles over."""
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation>")
    assert run("import", "cells", str(tmp_path)) == 1
    assert "a.xml" in capsys.readouterr().err
    assert run("models", "cells") == 1


def test_the_doctor_names_what_is_wrong_and_the_fix(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its findings are the first thing to look at when something does not work."""
    monkeypatch.setenv("SUTDOL_LABEL_STUDIO_VENV", str(tmp_path / "nothing"))
    monkeypatch.setenv("SUTDOL_PROVIDERS", "MadeUpProvider")
    assert run("doctor") == 1
    said = capsys.readouterr().out
    assert "make setup" in said
    assert "MadeUpProvider" in said
    assert "database: SQLite" in said


def test_settings_hide_secrets(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """People paste this output into tickets."""
    monkeypatch.setenv("SUTDOL_LABEL_STUDIO_PASSWORD", "hunter2hunter2")
    assert run("settings") == 0
    assert "hunter2" not in capsys.readouterr().out


def test_accuracy_and_drift_have_words_before_there_is_anything_to_say(
    context: Context, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first thing a new user tries must not look broken."""
    tiny_models.classifier_bundle(context)
    assert run("accuracy", "tiny") == 0
    assert "30 labels missing" in capsys.readouterr().out
    assert run("accuracy", "tiny", "--days", "3") == 1
    assert "expected one of 1, 7, 30" in capsys.readouterr().err
    assert run("drift", "tiny") == 0
    assert "no version has been watched yet" in capsys.readouterr().out


def test_labels_without_people_are_refused_in_words(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    """A new installation has proven nothing yet; and what is impossible is said before a job is made."""
    tiny_models.classifier_bundle(context)
    assert run("auto-label", "tiny", "--error", "0.02", "--wait") == 1
    assert "still being learned" in capsys.readouterr().out
    assert run("auto-label", "tiny", "--error", "0.9") == 1
    assert "(0, 0.5]" in capsys.readouterr().err
    assert run("second-look", "tiny") == 0
    assert run("second-look", "nope") == 1
    assert "unknown model 'nope'" in capsys.readouterr().err


def test_more_of_a_cell_is_asked_for_and_ended(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    """The same as over HTTP, for whoever sits at the machine."""
    tiny_models.classifier_bundle(context)
    assert run("collect", "tiny", "red", "--read-as", "blue", "--count", "7") == 0
    with context.database.read() as session:
        row = session.exec(select(Collection)).one()
    assert (row.truth, row.taken_for, row.wanted) == ("red", "blue", 7)
    assert row.id in capsys.readouterr().out
    assert run("collect", "tiny", "--close", row.id) == 0
    assert row.id not in capsys.readouterr().out
    assert run("collect", "tiny", "rde") == 1
    assert "red" in capsys.readouterr().err


def test_what_accuracy_costs_is_shown_for_any_split(context: Context, capsys: pytest.CaptureFixture[str]) -> None:
    """A version that was made without a study still has its test split."""
    version = tiny_models.classifier_bundle(context)
    assert run("thresholds", "tiny") == 1
    assert "no threshold study" in capsys.readouterr().err
    with context.database.begin() as session:
        frozen = DatasetVersion(
            model="tiny", number=1, digest="d", test_digest="t", classes=list(tiny_models.CLASSES), counts={}
        )
        session.add(frozen)
        session.get_one(ModelVersion, ("tiny", version)).dataset_version_id = frozen.id
        for seed, name in enumerate(tiny_models.CLASSES * 4):
            image = images.admit(tiny_models.coloured_png(name, seed=seed))
            context.store.put(f"samples/{image.sample_id}", image.data)
            item = {
                "dataset_version_id": frozen.id,
                "sample_id": image.sample_id,
                "split": "test",
                "source": "imported",
            }
            session.add(DatasetItem(**item, value={"classes": [name], "boxes": []}))
    assert run("thresholds", "tiny", str(version), "--split", "test") == 0
    shown = capsys.readouterr().out
    assert "12 items of test" in shown
    assert "1.000 / 0%" in shown
    assert "more held-out labels are needed" in shown
