"""deploy/ as far as it can be judged without a container engine: Helm itself, published schemas, a linter, our own rules.

What needs an engine is done by `deploy/check`; what no check of ours has done is said in docs/deployment.md.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import pytest
import yaml

from sutdol.settings import Settings
from tests.conftest import missing

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
CHART = DEPLOY / "helm" / "sutdol"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))
ONE_SHOT = {"migrate", "minio-owner", "caddy-owner", "store-init"}
KUBERNETES = ("1.30", "1.34")
EVERYTHING = {"ingress": {"enabled": True}, "serviceMonitor": {"enabled": True}}


def tool(name: str) -> str:
    """A program of this environment."""
    return str(Path(sys.executable).parent / name)


def known_variables() -> set[str]:
    plain = {f"SUTDOL_{name.upper()}" for name in Settings.model_fields}
    return plain | {f"{name}_FILE" for name in plain}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_a_dockerfile_passes_the_linter_and_ends_without_root(path: Path) -> None:
    """An image that runs as root undoes everything that the deployment around it forbids."""
    subprocess.run([tool("hadolint"), str(path)], check=True)
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert any(line.startswith("HEALTHCHECK") for line in lines)
    for source in re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+)$", path.read_text(), re.M):
        for name in source.split()[:-1]:
            assert (ROOT / name).exists(), name


def test_the_lock_of_an_image_is_a_part_of_the_one_lock() -> None:
    """What an image holds is what the tests ran with, and a server holds nothing to train with."""
    whole = (ROOT / "requirements.lock").read_text()
    for extras, wanted, unwanted in (
        (["postgres", "redis"], {"litestar", "psycopg", "redis", "onnx"}, {"torch", "ultralytics", "label-studio-sdk"}),
        (["train", "label-studio"], {"torch", "timm", "label-studio-sdk"}, {"ultralytics", "pytest"}),
        (["--only", "babel"], {"babel"}, {"litestar"}),
    ):
        part = subprocess.run(
            [sys.executable, str(DEPLOY / "lockfor"), *extras], check=True, capture_output=True, text=True
        ).stdout
        names = set(re.findall(r"(?m)^([a-z0-9-]+)==", part))
        assert wanted <= names
        assert not names & unwanted
        assert all(line in whole for line in part.splitlines())
    failed = subprocess.run([sys.executable, str(DEPLOY / "lockfor"), "nonsense"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "expected one of" in failed.stderr


def test_the_compose_files_fit_the_published_schema() -> None:
    """Compose ignores nothing: a misspelt key stops the start."""
    files = [str(DEPLOY / "compose.yaml"), str(DEPLOY / "compose.gpu.yaml")]
    subprocess.run([tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", *files], check=True)


@pytest.mark.parametrize("name", sorted(COMPOSE["services"]))
def test_a_service_is_locked_in(name: str) -> None:
    """Read-only, without capabilities, not as root, watched; the exceptions are named here."""
    service = COMPOSE["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    allowed = {"caddy": ["NET_BIND_SERVICE"], "minio-owner": ["CHOWN"], "caddy-owner": ["CHOWN"]}
    assert service.get("cap_add", []) == allowed.get(name, [])
    if name.endswith("-owner"):
        assert service["network_mode"] == "none"
    else:
        ours = str(service["image"]).startswith("sutdol-")
        assert ours or not str(service["user"]).startswith("0:")
    if name in ONE_SHOT:
        assert service["restart"] == "no"
    else:
        assert service["healthcheck"]["test"][0] == "CMD"
    assert ("ports" in service) == (name == "caddy")
    assert ":latest" not in str(service["image"])


def test_what_compose_names_exists() -> None:
    """Services, volumes, secrets and files that are mounted; no secret stands in an environment."""
    services = COMPOSE["services"]
    for name, service in services.items():
        for other in service.get("depends_on", {}):
            assert other in services, f"{name} -> {other}"
        for secret in service.get("secrets", []):
            assert secret in COMPOSE["secrets"], f"{name} -> {secret}"
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert (DEPLOY / source).exists() if source.startswith("./") else source in COMPOSE["volumes"], source
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|SECRET|_KEY|DATABASE_URL", variable):
                assert variable.endswith("FILE"), variable
                assert value.removeprefix("/run/secrets/") in service["secrets"]
            if variable.startswith("SUTDOL_"):
                assert variable in known_variables()


def test_secrets_are_made_once(tmp_path: Path) -> None:
    """A second start must not lock everybody out of what the first one made."""
    shutil.copy(DEPLOY / "secrets", tmp_path / "secrets")
    for _ in range(2):
        subprocess.run(["sh", str(tmp_path / "secrets")], check=True, capture_output=True)
        found = {path.name: path.read_text() for path in (tmp_path / "secrets.d").iterdir()}
        assert set(found) == set(COMPOSE["secrets"])
        assert found["postgres_password"] in found["database_url"]
        assert all(len(value) >= 20 for value in found.values())
        first = locals().get("first", found)
        assert first == found
    assert stat.S_IMODE((tmp_path / "secrets.d").stat().st_mode) == 0o700


def test_caddy_takes_its_file() -> None:
    """A mistake in it is an outage of everything behind it."""
    caddy = shutil.which("caddy")
    if caddy is None:
        missing("caddy is not installed: sudo apt-get install caddy")
    command = [caddy, "validate", "--config", str(DEPLOY / "caddy" / "Caddyfile"), "--adapter", "caddyfile"]
    subprocess.run(command, check=True, capture_output=True, env=os.environ | {"DOMAIN": "vision.example"})


def rendered(values: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """Every object of the chart."""
    with helm_python.Chart.load(str(CHART)) as chart:
        texts = chart.render(values, name="demo", namespace="vision").values()
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def pods(documents: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {
        document["metadata"]["name"]: document["spec"]["template"]["spec"]
        for document in documents
        if document["kind"] in ("Deployment", "Job")
    }


def test_helm_finds_nothing_to_say_about_the_chart() -> None:
    """`helm lint --strict`, by Helm's own code."""
    report = helm_python.lint(str(CHART), strict=True)
    assert not report["errors"]
    assert [message for message in report["messages"] if message["severity"] > 1] == []


