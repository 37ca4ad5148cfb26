"""The job `batch.predict`: items in, chunks of results out, each committed once.

    reader (this thread) -> groups -> window of futures -> threads: decode each, run together, interpret -> in order -> chunk
    writer (one thread)  -> the chunk into the store, then one fenced transaction: its log rows, `done`, `chunks`

Killed anywhere, the next attempt goes on after the last committed chunk; a chunk file without its commit is made again, so
no item is repeated or lost. Memory holds one window, the chunk that is written and the one that fills up. The threads run the
shared session with one thread each, as the server does; how many images go through it together is measured first, because
nobody waits for a single answer here. What one item does wrong stays with it: a group that fails is run again one by one.

Errors: InputError for a source that cannot be read; Cancelled; ConflictError when the lease is lost. An image that cannot be
read is a line with an error.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
from sqlalchemy import func
from sqlmodel import Session, col, select

from serving import answers
from serving.answers import Corners, Found, Size
from serving.batch import pictures, sources
from serving.batch.ledger import write_entries
from serving.batch.sources import Item, Options, Source
from serving.engine import Answer
from serving.engine import Item as Asked
from serving.loading import Loaded, best_batch
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
from sutdol.process import one_thread_for_matrices
from sutdol.runtime import Float32
from sutdol.sampling import Sampler
from sutdol.tables import BatchRun, LabelTask, now
from sutdol.types import Manifest, Prediction

CHUNK = 64
WINDOW = 3
"""Groups in flight per thread."""
GROUP_BYTES = 8_000_000
"""A group of images is closed when it holds so much, however few they are."""
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
class _Prepared:
    """An item on its way into the model; `shown` is what its picture will be drawn on."""

    item: Item
    image: Image | None
    shown: images.Rgb | None
    tensor: Float32
    size_hw: tuple[int, int]
    began: float


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
        one_thread_for_matrices()
        group = best_batch(predictor, gain=1.0, slow_run_s=math.inf)
        arms = sampling.arms_of(self.context.settings)
        self.sampler = Sampler(self.run.model, drawn_rate=0.0, other_rate=0.0, arms=arms)
        sha256 = predictor.manifest.files["model.onnx"]
        self.loaded = Loaded(self.run.model, self.run.version, sha256, predictor, self.sampler, group, 0, 0.0, 0.0)
        self.metrics = Metrics()
        self._follow_the_budget()
        self._began = time.monotonic()
        with ThreadPoolExecutor(1, thread_name_prefix="batch-writer") as writer:
            written: Future[None] | None = None
            for chunk, last in _chunks(self._answered(source)):
                if written is not None:
                    written.result()
                self.running.check_cancelled()
                written = writer.submit(self._commit, chunk, source.total, last=last)
            if written is not None:
                written.result()
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
        window: deque[Future[list[_Done]]] = deque()
        pool = ThreadPoolExecutor(threads, thread_name_prefix="batch")
        try:
            for group in _groups(source.items(self.done), self.loaded.batch):
                window.append(pool.submit(self._answer, group))
                if len(window) >= WINDOW * threads:
                    yield from window.popleft().result()
            while window:
                yield from window.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, items: list[Item]) -> list[_Done]:
        """One result for each item, in their order."""
        found: dict[int, _Done] = {}
        ready: list[_Prepared] = []
        for item in items:
            try:
                ready.append(self._prepared(item))
            except SutdolError as error:
                found[item.index] = _refused(item, error)
        for done in self._predicted(ready):
            found[done.line.index] = done
        return [found[item.index] for item in items]

    def _predicted(self, ready: list[_Prepared]) -> list[_Done]:
        predictor = self.loaded.predictor
        if not ready:
            return []
        try:
            raw = predictor.run(np.stack([one.tensor for one in ready]))
            predictions = [predictor.interpret(raw, i, one.size_hw) for i, one in enumerate(ready)]
        except SutdolError as error:
            if len(ready) == 1:
                return [_refused(ready[0].item, error)]
            return [done for one in ready for done in self._predicted([one])]
        return [self._done(one, predictions[i], raw, i) for i, one in enumerate(ready)]

    def _done(self, one: _Prepared, prediction: Prediction, raw: Raw, i: int) -> _Done:
        manifest, item = self.loaded.predictor.manifest, one.item
        line = Line(
            item.index,
            item.name,
            found(prediction, manifest),
            prediction.confidence,
            prediction.ood_score,
            sampling.is_unfamiliar(prediction, manifest),
            Size(one.size_hw[1], one.size_hw[0]),
            item.at_s,
        )
        entry = None
        if one.image is not None and self.options.get("log"):
            entry = self._entry(one.image, prediction, raw, i, one)
            line.prediction_id = str(entry.rows[0][1]["id"])
        drawn = pictures.draw(one.shown, prediction, one.size_hw) if one.shown is not None else None
        return _Done(line, entry, drawn)

    def _prepared(self, item: Item) -> _Prepared:
        """Pixels at the model's size; a frame that is logged goes through the bytes that are kept of it.

        Raises:
            InputError: the source could not read the item. ImageError: it is no image that can be read.
        """
        began, predictor, keep = time.perf_counter(), self.loaded.predictor, self.options.get("pictures")
        if item.error is not None:
            raise InputError(item.error)
        image, rgb = None, item.rgb
        if rgb is None or self.options.get("log"):
            image = images.admit(item.data if item.data is not None else images.encode_jpeg(cast(images.Rgb, rgb)))
            size_hw = (image.height_px, image.width_px)
            rgb = images.decode(image.data, cover_hw=None if keep else predictor.cover(size_hw))
        else:
            size_hw = (rgb.shape[0], rgb.shape[1])
        return _Prepared(item, image, pictures.fit(rgb) if keep else None, predictor.prepare(rgb), size_hw, began)

    def _entry(self, image: Image, prediction: Prediction, raw: Raw, i: int, one: _Prepared) -> Entry:
        """What the server would have written for this image, made by the server's own code."""
        predictor = self.loaded.predictor
        picked = self.sampler.pick(image.sample_id, prediction, predictor.manifest, at=now())
        asked = Asked(self.run.model, b"", None, _NOBODY)
        took_ms = (time.perf_counter() - one.began) * 1000
        look = appearance(one.tensor, predictor.manifest.input)
        scores = predictor.scores(raw, i, prediction) if picked.arms else {}
        features = pack(predictor.ood, raw.features[i]) if picked.arms else None
        answer = Answer(asked, self.loaded, image, prediction, picked, took_ms, look, scores, features)
        return answers.compose(answer, self.metrics)

    def _commit(self, chunk: list[_Done], total: int | None, *, last: bool = False) -> None:
        """The chunk's files, then the row that makes them count."""
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
    if manifest.task == "detect":
        index = {name: i for i, name in enumerate(manifest.classes)}
        return [
            Found(b.label, index[b.label], b.confidence or 0.0, Corners(b.x1, b.y1, b.x2, b.y2))
            for b in prediction.boxes
        ]
    return [Found(c.label, c.index, c.confidence) for c in prediction.classes]


def _groups(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    """`most` items together, fewer where they are large."""
    group: list[Item] = []
    held = 0
    for item in items:
        group.append(item)
        held += len(item.data or b"") + (item.rgb.nbytes if item.rgb is not None else 0)
        if len(group) >= most or held >= GROUP_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def _chunks(results: Iterable[_Done]) -> Iterator[tuple[list[_Done], bool]]:
    """(CHUNK results, False), and at the end what is left, perhaps nothing, with True."""
    chunk: list[_Done] = []
    for done in results:
        chunk.append(done)
        if len(chunk) == CHUNK:
            yield chunk, False
            chunk = []
    yield chunk, True


def _refused(item: Item, error: SutdolError) -> _Done:
    return _Done(Line(item.index, item.name, at_s=item.at_s, error=error.message))


def _backlog(session: Session, model: str) -> tuple[int, int]:
    """(tasks that nobody has answered, tasks queued in the last 24 hours)."""
    mine = select(func.count()).select_from(LabelTask).where(LabelTask.model == model)
    waiting = session.exec(mine.where(col(LabelTask.state).in_(("candidate", "queued", "in_studio")))).one()
    today = session.exec(mine.where(col(LabelTask.queued_at) > now() - 86_400)).one()
    return waiting, today


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
