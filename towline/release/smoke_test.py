"""The smoke test of a release: a process with only the runtime must give the predictions of the training process.

``python -m towline.release.smoke_test`` is that process. It imports the runtime, waits on stdin for one job, and ends
after the job or when its parent ends.
"""

import importlib.abc
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from towline.config import Frozen
from towline.errors import TowlineError
from towline.store import StoreLayout

if TYPE_CHECKING:
    import numpy as np

    from towline.data.schema.contract import Contract
    from towline.data.workspace import Workspace
    from towline.inference.predictor import Model
    from towline.release.packaging import Release
    from towline.training.evaluation.predictions import Predictions

FORBIDDEN = frozenset({
    "alembic", "docker", "evidently", "fastapi", "flask", "great_expectations", "matplotlib", "mlflow", "optuna",
    "prefect", "sqlalchemy",
})  # fmt: skip
ENVIRONMENT = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
    "TMPDIR",
)
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SINGLE_ROWS = 50  # predictions of a single row that are timed
TIMEOUT_S = 300.0
_SINGLE_ROWS_DIFFER = "single rows sent as JSON get other predictions than in a batch (docs/troubleshooting.md)"


class SmokeTestResult(Frozen):
    """The result of a smoke test.

    Attributes:
        identical: whether all predictions agree.
        rows: number of holdout rows.
        latency_ms: median time of a prediction for a single row, given as a dict.
        seconds: time to open the release and score the holdout.
        peak_mb: peak memory of the process, in MiB.
        modules: forbidden modules that the release tried to import.
        detail: the differences, or a summary.
    """

    identical: bool
    rows: int
    latency_ms: float
    seconds: float
    peak_mb: float
    modules: tuple[str, ...]
    detail: str = ""


def start_tester() -> subprocess.Popen[str]:
    """Starts the process, which imports and waits. It ends when its stdin closes: after ``with`` or with its parent."""
    environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
    environment |= dict.fromkeys(ONE_THREAD, "1")
    environment["PYTHONPATH"] = os.pathsep.join(str(Path(entry).resolve()) for entry in sys.path if entry)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "towline.release.smoke_test"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tempfile.gettempdir(),
        env=environment,
    )


