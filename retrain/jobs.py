"""The jobs of this package by name, for the worker: what retrains, and what decides that it is time to."""

from __future__ import annotations

from retrain import (
    autolabel,
    compress,
    convert,
    evaluations,
    exports,
    freezing,
    imports,
    labelquality,
    preview,
    train,
    trigger,
    zeroshot,
)
from sutdol.jobs import Handler

HANDLERS: dict[str, Handler] = {
    "train": train.handle,
    "retrain.trigger": trigger.handle,
    "retrain.import": imports.handle,
    "retrain.freeze": freezing.handle,
    "retrain.export": exports.handle,
    "retrain.autolabel": autolabel.handle,
    "retrain.labelquality": labelquality.handle,
    "retrain.preview": preview.handle,
    "retrain.zeroshot": zeroshot.handle,
    "retrain.evaluate": evaluations.handle,
    "retrain.compress": compress.handle,
    "retrain.convert": convert.handle,
}
