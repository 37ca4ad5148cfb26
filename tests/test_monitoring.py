"""Metrics, alerts and boards: names and labels as written down, every alert fires, every query of a board finds something.

The scrape is that of a real server; Prometheus and promtool are Debian's.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from sutdol import keys
from sutdol.context import Context, open_context
from sutdol.jobs import send
from sutdol.settings import load
from sutdol.tables import DriftState, LabelReport, LabelRow, LabelTask, Lease, Replica, TrainingRun, now
from tests.conftest import missing
from tests.running_server import RunningServer, free_port, running, wait_for
from tests.tiny_models import classifier_bundle, coloured_png

ROOT = Path(__file__).parents[1]
PROMETHEUS = ROOT / "deploy" / "prometheus"
BOARDS = sorted((ROOT / "deploy" / "grafana" / "boards").glob("*.json"))
ALERTS = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]

METRICS: dict[str, tuple[str, ...]] = {
    "sutdol_requests": ("method", "route", "status"),
    "sutdol_request_duration_seconds": ("route",),
    "sutdol_predictions": ("model", "version"),
    "sutdol_picked": ("arm", "model"),
    "sutdol_unfamiliar": ("model",),
    "sutdol_swap": ("model", "outcome"),
    "sutdol_evicted": ("model",),
    "sutdol_swap_duration_seconds": ("model",),
    "sutdol_serving_version": ("model",),
    "sutdol_batch_size": (),
    "sutdol_dropped": ("cause",),
    "sutdol_log_commits": (),
    "sutdol_log_failures": (),
    "sutdol_log_spooled": (),
    "sutdol_log_commit_seconds": (),
    "sutdol_queue_length": (),
    "sutdol_log_pending": (),
    "sutdol_models_memory_bytes": (),
    "sutdol_spool_entries": (),
    "sutdol_live_accuracy": ("bound", "model"),
    "sutdol_live_accuracy_labels": ("model",),
    "sutdol_live_accuracy_labels_needed": ("model",),
    "sutdol_drift_alarm": ("model",),
    "sutdol_drift_level": ("chart", "model"),
    "sutdol_jobs": ("queue", "state"),
    "sutdol_job_wait_seconds": ("queue",),
    "sutdol_lease_left_seconds": ("name",),
    "sutdol_replicas": ("role",),
    "sutdol_rollout_replicas": ("model", "which"),
    "sutdol_label_tasks": ("model", "state"),
    "sutdol_labels": ("model", "source"),
    "sutdol_training_runs": ("model", "state"),
    "sutdol_training_epochs_ratio": ("model",),
    "sutdol_training_left_seconds": ("model",),
    "sutdol_labeling_answers": ("model",),
    "sutdol_labeling_accepted_ratio": ("model",),
    "sutdol_labeling_agreement_ratio": ("model",),
    "sutdol_labeling_lead_time_seconds": ("model",),
    "sutdol_studio_read_age_seconds": (),
    "sutdol_disk_free_bytes": (),
}
"""Every series that a server has, by name without the suffix of its type: changing one breaks somebody's boards."""


@pytest.fixture(scope="module")
def scraped(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunningServer, httpx.Client]]:
    """A server with a model, an installation around it as the database tells it, and its admin's client."""
    context = open_context(load(home=tmp_path_factory.mktemp("monitored")))
    classifier_bundle(context)
    with context.database.begin() as session:
        key = keys.create(session, "test", ["admin"])
    _installation(context)
    with (
        running(context.settings.home, label_rate=1.0) as server,
        httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as client,
    ):
        yield server, client
    context.database.close()


def _installation(context: Context) -> None:
    """Rows as a busy day leaves them."""
    share = {"n": 10, "k": 9, "share": 0.9, "interval": [0.6, 1.0]}
    report = {"answers": 10, "accepted": share, "agreement": share, "lead_time_s": {"shown": 4.2, "blind": None}}
    task: dict[str, Any] = {
        "model": "tiny",
        "prediction_id": "",
        "version": 1,
        "arm": "drawn",
        "reason": "",
        "answer": {},
    }
    with context.database.begin() as session:
        for role in ("work", "clock"):
            session.add(Replica(role=role, pid=1, host="elsewhere", serving={}, heartbeat_at=now() + 3600))
        for name in ("clock", "job-sweeper"):
            session.add(Lease(name=name, owner="elsewhere", until=now() + 3600))
        send(session, "train", {"run_id": "none"})
        send(session, "bridge.read", {})
        session.add(LabelReport(model="tiny", report=report))
        for sample_id, state in (("a", "queued"), ("b", "candidate")):
            session.add(LabelTask(sample_id=sample_id, priority=0.5, uncertainty=0.5, state=state, **task))
        session.add(LabelRow(model="tiny", sample_id="a", value={}, source="annotation", split="train"))
        run = {"model": "tiny", "family": "timm", "params": {}, "cause": "by hand"}
        session.add(TrainingRun(state="training", epoch=2, epochs=8, eta_s=30.0, **run))
        charts = {"charts": {"ood+": {"sum": 0.2, "alarm": False}}, "window": {}, "seen": 300}
        session.add(DriftState(model="tiny", version=1, charts=charts, recent=[], alarm=False))
    from sutdol.jobs import rows

    with context.database.read() as session:
        waiting = rows.due(context.database, frozenset({"bridge.read"}))
    job = rows.claim(context.database, waiting[0], "test", lease_s=60)
    assert job is not None
    rows.finish(context.database, job, {})


