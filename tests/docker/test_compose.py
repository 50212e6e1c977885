"""The compose file against the Dockerfiles and, with check-jsonschema, its specification."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from vggt_deploy.doctor.abilities import abilities

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    text = (ROOT / "docker" / "compose.yaml").read_text()
    data: dict[str, Any] = yaml.safe_load(text)
    return data


def test_the_compose_file_is_valid(compose: dict[str, Any]) -> None:
    checker = pytest.importorskip(
        "check_jsonschema",
        reason="check-jsonschema carries the schema of the compose specification",
    )
    path = ROOT / "docker" / "compose.yaml"
    command = [sys.executable, "-m", checker.__name__, "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_services_build_the_targets_that_there_are(compose: dict[str, Any]) -> None:
    used: dict[str, set[str]] = {}
    for name, service in compose["services"].items():
        build = service["build"]
        path = (ROOT / "docker" / build["context"] / build["dockerfile"]).resolve()
        text = path.read_text()
        stages = set(re.findall(r"^FROM \S+ AS (\S+)$", text, re.MULTILINE))
        target = build.get("target")
        assert target in stages if target else not stages, name
        assert set(build["args"]) <= set(re.findall(r"^ARG (\w+)=", text, re.MULTILINE)), name
        used.setdefault(path.name, set()).add(target)
    assert used == {
        "Dockerfile": {None},
        "Dockerfile.edge": {"onnxruntime", "tensorrt", "tensorrt-rtx"},
        "Dockerfile.jetson": {"jetpack6", "jetpack7"},
    }


def test_services_are_confined_and_those_that_run_engines_have_no_network(
    compose: dict[str, Any],
) -> None:
    for name, service in compose["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert not service.get("privileged"), name
        if service["image"].startswith("vggt-edge"):
            assert (service["network_mode"], service["read_only"]) == ("none", True), name
        gpu = "deploy" in service or service.get("runtime") == "nvidia"
        assert gpu == ("cpu" not in service["profiles"]), name


def test_the_health_of_the_build_service_is_a_row_of_the_doctor(compose: dict[str, Any]) -> None:
    *command, names = compose["services"]["build"]["healthcheck"]["test"]
    assert command == ["CMD", "vggt-deploy", "doctor", "--require"]
    assert set(names.split(",")) <= {check.name for check in abilities([])}
