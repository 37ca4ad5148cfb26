"""The other version answers too, unseen: beside the request, never before it.

    engine: an answer -> offer (bounded, oldest dropped) -> one thread of the lowest priority: run, interpret, compare
        -> watch; log: one `shadow` row; where they differ and the budget allows, a label task of the arm `disagree`

Three occasions: a challenger as shadow, the champion beside a canary's answers, and for a while after a swap the version that
answered before. Nothing here can fail a request.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from serving.loading import Loaded, lowest_priority
from serving.log import Entry, LogWriter
from serving.watch import Watch
from sutdol import images
from sutdol.difference import differs, in_words
from sutdol.errors import BusyError, NotFiniteError, SutdolError
from sutdol.images import Image
from sutdol.runtime import Float32
from sutdol.sampling import priority
from sutdol.tables import LabelTask, ShadowRow, now
from sutdol.types import Prediction

WAITING = 32


@dataclass(frozen=True, slots=True)
class Pair:
    """Which version answers also, and which of the two is on trial."""

    other: Loaded
    subject: int


@dataclass(frozen=True, slots=True)
class Offered:
    """One answer that was given, and what the other version needs to give its own."""

    pair: Pair
    loaded: Loaded
    image: Image
    tensor: Float32
    prediction: Prediction
    prediction_id: str


class Shadow:
    """One thread; `offer` never waits."""

    def __init__(self, log: LogWriter, watch: Watch) -> None:
        self._log_writer = log
        self._watch = watch
        self._waiting: deque[Offered] = deque(maxlen=WAITING)
        self._wake = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="shadow", daemon=True)
        self._log = structlog.get_logger("serving.shadow")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Drop what waits, and end."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def offer(self, offered: Offered) -> None:
        """Have the other version answer as well, when there is time for it."""
        with self._wake:
            self._waiting.append(offered)
            self._wake.notify()

    def _work(self) -> None:
        lowest_priority()
        while True:
            with self._wake:
                while not self._waiting and not self._stopping:
                    self._wake.wait()
                if self._stopping:
                    return
                offered = self._waiting.popleft()
            try:
                self._compare(offered)
            except Exception:  # the outermost loop of this thread; no request waits for it
                self._log.exception("shadow failed", model=offered.loaded.model)

    def _compare(self, offered: Offered) -> None:
        model, other = offered.loaded.model, offered.pair.other
        size_hw = (offered.image.height_px, offered.image.width_px)
        try:
            tensor = offered.tensor
            if other.predictor.manifest.input != offered.loaded.predictor.manifest.input:
                rgb = images.decode(offered.image.data, cover_hw=other.predictor.cover(size_hw))
                tensor = other.predictor.prepare(rgb)
            began, cpu = time.perf_counter(), time.thread_time()
            raw = other.predictor.run(tensor[None])
            took_s, cpu_s = time.perf_counter() - began, time.thread_time() - cpu
            prediction = other.predictor.interpret(raw, 0, size_hw)
        except SutdolError as error:
            self._watch.failed(model, other.version, not_finite=isinstance(error, NotFiniteError))
            self._write(_row(offered, None, False, 0.0, error.message), None, None)
            return
        self._watch.ran(model, other.version, seconds_each=cpu_s if other.on_cpu else took_s)
        task = offered.loaded.predictor.manifest.task
        different = differs(offered.prediction, prediction, task)
        self._watch.compared(model, offered.pair.subject, differs=different)
        label_task = self._task(offered, prediction) if different else None
        row = _row(offered, prediction, not different, took_s * 1000, None)
        self._write(row, label_task, offered.image if label_task is not None else None)

    def _task(self, offered: Offered, prediction: Prediction) -> LabelTask | None:
        """A difference is worth a human look, as far as the budget of the arms beside `drawn` goes."""
        loaded, said = offered.loaded, offered.prediction
        if not loaded.sampler.disagreed(offered.image.sample_id):
            return None
        manifest = loaded.predictor.manifest
        answers = [(loaded.version, said), (offered.pair.other.version, prediction)]
        return LabelTask(
            model=loaded.model,
            sample_id=offered.image.sample_id,
            prediction_id=offered.prediction_id,
            version=loaded.version,
            arm="disagree",
            reason=", ".join(in_words(version, answer, manifest.task) for version, answer in answers),
            priority=max(priority(said, manifest), 0.5),
            uncertainty=1.0 - said.margin,
            ood_score=said.ood_score,
            answer=_logged(said),
        )

    def _write(self, row: dict[str, Any], task: LabelTask | None, image: Image | None) -> None:
        try:
            self._log_writer.submit(Entry(None, b"", ((ShadowRow, row),), image=image, task=task))
        except BusyError:
            return  # answers come first


def _row(
    offered: Offered, prediction: Prediction | None, agrees: bool, duration_ms: float, error: str | None
) -> dict[str, Any]:
    return {
        "prediction_id": offered.prediction_id,
        "version": offered.pair.other.version,
        "at": now(),
        "model": offered.loaded.model,
        "answered_by": offered.loaded.version,
        "answer": _logged(prediction) if prediction is not None else {},
        "confidence": prediction.confidence if prediction is not None else 0.0,
        "agrees": agrees,
        "duration_ms": duration_ms,
        "error": error,
    }


def _logged(prediction: Prediction) -> dict[str, Any]:
    return {"classes": msgspec.to_builtins(prediction.classes), "boxes": msgspec.to_builtins(prediction.boxes)}