def traffic(client: httpx.Client, n: int) -> None:
    for i in range(n):
        reply = client.post("/v1/predict/tiny", content=coloured_png(("red", "green", "blue")[i % 3], seed=i))
        assert reply.status_code == 200


def scrape(server: RunningServer) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(httpx.get(f"{server.url}/metrics").text)}


def test_every_metric_has_the_name_and_labels_that_are_written_down(
    scraped: tuple[RunningServer, httpx.Client],
) -> None:
    """Boards and alerts are made by others than us; a renamed series makes them silently blind."""
    server, client = scraped
    traffic(client, 3)
    found = scrape(server)
    assert {name for name in found if name.startswith("sutdol_")} == set(METRICS)
    for name, family in found.items():
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(METRICS[name]), name
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        if family.type == "histogram":
            assert name.endswith(("_seconds", "_size")), name
    for name in re.findall(r"sutdol_[a-z_]+", json.dumps([a["expr"] for a in ALERTS])):
        assert re.sub(r"_(total|bucket|sum|count)$", "", name) in METRICS, name


def test_strangers_cannot_make_series(scraped: tuple[RunningServer, httpx.Client]) -> None:
    """Whoever can invent paths, models or methods could fill the memory of every Prometheus that looks at us."""
    server, client = scraped

    def bother(i: int) -> None:
        client.get(f"/no/such/path/{i}")
        client.get(f"/v1/models/unknown-{i}")
        client.post(f"/v1/predict/unknown-{i}", content=b"x")
        client.post(f"/v1/predict/tiny@{i + 1000}", content=b"x")
        client.request(f"METHOD{i}", "/v1/models")
        client.get("/v1/models", headers={"X-Request-Id": f"id-{i}", "User-Agent": f"agent-{i}"})

    def series() -> set[str]:
        found = (sample for family in scrape(server).values() for sample in family.samples)
        return {f"{sample.name}{sorted(sample.labels.items())}" for sample in found}

    wait_for(lambda: any("sutdol_disk_free_bytes" in name for name in series()), "the first reading of the database")
    traffic(client, 1)
    bother(0)
    before = series()
    for i in range(1, 8):
        bother(i)
    assert series() - before == set()


def promtool(*arguments: str) -> None:
    program = shutil.which("promtool")
    if program is None:
        missing("promtool is not installed: sudo apt-get install prometheus")
    done = subprocess.run([program, *arguments], cwd=PROMETHEUS, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_fires_and_a_healthy_installation_is_silent() -> None:
    """Prometheus' own evaluator over an hour of made series, a healthy one and one with every trouble."""
    promtool("check", "config", "--syntax-only", "prometheus.yml")
    promtool("check", "rules", "rules.yml")
    promtool("test", "rules", "rules_test.yml")
    healthy, trouble = yaml.safe_load((PROMETHEUS / "rules_test.yml").read_text())["tests"]
    names = {rule["alert"] for rule in ALERTS}
    assert {case["alertname"] for case in healthy["alert_rule_test"] if "exp_alerts" not in case} == names
    assert {case["alertname"] for case in trouble["alert_rule_test"] if case["exp_alerts"]} == names


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: str(rule["alert"]))
def test_an_alert_leads_to_its_page(rule: dict[str, Any]) -> None:
    """At three in the morning nobody wants to search."""
    page, anchor = rule["annotations"]["runbook"].split("#")
    headings = re.findall(r"(?m)^## (.+)$", (ROOT / page).read_text())
    assert rule["alert"] in headings
    assert anchor == rule["alert"].lower()
    assert rule["labels"]["severity"] in ("page", "ticket")


@pytest.fixture(scope="module")
def prometheus(scraped: tuple[RunningServer, httpx.Client], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real Prometheus that has scraped the server for some seconds under traffic."""
    program = shutil.which("prometheus")
    if program is None:
        missing("prometheus is not installed: sudo apt-get install prometheus")
    server, client = scraped
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    target = server.url.removeprefix("http://")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(PROMETHEUS / "rules.yml")],
        "scrape_configs": [{"job_name": "sutdol", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log,
            stderr=log,
        )
    try:
        traffic(client, 5)

        def scrapes() -> int:
            traffic(client, 3)
            try:
                found = query(url, "count_over_time(up[1m])")
            except httpx.TransportError:
                return 0
            return int(found[0]["value"][1]) if found else 0

        wait_for(lambda: scrapes() >= 5, "five scrapes", within_s=60)
        yield url
    finally:
        process.kill()
        process.wait(30)


def query(url: str, expression: str) -> list[dict[str, Any]]:
    reply = httpx.get(f"{url}/api/v1/query", params={"query": expression, "time": time.time()}).json()
    assert reply["status"] == "success", (expression, reply)
    result: list[dict[str, Any]] = reply["data"]["result"]
    return result


@pytest.mark.parametrize("path", BOARDS, ids=lambda p: p.stem)
def test_every_query_of_a_board_finds_something(prometheus: str, path: Path) -> None:
    """A panel that says `No data` looks like a quiet day."""
    board = json.loads(path.read_text())
    assert board["uid"] == f"sutdol-{path.stem}"
    assert {panel["datasource"]["uid"] for panel in board["panels"]} == {"prometheus"}
    expressions = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    for expression in expressions:
        now_ = expression.replace("$__rate_interval", "30s").replace("$__range", "1m")
        assert query(prometheus, now_), expression
