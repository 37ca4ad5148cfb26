"""The training process: its lock, its parent, its checkpoints, its last words."""

from __future__ import annotations

import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from retrain.child import EXIT_CANCELLED, Result, read_result
from retrain.families import load_checkpoint, save_checkpoint
from sutdol.types import InputSpec
from tests import child_runs

PARENT = """
import subprocess, sys, os
child = subprocess.Popen([sys.executable, "-m", "retrain.child", sys.argv[1], str(os.getpid())])
print(child.pid, flush=True)
child.wait()
"""


def held(path: Path) -> int:
    """Lock that file; closing the descriptor frees it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return descriptor


def test_a_second_training_waits_for_the_device_and_can_be_cancelled_there(tmp_path: Path) -> None:
    """Two trainings on one device run out of memory together; one that waits for hours must still let go."""
    spec = child_runs.prepare(tmp_path, "timm")
    descriptor = held(tmp_path / "locks" / "device-0.lock")
    said = []
    with child_runs.popen(spec) as child:
        for event in child_runs.events(child):
            said.append(event["event"])
            if event["event"] == "waiting":
                (tmp_path / "run" / "cancel").touch()
    os.close(descriptor)
    assert child.returncode == EXIT_CANCELLED
    assert said == ["waiting", "cancelled"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs prctl")
def test_the_child_dies_with_its_parent(tmp_path: Path) -> None:
    """An orphan would keep the device for ever, and the run's second attempt would wait for it."""
    spec = child_runs.prepare(tmp_path, "timm")
    descriptor = held(tmp_path / "locks" / "device-0.lock")
    command = [sys.executable, "-c", PARENT, spec.run_dir]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=child_runs.ROOT) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert b"waiting" in parent.stdout.readline(), "the child is up and waits for the device"
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(pid)
    os.close(descriptor)


def test_a_child_that_lost_its_parent_before_it_was_up_ends_at_once(tmp_path: Path) -> None:
    """The kernel's signal is only sent for deaths after it was asked for."""
    spec = child_runs.prepare(tmp_path, "timm")
    child = subprocess.run([sys.executable, "-m", "retrain.child", spec.run_dir, "1"], cwd=child_runs.ROOT, check=False)
    assert child.returncode == 1
    assert not (tmp_path / "run" / "child.log").exists()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    """The worker may die after the training and before the evaluation."""
    spec = child_runs.prepare(tmp_path, "timm")
    run_dir = Path(spec.run_dir)
    (run_dir / "model.onnx").write_bytes(b"weights")
    digest = "9e8f4be7d4b8d5d4df1ab8c7d4b1b2df0a44ef8c7c8cb97ffbd6d4a41a16c8d6"
    result = Result(InputSpec((32, 32)), 18, 0.0, {"model.onnx": digest}, {})
    (run_dir / "result.json").write_bytes(msgspec.json.encode(result))
    assert read_result(run_dir) is None, "a file that is not what it was when it was finished"
    result = msgspec.structs.replace(result, sha256={"model.onnx": hashlib.sha256(b"weights").hexdigest()})
    (run_dir / "result.json").write_bytes(msgspec.json.encode(result))
    status, said = child_runs.finish(spec)
    assert status == 0
    assert [event["event"] for event in said] == ["done"]


def test_what_went_wrong_is_said_on_the_pipe(tmp_path: Path) -> None:
    """The operator reads the run's page, not a log file on some machine."""
    spec = child_runs.prepare(tmp_path, "timm")
    broken = msgspec.structs.replace(spec, family="tim")
    (tmp_path / "run" / "spec.json").write_bytes(msgspec.json.encode(broken))
    status, said = child_runs.finish(spec)
    assert status == 1
    assert said == [
        {"event": "error", "code": "not-found", "text": "unknown family 'tim' (known: efficientdet, timm, yolo)"}
    ]
    assert "Traceback" in (tmp_path / "run" / "child.log").read_text()


@pytest.mark.parametrize("damage", ["file", "sidecar", "missing"])
def test_a_damaged_checkpoint_is_not_resumed_from(tmp_path: Path, damage: str) -> None:
    """Half a file that loads is worse than starting over."""
    save_checkpoint(tmp_path, 1, {"last.pt": b"one"})
    save_checkpoint(tmp_path, 2, {"last.pt": b"two", "best.pt": b"one"})
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 2
    assert found[1]["last.pt"].read_bytes() == b"two"
    assert len(list(tmp_path.glob("epoch*"))) == 2, "older ones are gone"
    if damage == "file":
        found[1]["last.pt"].write_bytes(b"tw")
    elif damage == "missing":
        found[1]["best.pt"].unlink()
    else:
        (tmp_path / "last.json").write_bytes(b'{"epoch": 2')
    assert load_checkpoint(tmp_path) is None


def test_dying_between_checkpoint_and_sidecar_leaves_the_former_one(tmp_path: Path) -> None:
    """The sidecar is the last thing written; whatever lies beside it before that does not count."""
    save_checkpoint(tmp_path, 4, {"last.pt": b"four"})
    (tmp_path / "epoch00005-last.pt").write_bytes(b"fi")
    found = load_checkpoint(tmp_path)
    assert found is not None
    assert found[0] == 4


def alive(pid: int) -> bool:
    """Whether it runs; a zombie that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
