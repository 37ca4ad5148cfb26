"""`TENSORFLOW_VENV/bin/python retrain/savedmodel.py FOLDER`: an ONNX file as SavedModel and TFLite. Imports nothing of ours.

    FOLDER/{model.onnx, probe.npy (n, 3, h, w)} -> onnx2tf -> FOLDER/out/ -> FOLDER/answers.npz: what both say to the probe

Run by another Python than ours, one in which onnx2tf is installed: it wants other versions of nearly everything. Without the
features, which it cannot convert beside the scores.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: Path) -> None:
    """See the top of this file."""
    probe = np.load(folder / "probe.npy")
    height, width = probe.shape[2:]
    # onnx2tf looks for these pictures in the working folder, and would fetch them otherwise
    pictures = np.random.default_rng(0).random((20, 128, 128, 3), dtype=np.float32)
    np.save(folder / "calibration_image_sample_data_20x128x128x3_float32.npy", pictures)
    shape = f"images:1,3,{height},{width}"
    words = ["onnx2tf", "-i", "model.onnx", "-o", "out", "-onimc", "scores", "-ois", shape, "-osd", "-n"]
    subprocess.run(words, cwd=folder, check=True, stdin=subprocess.DEVNULL)
    import tensorflow
    from ai_edge_litert.interpreter import Interpreter

    images = probe.transpose(0, 2, 3, 1)  # channels last
    loaded = tensorflow.saved_model.load(str(folder / "out")).signatures["serving_default"]
    [name] = loaded.structured_input_signature[1]

    def saved(image: Any) -> Any:
        [scores] = loaded(**{name: tensorflow.constant(image[None])}).values()
        return scores.numpy()[0]

    lite = Interpreter(str(folder / "out" / "model_float32.tflite"))
    lite.allocate_tensors()

    def small(image: Any) -> Any:
        lite.set_tensor(lite.get_input_details()[0]["index"], image[None])
        lite.invoke()
        return lite.get_tensor(lite.get_output_details()[0]["index"])[0]

    answers = [np.stack([said(image) for image in images]) for said in (saved, small)]
    np.savez(folder / "answers.npz", saved=answers[0], small=answers[1])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
