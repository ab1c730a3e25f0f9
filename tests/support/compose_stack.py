"""The stack of docker-compose.yml, started from a copy of the repository with new secrets."""

import base64
import json
import os
import secrets
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.support.waiting import free_port

REPOSITORY = Path(__file__).parents[2]
NAME = "towline-test"
MARKER = "plantedsecret"  # start of each secret
TOWLINE = str(Path(sys.executable).with_name("towline"))
PORTS = ("SERVICE", "PREFECT", "MLFLOW", "STATUS", "PROMETHEUS", "ALERTMANAGER", "GRAFANA")


class ComposeStack:
    """A stack in one folder.

    Attributes:
        folder: a copy of the repository.
        env: the variables of its ``.env``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        names = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout.split("\n")
        for name in filter(None, names):
            if (REPOSITORY / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(REPOSITORY / name, folder / name)
        self.env: dict[str, str] = {}
        for line in (folder / ".env.example").read_text("utf-8").splitlines():
            name, equals, value = line.partition("=")
            if equals and not name.startswith("#"):
                self.env[name] = value
        empty = [name for name, value in self.env.items() if not value and name != "ALERT_WEBHOOK"]
        self.secrets = {name: f"{MARKER}{secrets.token_hex(8)}" for name in empty}
        self.env |= self.secrets | {"PREFECT_AUTH_STRING": f"ann:{self.secrets['PREFECT_AUTH_STRING']}"}
        self.env |= {f"{name}_PORT": str(free_port()) for name in PORTS}

    def write(self) -> None:
        lines = [f"{name}={value}" for name, value in self.env.items()]
        (self.folder / ".env").write_text("\n".join(lines) + "\n", "utf-8")

    def compose(self, *arguments: str, check: bool = True, timeout: float = 1200) -> subprocess.CompletedProcess[str]:
        """Runs ``docker compose`` if it is installed, else ``docker-compose``."""
        has_plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
        command = [*(("docker", "compose") if has_plugin else ("docker-compose",)), "-p", NAME, *arguments]
        result = subprocess.run(
            command,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=bare_environment(),
        )
        if check and result.returncode:
            raise AssertionError(
                f"{' '.join(arguments)}: {result.returncode}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
            )
        return result

    def towline(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Runs a command on the host, in the folder."""
        return subprocess.run(
            [TOWLINE, *arguments],
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
            env=bare_environment(),
        )

    def container(self, service: str) -> str:
        """The id of the running or ended container of a service; Compose lists only running ones."""
        command = ["docker", "ps", "-aq"]
        for name, value in {"project": NAME, "service": service, "oneoff": "False"}.items():
            command += ["-f", f"label=com.docker.compose.{name}={value}"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]

    def state(self, service: str) -> str:
        """``healthy``, ``starting``, ``unhealthy``, or the container's state if it has no health check."""
        output = subprocess.run(
            ["docker", "inspect", self.container(service)], capture_output=True, text=True, check=True
        ).stdout
        state = json.loads(output)[0]["State"]
        return str(state.get("Health", {}).get("Status") or state["Status"])

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.env[f'{name}_PORT']}"

    def send_request(self, name: str, path: str, body: Any = None, *, auth: str = "", key: str = "") -> tuple[int, Any]:
        """Sends a request; returns the status and the JSON or text."""
        request = urllib.request.Request(self.url(name) + path, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        if auth:
            request.add_header("Authorization", "Basic " + base64.b64encode(auth.encode()).decode())
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        try:
            with urllib.request.urlopen(request, timeout=20) as response:
                status, text = response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read().decode("utf-8", "replace")
        try:
            return status, json.loads(text)
        except ValueError:
            return status, text

    def mlflow(self, path: str, body: Any = None) -> Any:
        return self.send_request("MLFLOW", path, body, auth=f"admin:{self.env['MLFLOW_ADMIN_PASSWORD']}")[1]

    def prefect(self, path: str, body: Any = None) -> Any:
        return self.send_request("PREFECT", path, body, auth=self.env["PREFECT_AUTH_STRING"])[1]

    def query(self, promql: str) -> list[Any]:
        """The current result of a Prometheus query."""
        from urllib.parse import quote

        return list(self.send_request("PROMETHEUS", f"/api/v1/query?query={quote(promql)}")[1]["data"]["result"])


def bare_environment() -> dict[str, str]:
    removed = ("TOWLINE_", "PREFECT_", "MLFLOW_", "DO_NOT_TRACK")
    return {name: value for name, value in os.environ.items() if not name.startswith(removed)}
