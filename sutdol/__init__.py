"""The ground: words and rules that serving, labeling_bridge and retrain share.

Decided: this package knows neither the web framework nor torch, and imports none of its three siblings; they meet in the
database (`tables`), the registry of model versions (`registry`) and jobs sent by name (`jobs`). `predictor` is the only
place where image bytes become predictions, so a model is judged by the code that will serve it.

Rejected: one package per concern (the siblings would import each other within a week), and a shared "core" of base
classes (functions over rows and structs are enough).
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
"""ONNX Runtime's official builds report to Microsoft unless this stands before they are loaded, in children too."""

__version__ = "0.1.0"
