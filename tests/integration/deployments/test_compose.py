"""docker-compose.yml without an engine: what Compose takes, and what the stack guarantees."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.json_schemas import check_file

REPOSITORY = Path(__file__).parents[3]
FILE = REPOSITORY / "docker-compose.yml"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text("utf-8"))["services"]
LASTING = sorted(SERVICES.keys() - {"prepare", "backup"})


def test_it_is_what_the_compose_specification_says(tmp_path: Path) -> None:
    """The file passes the specification's schema, and one with a misspelt key does not."""
    assert check_file(FILE, "vendor.compose-spec").code == 0
    spoilt = tmp_path / "docker-compose.yml"
    spoilt.write_text(FILE.read_text("utf-8").replace("read_only:", "readonly:"), "utf-8")
    assert check_file(spoilt, "vendor.compose-spec").code == 1


def test_every_secret_must_be_given() -> None:
    """What .env.example leaves empty has no default in the stack, and everything the stack asks for is in it."""
    lines = (REPOSITORY / ".env.example").read_text("utf-8").splitlines()
    example = dict(line.split("=", 1) for line in lines if line[:1].isupper())
    variables = dict(re.findall(r"\$\{([A-Z_]+)(:[?-])?", FILE.read_text("utf-8")))
    assert variables.keys() == example.keys()
    needed = {name for name, how in variables.items() if how == ":?"}
    assert {name for name, value in example.items() if not value} - needed == {"ALERT_WEBHOOK"}
    assert all("SECRET" in name or "PASSWORD" in name or "AUTH" in name for name in needed - {"TOWLINE_MODEL"})


@pytest.mark.parametrize("name", SERVICES)
def test_no_part_may_more_than_it_needs(name: str) -> None:
    """No rights but those named, a limit of memory, nothing mounted from the host's engine."""
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["mem_limit"]
    assert not service.get("privileged")
    assert not any("docker.sock" in str(volume) for volume in service.get("volumes", ()))


@pytest.mark.parametrize("name", LASTING)
def test_what_lasts_is_restarted_and_looked_at(name: str) -> None:
    """Restarted unless it was stopped; its health is asked for, in the file or by its image."""
    service = SERVICES[name]
    assert service["restart"] == "unless-stopped"
    assert "healthcheck" in service or name in ("service-a", "service-b", "proxy", "grafana")


def test_only_the_api_is_open_to_other_machines() -> None:
    """Every other port is published on loopback, and the databases' network leads nowhere."""
    ports = {name: port for name, service in SERVICES.items() for port in service.get("ports", ())}
    assert {name for name, port in ports.items() if not port.startswith("127.0.0.1:")} == {"proxy"}
    networks = yaml.safe_load(FILE.read_text("utf-8"))["networks"]
    assert [name for name, network in networks.items() if not network.get("internal")] == ["desk"]
    assert SERVICES["postgres"]["networks"] == ["stores"]
    assert "stores" not in SERVICES["proxy"]["networks"]
