"""Every architecture of the seed list: builds, one training step on two generated images, export; its memory and time.

    python -m tests.benchmarks.families [NAME ...] [--write]     names as `yolo11n`, `d0`, `resnet50`; all without any

Each runs in a training child of its own at its own input size (EfficientDet D4 to D7 at 512), with a batch of two, from
scratch, by the same code as a real run: one epoch, then the ONNX file compared with PyTorch. Memory is the child's peak
resident set; a step is told in seconds of CPU, summed over cores, which does not depend on what else the machine does.
`--write` replaces the table in docs/families.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from retrain.families import PARITY_MAX, Spec, get_family
from tests import child_runs

ROOT = Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "families.md"
BEGIN, END = "<!-- families: begin -->\n", "<!-- families: end -->"
YOLO = [f"{version}{scale}" for version in ("yolov5", "yolov8", "yolo11", "yolo26") for scale in "nsmlx"]
TIMM = ["resnet_tiny", "mobilenetv2_100", "resnet50", "resnet101", "efficientnet_b0", "efficientnet_b3"]
TIMM += ["convnext_tiny", "convnext_base"]
SEED_LIST: list[tuple[str, str, str]] = [
    ("yolo", "detect", "yolo11_tiny"),
    *(("yolo", "detect", name) for name in YOLO),
    *(("yolo", "classify", name) for name in YOLO if not name.startswith("yolov5")),
    *(("efficientdet", "detect", f"d{i}") for i in range(8)),
    *(("timm", "classify", name) for name in TIMM),
    ("timm", "multilabel", "resnet50"),
]
COLUMNS = ("family", "task", "architecture", "px", "parameters, M", "ONNX, MB", "step, CPU s")
COLUMNS += ("peak memory, MB", "parity", "all, s")
STEP = """
import json, resource, sys, time
from pathlib import Path
import msgspec
from safetensors import safe_open
from retrain.families import Spec, get_family

class Hooks:
    def __init__(self): self.at = []
    def step(self, **numbers): self.at.append(time.process_time())
    def epoch(self, epoch, epochs, metrics): pass
    def check(self): pass

spec = msgspec.json.decode(Path(sys.argv[1], "spec.json").read_bytes(), type=Spec)
family, hooks = get_family(spec.family).load(), Hooks()
weights = family.fit(spec, hooks)
peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
steps = [b - a for a, b in zip(hooks.at, hooks.at[1:])]
exported = family.to_onnx(spec, weights)
with safe_open(weights, "pt") as file:
    parameters = sum(file.get_tensor(k).numel() for k in file.keys())
print(json.dumps({"step_s": min(steps) if steps else None, "peak_mb": peak_mb, "onnx_mb": len(exported.onnx) / 1e6,
                  "parity": exported.parity, "parameters": parameters, "px": exported.input.size_hw[0]}))
"""
"""What a child does, with the clock beside it."""


def measure(family: str, task: str, name: str) -> dict[str, Any]:
    """Build, train a little, export; the figures, or {"error"} with the child's last words."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_dir = folder / "run"
        run_dir.mkdir()
        overrides: dict[str, Any] = {"architecture": name, "epochs": 1, "batch": 2}
        if family == "efficientdet" and int(name[1:]) >= 4:
            overrides["image_size"] = 512
        params = get_family(family).params(task, child_runs.CLASSES, overrides)  # type: ignore[arg-type]
        if "steps_per_epoch" in params:
            params["steps_per_epoch"] = 2
        items = [i for i in child_runs.images(folder / "images", task) if i.split == "train"][:4]  # type: ignore[arg-type]
        spec = Spec("bench", str(run_dir), family, task, child_runs.CLASSES, params, items, str(folder))  # type: ignore[arg-type]
        (run_dir / "spec.json").write_bytes(msgspec.json.encode(spec))
        environment = {**os.environ, **get_family(family).environment(run_dir, params), "PYTHONPATH": str(ROOT)}
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", STEP, str(run_dir)], env=environment, cwd=ROOT, capture_output=True, text=True
        )
        if done.returncode != 0:
            return {"error": (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:160]}
        return json.loads(done.stdout.strip().splitlines()[-1]) | {"all_s": time.perf_counter() - begun}


def row(family: str, task: str, name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    if "error" in found:
        return f"| {family} | {task} | {name} | failed: {found['error']} |" + " |" * (len(COLUMNS) - 4)
    step = f"{found['step_s']:.2f}" if found["step_s"] else "-"
    numbers = (
        found["px"],
        f"{found['parameters'] / 1e6:.1f}",
        f"{found['onnx_mb']:.1f}",
        step,
        f"{found['peak_mb']:.0f}",
    )
    parity = f"{found['parity']:.0e}" + ("" if found["parity"] <= PARITY_MAX else " (limit 1e-03)")
    return (
        f"| {family} | {task} | {name} | "
        + " | ".join(str(n) for n in (*numbers, parity, f"{found['all_s']:.0f}"))
        + " |"
    )


def write(rows: dict[str, str]) -> None:
    """Replace or add the measured rows in the document's table, in the order of the seed list."""
    text = DOC.read_text()
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    known = {
        "|".join(c.strip() for c in line.split("|")[1:4]): line for line in table.splitlines() if line.startswith("|")
    }
    known |= rows
    head = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines = [known["|".join(key)] for key in SEED_LIST if "|".join(key) in known]
    DOC.write_text(before + BEGIN + "\n".join([*head, *lines]) + "\n" + END + after)


def main(arguments: list[str]) -> int:
    names = [a for a in arguments if not a.startswith("--")]
    wanted = [key for key in SEED_LIST if not names or key[2] in names or "-".join(key) in names]
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    failed = 0
    for key in wanted:
        found = measure(*key)
        failed += "error" in found or found["parity"] > PARITY_MAX
        line = row(*key, found)
        print(line, flush=True)
        if "--write" in arguments:
            write({"|".join(key): line})
    print(
        f"\n{len(wanted) - failed} of {len(wanted)} built, trained and exported (target: all; parity <= {PARITY_MAX:g})"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
