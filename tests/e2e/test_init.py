"""A new project from the wheel: build, install, init, run, serve."""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.support.paths import REPOSITORY


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A virtual environment with the built wheel; its dependencies are those of this environment."""
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, environment = tmp_path / "wheels", tmp_path / "venv"
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, REPOSITORY]
    subprocess.run(build, check=True)
    venv.create(environment, with_pip=False)
    (wheel,) = wheels.glob("towline-*.whl")
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    packages = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    # appended after the environment's own packages; its .pth files, such as that of the editable towline, are not read
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return environment


def test_new_project_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    """In an empty folder without the repository, three commands turn a table into a served model."""
    project = tmp_path / "project"
    project.mkdir()
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"rooms": rng.integers(1, 8, 300), "heating": rng.choice(["gas", "oil"], 300)})
    table["price"] = 1000 * table["rooms"] + 500 * (table["heating"] == "gas") + rng.normal(0, 900, 300)
    table.insert(0, "listing_id", rng.permutation(300))
    table.to_csv(project / "houses.csv", index=False)
    hidden = ("TOWLINE_", "PYTHON", "PREFECT_", "MLFLOW_", "VIRTUAL_ENV")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
    environment["PATH"] = f"{installed / 'bin'}:{environment['PATH']}"
    towline = installed / "bin" / "towline"

    def run(*arguments: str) -> str:
        result = subprocess.run(
            [towline, *arguments], cwd=project, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    try:
        written = json.loads(run("init", "houses.csv", "--target", "price", "--yes", "--json"))
        assert written["config"] == str(project / "configs" / "houses.yaml")
        assert [item["value"] for item in written["assumptions"] if item["key"] == "data.drop"] == ["listing_id"]
        checks = {check["name"]: check for check in json.loads(run("doctor", "--json"))}
        assert str(installed) in checks["python"]["detail"]
        assert checks["project"]["state"] == "ok"
        outcome = json.loads(run("run", "configs/houses.yaml", "--json"))
        assert outcome["event"] == "promoted"
        serving = subprocess.Popen(
            [towline, "serve", "houses", "--port", "0", "--json"], cwd=project, env=environment, stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            assert serving.stdout is not None
            text = ""
            while not text.endswith("\n}\n"):
                line = serving.stdout.readline()
                assert line, "towline serve ended"
                text += line
            address = json.loads(text)["address"]
            body = json.dumps({"rows": [{"rooms": 4, "heating": "gas"}]}).encode()
            request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request, timeout=30) as answer:
                (prediction,) = json.loads(answer.read())["predictions"]
        finally:
            serving.terminate()
            serving.communicate(timeout=60)
        assert 3000 < float(prediction if isinstance(prediction, int | float) else prediction["prediction"]) < 6000
    finally:
        subprocess.run([towline, "ui", "--stop"], cwd=project, env=environment, capture_output=True, check=False)
        shutil.rmtree(installed)
