"""The programs of Prometheus: installed ones, or those in the images of the Compose stack."""

import functools
import os
import secrets
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.support.paths import REPOSITORY

PROMETHEUS = REPOSITORY / "deployments" / "prometheus"
ALERTMANAGER = REPOSITORY / "deployments" / "alertmanager"
DASHBOARDS = REPOSITORY / "deployments" / "grafana" / "dashboards"
_SERVICE = {"prometheus": "prometheus", "promtool": "prometheus", "amtool": "alertmanager"}


def prometheus_command(tool: str, arguments: Sequence[object], *folders: Path, name: str = "") -> list[str]:
    """The command of a tool with access to the repository, these folders and loopback; else skips the test."""
    if shutil.which(tool):
        return [tool, *map(str, arguments)]
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())
    image = compose["services"][_SERVICE[tool]]["image"]
    if not _image_exists(image):
        pytest.skip(f"neither {tool} nor the image {image} is available")
    mounts = [word for folder in (REPOSITORY, *folders) for word in ("-v", f"{folder}:{folder}")]
    user = ["--user", f"{os.getuid()}:{os.getgid()}", "--workdir", str(Path.cwd())]
    container_options = ["--name", name or f"towline-test-{secrets.token_hex(4)}", "--network", "host"]
    entry = [] if tool == _SERVICE[tool] else ["--entrypoint", tool]
    return ["docker", "run", "--rm", *container_options, *user, *mounts, *entry, image, *map(str, arguments)]


def run_prometheus_tool(
    tool: str, *arguments: object, folders: Sequence[Path] = ()
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        prometheus_command(tool, arguments, *folders), capture_output=True, text=True, timeout=180, check=False
    )


@functools.cache
def _image_exists(image: str) -> bool:
    if not shutil.which("docker"):
        return False
    result = subprocess.run(["docker", "image", "inspect", image], capture_output=True, timeout=60, check=False)
    return result.returncode == 0
