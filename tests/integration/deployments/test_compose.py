"""docker-compose.yml without a Docker engine: its validity and the guarantees of the stack."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.json_schemas import check_file

REPOSITORY = Path(__file__).parents[3]
FILE = REPOSITORY / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text("utf-8"))["services"]
LONG_RUNNING = sorted(SERVICES.keys() - {"prepare", "backup"})


def test_the_file_is_valid_under_the_compose_specification(tmp_path: Path) -> None:
    """The specification's schema accepts the file, and refuses a misspelt key."""
    assert check_file(FILE, "vendor.compose-spec").code == 0
    spoilt = tmp_path / "docker-compose.yml"
    spoilt.write_text(FILE.read_text("utf-8").replace("read_only:", "readonly:"), "utf-8")
    assert check_file(spoilt, "vendor.compose-spec").code == 1


def test_every_secret_is_required() -> None:
    """Values that are empty in .env.example have no default; .env.example lists all variables of the stack."""
    lines = (REPOSITORY / ".env.example").read_text("utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line[:1].isupper())
    variables = dict(re.findall(r"\$\{([A-Z_]+)(:[?-])?", FILE.read_text("utf-8")))
    assert variables.keys() == example.keys()
    needed = {name for name, operator in variables.items() if operator == ":?"}
    assert {name for name, value in example.items() if not value} - needed == {"ALERT_WEBHOOK"}
    assert all("SECRET" in name or "PASSWORD" in name or "AUTH" in name for name in needed - {"TOWLINE_MODEL"})


@pytest.mark.parametrize("name", SERVICES)
def test_services_have_minimal_privileges(name: str) -> None:
    """No capabilities, no privileged mode, a memory limit, and no access to the engine of the host."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["mem_limit"]
    assert not service.get("privileged")
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ()))


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_long_running_services_are_restarted_and_have_health_checks(name: str) -> None:
    """A service is restarted unless a user stopped it; its health check is in the file or in its image."""
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or name in ("service-a", "service-b", "proxy", "grafana")


def test_only_the_api_is_open_to_other_machines() -> None:
    """All other ports are published on loopback, and the network of the databases is internal."""
    ports = {name: port for name, service in SERVICES.items() for port in service.get("ports", ())}
    assert {name for name, port in ports.items() if not port.startswith("127.0.0.1:")} == {"proxy"}
    networks = yaml.safe_load(FILE.read_text("utf-8"))["networks"]
    assert [name for name, network in networks.items() if not network.get("internal")] == ["published"]
    assert SERVICES["postgres"]["networks"] == ["stores"]
    assert "stores" not in SERVICES["proxy"]["networks"]