def finish_smoke_test(
    process: subprocess.Popen[str], work: "Workspace", package: "Release", timeout: float = TIMEOUT_S
) -> SmokeTestResult:
    """Sends the release and the raw holdout rows to a started process, which compares its predictions.

    Labels must be equal. Numbers must be equal to the last bit, or within 1e-12 with a compiled scorer. A process
    without a result is a failed smoke test with the cause as its detail, not an error.
    """
    rows = work.subset("holdout").rows[[column.name for column in work.contract().input_columns]]
    rows.to_parquet(work.file("smoke-rows.parquet"), index=False)
    job = {
        "release": str(StoreLayout(work.store).release(package.path)),
        "rows": str(work.file("smoke-rows.parquet")),
        "expected": str(work.file(package.predictions_file)),
        "digest": package.digest,
    }
    try:
        output, errors = process.communicate(json.dumps(job) + "\n", timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        return _failed(len(rows), f"no result within {timeout:.0f} s")
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or ["no message"]
        return _failed(len(rows), f"the process ended with exit code {process.returncode}: {last[0]}")
    return SmokeTestResult.model_validate_json(output.strip().splitlines()[-1])


def _failed(rows: int, detail: str) -> SmokeTestResult:
    return SmokeTestResult(
        identical=False, rows=rows, latency_ms=0.0, seconds=0.0, peak_mb=0.0, modules=(), detail=detail
    )


class ImportBlocker(importlib.abc.MetaPathFinder):
    """Refuses imports of modules that are not part of the runtime; ``refused`` holds their names."""

    def __init__(self) -> None:
        self.refused: set[str] = set()

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname.partition(".")[0] in FORBIDDEN:
            self.refused.add(fullname)
            raise ModuleNotFoundError(f"{fullname} is not part of the runtime", name=fullname)


def _run_job() -> None:
    """Imports the runtime, waits for a job on stdin, and prints the result as JSON."""
    blocker = ImportBlocker()
    sys.meta_path.insert(0, blocker)
    import pandas as pd
    import pyarrow.parquet  # noqa: F401 - imported before the job, which is timed

    from towline.inference.compiled.codec import PLAN_FILE
    from towline.inference.predictor import open_release
    from towline.inference.scorer import TOLERANCE

    line = sys.stdin.readline()
    if not line:
        return
    job = json.loads(line)
    if not (Path(job["release"]) / PLAN_FILE).exists():  # a compiled model needs neither skops nor scikit-learn
        import skops.io  # noqa: F401 - as above
    started = time.perf_counter()
    model = open_release(Path(job["release"]), digest=job["digest"])
    predictions = model.predict_frame(model.to_features(pd.read_parquet(job["rows"])))
    seconds = time.perf_counter() - started
    latency, differences = _predict_single_rows(model)
    # a matrix product may differ in the last bit between processes
    differences = _differences(Path(job["expected"]), predictions, model.contract, TOLERANCE) + differences
    result = {
        "identical": not differences,
        "rows": len(predictions.labels),
        "latency_ms": latency,
        "seconds": seconds,
        "peak_mb": _peak_mb(),
        "modules": sorted(blocker.refused),
        "detail": "; ".join(differences) or f"{len(predictions.labels):,} rows with identical predictions",
    }
    print(json.dumps(result))


def _differences(path: Path, predictions: "Predictions", contract: "Contract", tolerance: float) -> list[str]:
    """Differences from the predictions of the training process that are larger than the tolerance."""
    import numpy as np

    from towline.training.evaluation.predictions import encode_labels

    labels = encode_labels(predictions.labels, contract.classes) if contract.classes else predictions.labels
    differences = _type_difference(predictions.labels, contract)
    values = {"labels": labels, "probabilities": predictions.probabilities}
    with np.load(path, allow_pickle=False) as file:
        expected_values = {name: file[name] if name in file.files else None for name in values}
    for name, actual in values.items():
        expected = expected_values[name]
        if actual is None or expected is None or actual.shape != expected.shape:
            if actual is not expected:
                differences.append(f"{name} have another shape")
        else:
            classes = actual.dtype.kind == "i"
            error = actual != expected if classes else np.abs(actual - expected) / np.maximum(1.0, np.abs(expected))
            wrong = ~((error <= tolerance) | (actual == expected)).reshape(len(actual), -1).all(axis=1)  # also NaN
            if wrong.any():
                by = "" if classes else f" by up to {error.max():.3g}"
                differences.append(f"{name} differ in {int(wrong.sum()):,} of {len(actual):,} rows{by}")
    return differences


def _type_difference(labels: "np.ndarray", contract: "Contract") -> list[str]:
    """Labels of another type than the contract's classes: in Python 1 and 1.0 are equal to True."""
    others = {type(label) for label in labels} - {type(label) for label in contract.classes}
    if not contract.classes or not others:
        return []
    names = ", ".join(sorted(kind.__name__ for kind in others))
    return [f"labels have the type {names}, the classes {type(contract.classes[0]).__name__}"]


def _predict_single_rows(model: "Model") -> tuple[float, list[str]]:
    """The median time in ms of a prediction for a single row from JSON, and the differences of these predictions."""
    import numpy as np

    probe = json.loads((model.directory / "probe.json").read_bytes())
    times, labels = [], []
    for row in itertools.islice(itertools.cycle(probe["rows"]), SINGLE_ROWS):
        started = time.perf_counter()
        labels.append(model.predict(row)[0])
        times.append(1000 * (time.perf_counter() - started))
    expected = list(itertools.islice(itertools.cycle(probe["labels"]), SINGLE_ROWS))
    # a linear model's sum over one row and over many may differ in the last bit
    if model.contract.classes:
        same = labels == expected and [*map(type, labels)] == [*map(type, expected)]
    else:
        same = bool(np.allclose(labels, expected, rtol=1e-12, atol=1e-12))
    return statistics.median(times), [] if same else [_SINGLE_ROWS_DIFFER]


def _peak_mb() -> float:
    """Peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would include the peak of the parent process
        high = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(high.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes where there is no /proc


if __name__ == "__main__":
    try:
        _run_job()
    except TowlineError as error:
        sys.exit(error.what)