@pytest.mark.parametrize("version", KUBERNETES)
def test_every_object_fits_kubernetes_own_schema(version: str) -> None:
    """Unknown fields are dropped silently by a cluster; here they are an error."""
    for document in rendered(EVERYTHING):
        if document["kind"] != "ServiceMonitor":  # the Prometheus operator's, Kubernetes does not know it
            kubernetes_validate.validate(document, version, strict=True)


def test_every_pod_is_locked_in_and_bounded() -> None:
    """The restricted pod security standard, and memory that ends before the node's does."""
    found = pods(rendered())
    assert set(found) == {f"demo-{n}" for n in ("serve", "work-bridge", "work-train", "clock", "migrate")}
    for name, pod in found.items():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        (container,) = pod["containers"]
        security = container["securityContext"]
        assert security == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert "memory" in container["resources"]["limits"]
        assert name == "demo-migrate" or "livenessProbe" in container
        variables = {entry["name"]: entry["value"] for entry in container["env"]}
        assert set(variables) <= known_variables()
        assert variables["SUTDOL_DATABASE_URL_FILE"] == "/run/secrets/sutdol/database_url"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_chart_keeps_its_promises() -> None:
    """Autoscaling and disruption for serving, one worker per GPU, the schema before anything else."""
    documents = rendered()
    by_kind = {document["kind"]: document for document in documents}
    assert by_kind["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "demo-serve"
    assert by_kind["PodDisruptionBudget"]["spec"]["minAvailable"] == 1
    assert "pre-upgrade" in by_kind["Job"]["metadata"]["annotations"]["helm.sh/hook"]
    found = pods(documents)
    assert found["demo-work-train"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert "nvidia.com/gpu" not in found["demo-work-bridge"]["containers"][0]["resources"]["limits"]
    selector = next(d for d in documents if d["kind"] == "Service")["spec"]["selector"]
    labels = next(d for d in documents if d["metadata"]["name"] == "demo-serve" and d["kind"] == "Deployment")
    assert selector.items() <= labels["spec"]["template"]["metadata"]["labels"].items()


def test_a_worker_with_two_gpus_is_refused_by_the_chart() -> None:
    """A training run takes one device; the second would be paid for and idle."""
    values = {"workers": {"train": {"gpus": 2}}}
    with helm_python.Chart.load(str(CHART)) as chart, pytest.raises(helm_python.HelmValuesError, match="gpus"):
        chart.validate_schema(chart.merge_values(values))
