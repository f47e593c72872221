"""What operators are given is what their tools take. No image is built here, and no cluster is there."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from http_server import GENERATIONS, client_of, fake_pipeline
from toolchain import needs

in_integration = pytest.mark.slow(reason="needs ddm-rt[integration]")
DEPLOY = Path(__file__).parents[2] / "deploy"


def found(tool: str) -> str | None:
    return shutil.which(tool, path=str(Path(sys.executable).parent)) or shutil.which(tool)


def run(tool: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(found(tool)), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@in_integration
@pytest.mark.skipif(found("hadolint") is None, reason="needs ddm-rt[integration]")
def test_the_dockerfile_is_as_hadolint_wants_it() -> None:
    # DL3013: versions of packages are pinned in pyproject.toml.
    done = run("hadolint", "--ignore", "DL3013", DEPLOY / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


@in_integration
@pytest.mark.skipif(found("kubernetes-validate") is None, reason="needs ddm-rt[integration]")
@pytest.mark.parametrize("name", ["deployment", "ledger", "service"])
def test_kubernetes_takes_the_manifests(name: str) -> None:
    done = run("kubernetes-validate", "--strict", DEPLOY / "kubernetes" / f"{name}.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(found("systemd-analyze") is None, reason="needs systemd")
def test_the_unit_is_one_and_gives_few_rights(tmp_path: Path) -> None:
    text = (DEPLOY / "ddm-rt.service").read_text(encoding="utf-8")
    unit = tmp_path / "ddm-rt.service"
    unit.write_text(re.sub(r"=/\S+/ddm-rt ", "=/bin/true ", text), encoding="utf-8")
    done = run("systemd-analyze", "verify", "--man=no", unit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ddm-rt.service" not in done.stderr, done.stderr
    security = run("systemd-analyze", "security", "--offline=yes", "--threshold=25", unit)
    assert security.returncode == 0, security.stdout[-300:]


@needs("prometheus")
def test_the_rules_fire_when_they_should() -> None:
    done = run("promtool", "test", "rules", DEPLOY / "prometheus" / "alerts.test.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


def expressions() -> list[str]:
    panels = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text(encoding="utf-8"))["panels"]
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    rules = (DEPLOY / "prometheus" / "alerts.yaml").read_text(encoding="utf-8")
    return asked + re.findall(r"^ +expr: (.*)$", rules, re.MULTILINE)


def test_rules_and_dashboard_ask_for_figures_that_the_server_has() -> None:
    with client_of(fake_pipeline()) as client:
        client.post(GENERATIONS, json={"n": 2})
        there = set(re.findall(r"^(\w+)", client.get("/metrics").text, re.MULTILINE))
        # Figures that begin with the first refusal.
        there |= {"ddm_rejected_total"}
    names = {name for text in expressions() for name in re.findall(r"\b(?:ddm|process)_\w+", text)}
    assert names - there == set()
