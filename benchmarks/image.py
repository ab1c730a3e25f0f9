"""The size of a release's image, compared with the image that MLflow builds for the same kind of model.

    python benchmarks/image.py            # the only model of the store; needs a Docker engine

MLflow's image is that of ``mlflow models build-docker --env-manager local``, its smallest one. MLflow's default also
installs compilers, pyenv and a JDK, and is not built here. Sizes are without the base image of each.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

TAG = "towline-benchmark-mlflow"


def run(*words: str, **options: Any) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True, **options).stdout


def size(image: str) -> int:
    return int(run("docker", "image", "inspect", image, "--format", "{{.Size}}"))


def ours() -> tuple[str, int]:
    towline = str(Path(sys.executable).with_name("towline"))
    (model,) = json.loads(run(towline, "models", "--json"))
    package = json.loads(run(towline, "package", f"{model['model']}@{model['version']}", "--image", "--json"))
    return str(package["image"]), int(package["size"])


def mlflows(folder: Path) -> tuple[str, int, int]:
    """Saves a boosted model with the packages that it needs, and builds MLflow's image of it."""
    from importlib.metadata import version

    import mlflow.sklearn
    from sklearn.ensemble import HistGradientBoostingRegressor

    frame = pd.DataFrame(np.random.default_rng(0).random((500, 8)), columns=list("abcdefgh"))
    fitted = HistGradientBoostingRegressor().fit(frame, frame.sum(axis=1))
    needs = [f"{name}=={version(name)}" for name in ("scikit-learn", "pandas", "numpy", "cloudpickle")]
    mlflow.sklearn.save_model(fitted, str(folder / "model"), serialization_format="cloudpickle", pip_requirements=needs)
    run(
        sys.executable, "-m", "mlflow", "models", "generate-dockerfile", "-m", str(folder / "model"),
        "-d", str(folder / "image"), "--env-manager", "local",
    )  # fmt: skip
    dockerfile = (folder / "image" / "Dockerfile").read_text("utf-8")
    base = dockerfile.split("FROM ")[1].split()[0]
    if subprocess.run(["docker", "image", "inspect", base], capture_output=True, check=False).returncode:
        same = "python:3.11-slim-bookworm"  # the patch release does not change what is added to it
        run("docker", "tag", same, base)
    run("docker", "build", "-q", "--no-cache", "-t", TAG, str(folder / "image"))
    return TAG, size(TAG), size(base)


def main() -> None:
    base = size("python:3.11-slim-bookworm")
    rows = []
    tag, whole = ours()
    rows.append((f"towline, {tag}", (whole - base) / 1e6, files(tag)))
    with tempfile.TemporaryDirectory() as folder:
        tag, whole, under = mlflows(Path(folder))
    rows.append(("mlflow models build-docker, env-manager local", (whole - under) / 1e6, files(tag)))
    print(f"{'image':<52}{'MB over base':>13}{'packages':>10}{'user':>13}")
    for name, megabytes, (packages, user) in rows:
        print(f"{name:<52}{megabytes:>13.0f}{packages:>10}{user:>13}")
    run("docker", "image", "rm", "-f", TAG)


def files(image: str) -> tuple[int, str]:
    """The number of Python packages in an image, and its user."""
    script = "import importlib.metadata as m; print(len({d.name for d in m.distributions()}))"
    packages = int(run("docker", "run", "--rm", "--entrypoint", "python", image, "-c", script).splitlines()[-1])
    user = run("docker", "image", "inspect", image, "--format", "{{.Config.User}}").strip()
    return packages, user or "root"


if __name__ == "__main__":
    main()
