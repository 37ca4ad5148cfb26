"""The job `batch.predict`: items in, chunks of results out, each committed once.

    reader (this thread) -> window of futures -> threads: decode, predict -> in order -> chunk -> store, then one fenced
    transaction: log rows of the chunk, `done`, `chunks`

Killed anywhere, the next attempt goes on after the last committed chunk; a chunk file without its commit is made again, so
no item is repeated or lost. Memory holds one window and one chunk. The threads run the shared session with one thread each,
as the server does.

Errors: InputError for a source that cannot be read; Cancelled; ConflictError when the lease is lost. An image that cannot be
read is a line with an error.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
from sqlalchemy import func
from sqlmodel import Session, col, select

from serving import answers
from serving.answers import Corners, Found, Size
from serving.batch import pictures, sources
from serving.batch.ledger import write_entries
from serving.batch.sources import Item, Options, Source
from serving.engine import Answer
from serving.engine import Item as Asked
from serving.loading import Loaded
from serving.log import Entry
from serving.metrics import Metrics
from serving.tickets import Ticket
from sutdol import images, sampling
from sutdol.appearance import appearance
from sutdol.errors import InputError, SutdolError, unknown
from sutdol.familiarity import pack
from sutdol.images import Image
from sutdol.jobs import Running
from sutdol.predictor import Predictor, Raw
from sutdol.runtime import Float32
from sutdol.sampling import Sampler
from sutdol.tables import BatchRun, LabelTask, now
from sutdol.types import Manifest, Prediction

CHUNK = 64
WINDOW = 4
"""Items in flight per thread."""
REPORT_EVERY_S = 1.0
_NOBODY = cast(Ticket, None)
"""Nobody waits for the answer of a batch; entries are written by `ledger`, which settles none."""


class Line(msgspec.Struct, omit_defaults=True):
    """The result of one item, one line of JSON."""

    index: int
    name: str
    predictions: list[Found] = []
    confidence: float = 0.0
    ood_score: float | None = None
    unfamiliar: bool = False
    image: Size | None = None
    at_s: float | None = None
    """Seconds from the beginning of a video."""
    prediction_id: str | None = None
    """In the prediction log, when the batch is logged."""
    error: str | None = None


@dataclass(frozen=True)
class _Done:
    line: Line
    entry: Entry | None = None
    picture: bytes | None = None


def handle(running: Running) -> dict[str, Any]:
    """Job handler of `batch.predict`, payload {"run_id"}."""
    with running.context.database.read() as session:
        run = session.get(BatchRun, str(running.payload["run_id"]))
    if run is None:
        raise unknown("batch", running.payload["run_id"], [])
    return _Attempt(running, run).work()


class _Attempt:
    """One attempt at one run."""

    def __init__(self, running: Running, run: BatchRun) -> None:
        self.running, self.context, self.run = running, running.context, run
        self.folder = (running.context.settings.home / "batches" / run.id).absolute()
        self.options: dict[str, Any] = run.options
        self.done, self.failed, self.chunks = run.done, run.failed, run.chunks
        self._began, self._first, self._told = time.monotonic(), run.done, 0.0

    def work(self) -> dict[str, Any]:
        self.running.report(step="loading")
        source = self._source()
        predictor = Predictor.open(
            self.context.store, self.run.model, self.run.version, providers=self.context.settings.provider_names or None
        )
        predictor.warm()
        arms = sampling.arms_of(self.context.settings)
        self.sampler = Sampler(self.run.model, drawn_rate=0.0, other_rate=0.0, arms=arms)
        sha256 = predictor.manifest.files["model.onnx"]
        self.loaded = Loaded(self.run.model, self.run.version, sha256, predictor, self.sampler, 1, 0, 0.0, 0.0)
        self.metrics = Metrics()
        self._follow_the_budget()
        chunk: list[_Done] = []
        self._began = time.monotonic()
        for done in self._answered(source):
            chunk.append(done)
            if len(chunk) == CHUNK:
                self._commit(chunk, source.total)
                chunk = []
        self._commit(chunk, source.total, last=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        return {"done": self.done, "failed": self.failed, "chunks": self.chunks}

    def _source(self) -> Source:
        described, store = self.run.source, self.context.store
        kind = str(described["kind"])
        if "key" in described:
            path = self.folder / f"source{Path(str(described['name'])).suffix}"
            if not path.is_file():
                path.parent.mkdir(parents=True, exist_ok=True)
                store.fetch(str(described["key"]), path)
        else:
            path = Path(str(described["path"]))
            if not path.exists():
                raise InputError(f"{path.name}: is not there (any more)")
        names: list[str] = []
        if kind in sources.NAMED:
            key = f"batches/{self.run.id}/names.json"
            if not store.has(key):  # the first attempt says what the batch is; a file that comes later is not in it
                store.put(key, msgspec.json.encode(sources.NAMED[kind](path)[1]))
            names = msgspec.json.decode(store.get(key), type=list[str])
        options = Options(self.options.get("every_s"), self.options.get("scene"))
        return sources.SOURCES[kind](path, names, options)

    def _answered(self, source: Source) -> Iterator[_Done]:
        """Results in the order of the items; the reader stays a window ahead of them."""
        threads = self.context.settings.inference_threads or _cores()
        window: deque[Future[_Done]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        try:
            for item in source.items(self.done):
                window.append(pool.submit(self._answer, item))
                if len(window) >= WINDOW * threads:
                    yield window.popleft().result()
            while window:
                yield window.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, item: Item) -> _Done:
        began = time.perf_counter()
        try:
            if item.error is not None:
                raise InputError(item.error)
            image, rgb, tensor, size_hw = self._prepared(item)
            predictor = self.loaded.predictor
            raw = predictor.run(tensor[None])
            prediction = predictor.interpret(raw, 0, size_hw)
        except SutdolError as error:
            return _Done(Line(item.index, item.name, at_s=item.at_s, error=error.message))
        manifest = predictor.manifest
        line = Line(
            item.index,
            item.name,
            found(prediction, manifest),
            prediction.confidence,
            prediction.ood_score,
            sampling.is_unfamiliar(prediction, manifest),
            Size(size_hw[1], size_hw[0]),
            item.at_s,
        )
        logged = image is not None and self.options.get("log")
        entry = self._entry(image, prediction, raw, tensor, began) if image is not None and logged else None
        if entry is not None:
            line.prediction_id = str(entry.rows[0][1]["id"])
        drawn = pictures.draw(rgb, prediction, size_hw) if self.options.get("pictures") else None
        return _Done(line, entry, drawn)

    def _prepared(self, item: Item) -> tuple[Image | None, images.Rgb, Float32, tuple[int, int]]:
        """(image for the log, pixels, tensor, size); a frame that is logged goes through the bytes that are kept of it."""
        predictor = self.loaded.predictor
        if item.rgb is not None and not self.options.get("log"):
            return None, item.rgb, predictor.prepare(item.rgb), (item.rgb.shape[0], item.rgb.shape[1])
        data = item.data if item.data is not None else images.encode_jpeg(cast(images.Rgb, item.rgb))
        image = images.admit(data)
        size_hw = (image.height_px, image.width_px)
        rgb = images.decode(image.data, cover_hw=None if self.options.get("pictures") else predictor.cover(size_hw))
        return image, rgb, predictor.prepare(rgb), size_hw

    def _entry(self, image: Image, prediction: Prediction, raw: Raw, tensor: Float32, began: float) -> Entry:
        """What the server would have written for this image, made by the server's own code."""
        manifest = self.loaded.predictor.manifest
        picked = self.sampler.pick(image.sample_id, prediction, manifest, at=now())
        asked = Asked(self.run.model, b"", None, _NOBODY)
        took_ms = (time.perf_counter() - began) * 1000
        look = appearance(tensor, manifest.input)
        scores = self.loaded.predictor.scores(raw, 0, prediction) if picked.arms else {}
        features = pack(self.loaded.predictor.ood, raw.features[0]) if picked.arms else None
        answer = Answer(asked, self.loaded, image, prediction, picked, took_ms, look, scores, features)
        return answers.compose(answer, self.metrics)

    def _commit(self, chunk: list[_Done], total: int | None, *, last: bool = False) -> None:
        """The chunk's files, then the row that makes them count."""
        if chunk or last:
            self.running.check_cancelled()
        store, place = self.context.store, f"batches/{self.run.id}/{self.chunks:06d}"
        entries = [done.entry for done in chunk if done.entry is not None]
        if chunk:
            files = {f"{place}.jsonl": msgspec.json.Encoder().encode_lines([done.line for done in chunk])}
            drawn = [(done.line, done.picture) for done in chunk if done.picture is not None]
            if drawn:
                files[f"{place}.zip"] = pictures.packed(drawn)
            for key, data in files.items():
                store.delete(key)  # left by an attempt that died before its commit
                store.put(key, data)
            for entry in entries:
                if entry.image is not None:
                    store.put(f"samples/{entry.image.sample_id}", entry.image.data)
        done, failed = self.done + len(chunk), self.failed + sum(d.line.error is not None for d in chunk)
        with self.running.commit() as session:
            write_entries(session, entries)
            row = session.get_one(BatchRun, self.run.id)
            row.done, row.failed, row.chunks, row.total = done, failed, self.chunks + bool(chunk), total
            if last:
                row.total, row.finished_at = done, now()
            session.add(row)
        self.done, self.failed, self.chunks = done, failed, self.chunks + bool(chunk)
        if last or time.monotonic() - self._told >= REPORT_EVERY_S:
            self._told = time.monotonic()
            self._report(total)

    def _report(self, total: int | None) -> None:
        per_s = (self.done - self._first) / max(time.monotonic() - self._began, 1e-6)
        eta_s = (total - self.done) / per_s if total is not None and per_s > 0 else None
        self.running.report(
            step="predicting", done=self.done, of=total, failed=self.failed, images_per_s=per_s, eta_s=eta_s
        )
        self._follow_the_budget()

    def _follow_the_budget(self) -> None:
        if self.options.get("log"):
            with self.context.database.read() as session:
                open_tasks, today = _backlog(session, self.run.model)
            rates = sampling.rates(self.context.settings, open_tasks=open_tasks, queued_today=today)
            self.sampler.set_rates(*rates)


def found(prediction: Prediction, manifest: Manifest) -> list[Found]:
    """The findings in the words of the API."""
    index = {name: i for i, name in enumerate(manifest.classes)}
    if manifest.task == "detect":
        return [
            Found(b.label, index[b.label], b.confidence or 0.0, Corners(b.x1, b.y1, b.x2, b.y2))
            for b in prediction.boxes
        ]
    return [Found(c.label, c.index, c.confidence) for c in prediction.classes]


def _backlog(session: Session, model: str) -> tuple[int, int]:
    """(tasks that nobody has answered, tasks queued in the last 24 hours)."""
    mine = select(func.count()).select_from(LabelTask).where(LabelTask.model == model)
    waiting = session.exec(mine.where(col(LabelTask.state).in_(("candidate", "queued", "in_studio")))).one()
    today = session.exec(mine.where(col(LabelTask.queued_at) > now() - 86_400)).one()
    return waiting, today


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
