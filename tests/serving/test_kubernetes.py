"""The manifest of docs/kubernetes.md is of the server that it runs: ports, probes, options, the time to stop."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from efficientdet.cli import app as command_line
from efficientdet.serving.app import create_app
from efficientdet.serving.run import stop_seconds
from efficientdet.serving.settings import ServeSettings
from efficientdet.settings import changed

yaml = pytest.importorskip("yaml", reason="pyyaml is missing (extra train)")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    """By kind."""
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return {one["kind"]: one for one in yaml.safe_load_all(block)}


@pytest.fixture(scope="module")
def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = manifest["Deployment"]["spec"]["template"]
    return found


@pytest.fixture(scope="module")
def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["spec"]["containers"]
    return dict(found)


def routes() -> set[tuple[str, str]]:
    """Method and path of what the server answers."""
    described = create_app({}).openapi()["paths"]
    return {(method.upper(), path) for path, methods in described.items() for method in methods}


def test_what_is_asked_for_is_what_the_server_answers(pod: dict[str, Any], container: dict[str, Any]) -> None:
    asked = {container[name]["httpGet"]["path"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    asked.add(pod["metadata"]["annotations"]["prometheus.io/path"])
    assert asked == {"/ready", "/health", "/metrics"}
    assert {("GET", path) for path in asked} <= routes()


def test_every_port_is_the_servers(manifest: dict[str, Any], pod: dict[str, Any], container: dict[str, Any]) -> None:
    (port,) = container["ports"]
    exposed = re.search(r"^EXPOSE (\d+)", (ROOT / "docker" / "Dockerfile").read_text(), re.MULTILINE)
    assert exposed is not None
    assert port["containerPort"] == ServeSettings().port == int(exposed[1])
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(port["containerPort"])
    probes = [container[name]["httpGet"]["port"] for name in ("startupProbe", "readinessProbe", "livenessProbe")]
    (service,) = manifest["Service"]["spec"]["ports"]
    assert {*probes, service["targetPort"]} == {port["name"]}


def test_the_server_has_stopped_before_it_is_killed(pod: dict[str, Any], container: dict[str, Any]) -> None:
    given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    settings = {name.removeprefix("--").replace("-", "_"): json.loads(value) for name, value in given.items()}
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    needed = wait + stop_seconds(changed(ServeSettings(), settings))
    assert needed < pod["spec"]["terminationGracePeriodSeconds"] <= needed + 30


def test_everything_selects_the_pod(manifest: dict[str, Any], pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"]
    assert manifest["Service"]["spec"]["selector"] == labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert manifest[kind]["spec"]["selector"]["matchLabels"] == labels
    assert manifest["PodDisruptionBudget"]["spec"]["minAvailable"] < manifest["Deployment"]["spec"]["replicas"]


def test_what_the_page_names_exists(container: dict[str, Any]) -> None:
    import typer

    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    serve = typer.main.get_command(command_line).commands["serve"]  # type: ignore[attr-defined]
    options = {option for one in serve.params for option in one.opts}
    assert {"--time-limit", *re.findall(r"`(--[\w-]+)`", text)} <= options
    metrics = {metric.name for metric in create_app({}).state.service.metrics.registry.collect()}
    assert set(re.findall(r"`(efficientdet_\w+)`", text)) <= metrics
    # The container writes below /tmp alone, where the image has its cache.
    assert "EFFICIENTDET_CACHE=/tmp/" in (ROOT / "docker" / "Dockerfile").read_text()
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    assert container["resources"]["limits"]["cpu"] == container["env"][0]["value"]
