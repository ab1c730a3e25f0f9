"""A new project from the wheel: build, installation, init, run, serve."""

import json
import os
import shutil
import site
import subprocess
import sys
import sysconfig
import urllib.request
import venv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.support.paths import REPOSITORY
from tests.support.serve_process import read_startup


class NewProject:
    """An empty folder, and the towline command of an environment with the built wheel."""

    def __init__(self, path: Path, environment: Path) -> None:
        self.path, self.environment = path, environment
        self.towline = environment / "bin" / "towline"
        hidden = ("TOWLINE_", "PYTHON", "PREFECT_", "MLFLOW_", "VIRTUAL_ENV")
        self.variables = {key: value for key, value in os.environ.items() if not key.startswith(hidden)}
        self.variables["PATH"] = f"{environment / 'bin'}:{self.variables['PATH']}"

    def run(self, *arguments: str) -> str:
        result = subprocess.run(
            [self.towline, *arguments], cwd=self.path, env=self.variables, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def serve(self, model: str) -> subprocess.Popen[str]:
        command = [self.towline, "serve", model, "--port", "0", "--json"]
        return subprocess.Popen(command, cwd=self.path, env=self.variables, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A virtual environment with the built wheel; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    wheels, environment = folder / "wheels", folder / "venv"
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", wheels, REPOSITORY]
    subprocess.run(build, check=True)
    venv.create(environment, with_pip=False)
    (wheel,) = wheels.glob("towline-*.whl")
    python = environment / "bin" / "python"
    subprocess.run([*pip, "--python", python, "install", "--no-deps", wheel], check=True)
    packages = environment / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    # appended after the environment's own packages; its .pth files, such as that of the editable towline, are not read
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    yield environment
    shutil.rmtree(environment)


@pytest.fixture
def project(installed: Path, tmp_path: Path) -> Iterator[NewProject]:
    (tmp_path / "project").mkdir()
    project = NewProject(tmp_path / "project", installed)
    yield project
    command = [project.towline, "ui", "--stop"]
    subprocess.run(command, cwd=project.path, env=project.variables, capture_output=True, check=False)


def test_new_project_from_the_wheel(project: NewProject) -> None:
    """In an empty folder outside the repository, three commands train and serve a model of a table."""
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"rooms": rng.integers(1, 8, 300), "heating": rng.choice(["gas", "oil"], 300)})
    table["price"] = 1000 * table["rooms"] + 500 * (table["heating"] == "gas") + rng.normal(0, 900, 300)
    table.insert(0, "listing_id", rng.permutation(300))
    table.to_csv(project.path / "houses.csv", index=False)

    written = json.loads(project.run("init", "houses.csv", "--target", "price", "--yes", "--json"))
    assert written["config"] == str(project.path / "configs" / "houses.yaml")
    assert [item["value"] for item in written["assumptions"] if item["key"] == "data.drop"] == ["listing_id"]
    checks = {check["name"]: check for check in json.loads(project.run("doctor", "--json"))}
    assert str(project.environment) in checks["python"]["detail"]
    assert checks["project"]["state"] == "ok"
    outcome = json.loads(project.run("run", "configs/houses.yaml", "--json"))
    assert outcome["event"] == "promoted"
    serving = project.serve("houses")
    try:
        address = read_startup(serving)["address"]
        body = json.dumps({"rows": [{"rooms": 4, "heating": "gas"}]}).encode()
        request = urllib.request.Request(f"{address}/predict", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as response:
            (prediction,) = json.loads(response.read())["predictions"]
    finally:
        serving.terminate()
        serving.communicate(timeout=60)
    assert 3000 < float(prediction if isinstance(prediction, int | float) else prediction["prediction"]) < 6000


def test_own_code_in_a_new_project(project: NewProject, prefect: str) -> None:
    """A class and a function as estimators, a transformer, a metric, a check of the gate and an expectation."""
    project.variables["PREFECT_API_URL"] = f"{prefect}/api"
    hours = pd.read_parquet(REPOSITORY / "data" / "bike_hourly.parquet").head(1_400)
    hours.drop(columns=["casual", "registered"]).to_csv(project.path / "hours.csv", index=False)
    project.run("init", "hours.csv", "--target", "rentals", "--time", "datetime", "--yes")
    for module in (REPOSITORY / "examples").glob("my_*.py"):
        shutil.copy(module, project.path)
    file = project.path / "configs" / "hours.yaml"
    config = yaml.safe_load(file.read_text())
    config |= {
        "candidates": [{"estimator": "my_models.ClippedRidge"}, {"estimator": "my_models.nearest_hours"}],
        "prepare": {"transformer": "my_features.RushHour"},
        "cross_validation": {"folds": 2},
        "evaluation": {
            "custom": [{"function": "my_metrics.empty_stations", "higher_is_better": False}],
        },
        "gate": {"custom": [{"function": "my_metrics.largest_error", "params": {"bikes": 2_000}}]},
        "validation": {
            "expectations": [
                {"type": "expect_column_mean_to_be_between", "kwargs": {"column": "temp_c", "min_value": -20}}
            ]
        },
    }
    file.write_text(yaml.safe_dump(config))
    outcome = json.loads(project.run("run", "--json"))
    assert outcome["event"] == "promoted"
    assert outcome["metrics"]["empty_stations"]["value"] <= 1
    assert {check["name"]: check["outcome"] for check in outcome["verdict"]["checks"]}["custom largest_error"] == "pass"
    assert {row["name"] for row in outcome["candidates"]} >= {"ClippedRidge", "nearest_hours"}
    project.run("score", "hours.csv", "scored.csv", "--model", "hours")
    scored = pd.read_csv(project.path / "scored.csv")
    assert (scored["prediction"] >= 0).all()
    assert len(scored) == len(hours)
