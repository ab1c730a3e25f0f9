"""The release answers in a process that has nothing but the runtime, or it does not pass.

Run as a module it is that process: it imports, waits on stdin for one job, and ends with it or with its parent.
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
KEPT = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX", "TMPDIR")
ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
SINGLES = 50
_ONE_BY_ONE = "rows sent one by one as JSON are answered otherwise than together (docs/troubleshooting.md)"
TIMEOUT = 300.0


class SmokeTestResult(Frozen):
    """What the packaged release did in a process of its own; ``latency_ms`` is the median of single rows."""

    identical: bool
    rows: int
    latency_ms: float
    seconds: float
    peak_mb: float
    modules: tuple[str, ...]
    detail: str = ""


def run_smoke_test(work: "Workspace", package: "Release") -> SmokeTestResult:
    """Has a fresh process answer the holdout rows from the release and compares; see ``finish``."""
    with start_tester() as process:
        return finish_smoke_test(process, work, package)


def start_tester() -> subprocess.Popen[str]:
    """Starts the process, which imports and waits; leaving ``with`` or dying ends it, for then its stdin does."""
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
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
    process: subprocess.Popen[str], work: "Workspace", package: "Release", timeout: float = TIMEOUT
) -> SmokeTestResult:
    """Sends the release and the raw holdout rows to a started process and compares its answers.

    Labels must be equal, and floats the same to the last bit, or to 1e-12 where the compiled scorer answers.
    ``seconds`` is opening the release and scoring the holdout, ``latency_ms`` the median of single-row predictions from
    a dict, ``peak_mb`` the process's peak memory (MiB). A process that does not answer is a failed smoke test with the
    cause as its detail, never an error.
    """
    rows = work.subset("holdout").rows[[column.name for column in work.contract().feature_columns]]
    rows.to_parquet(work.file("smoke-rows.parquet"), index=False)
    job = {
        "release": str(StoreLayout(work.store).release(package.path)),
        "rows": str(work.file("smoke-rows.parquet")),
        "expected": str(work.file(package.predictions_file)),
        "digest": package.digest,
    }
    try:
        answer, errors = process.communicate(json.dumps(job) + "\n", timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        return _failed(len(rows), f"no answer within {timeout:.0f} s")
    if process.returncode:
        last = errors.strip().splitlines()[-1:] or ["no message"]
        return _failed(len(rows), f"the process ended with exit code {process.returncode}: {last[0]}")
    return SmokeTestResult.model_validate_json(answer.strip().splitlines()[-1])


def _failed(rows: int, detail: str) -> SmokeTestResult:
    return SmokeTestResult(
        identical=False, rows=rows, latency_ms=0.0, seconds=0.0, peak_mb=0.0, modules=(), detail=detail
    )


class ImportBlocker(importlib.abc.MetaPathFinder):
    """Refuses what is not part of the runtime, and remembers who asked for it."""

    def __init__(self) -> None:
        self.asked: set[str] = set()

    def find_spec(self, fullname: str, *_: object) -> None:
        if fullname.partition(".")[0] in FORBIDDEN:
            self.asked.add(fullname)
            raise ModuleNotFoundError(f"{fullname} is not part of the runtime", name=fullname)


def _run_job() -> None:
    """Imports, waits for a job on stdin, and prints the findings."""
    blocker = ImportBlocker()
    sys.meta_path.insert(0, blocker)
    import pandas as pd
    import pyarrow.parquet  # noqa: F401 - imported while there is time to
    import skops.io  # noqa: F401 - as above

    from towline.inference.predictor import open_release
    from towline.inference.scorer import TOLERANCE

    line = sys.stdin.readline()
    if not line:
        return
    job = json.loads(line)
    begin = time.perf_counter()
    model = open_release(Path(job["release"]), digest=job["digest"])
    answers = model.predict_frame(model.to_features(pd.read_parquet(job["rows"])))
    seconds = time.perf_counter() - begin
    latency, differences = _predict_single_rows(model)
    tolerance = TOLERANCE if model.compiled else 0.0
    differences = _differences(Path(job["expected"]), answers, model.contract, tolerance) + differences
    result = {
        "identical": not differences,
        "rows": len(answers.labels),
        "latency_ms": latency,
        "seconds": seconds,
        "peak_mb": _peak_mb(),
        "modules": sorted(blocker.asked),
        "detail": "; ".join(differences) or f"{len(answers.labels):,} rows answered identically",
    }
    print(json.dumps(result))


def _differences(path: Path, answers: "Predictions", contract: "Contract", tolerance: float) -> list[str]:
    """Where the answers differ from those of the training process by more than a compiled scorer may."""
    import numpy as np

    from towline.training.evaluation.predictions import encode_labels

    labels = encode_labels(answers.labels, contract.classes) if contract.classes else answers.labels
    differences = _other_types(answers.labels, contract)
    given = {"labels": labels, "probabilities": answers.probabilities}
    with np.load(path, allow_pickle=False) as saved:
        expected = {name: saved[name] if name in saved.files else None for name in given}
    for name, ours in given.items():
        theirs = expected[name]
        if ours is None or theirs is None or ours.shape != theirs.shape:
            if ours is not theirs:
                differences.append(f"{name} have another shape")
        else:
            classes = ours.dtype.kind == "i"
            apart = ours != theirs if classes else np.abs(ours - theirs) / np.maximum(1.0, np.abs(theirs))
            off = (apart > tolerance).reshape(len(ours), -1).any(axis=1)
            if off.any():
                by = "" if classes else f" by up to {apart.max():.3g}"
                differences.append(f"{name} differ in {int(off.sum()):,} of {len(ours):,} rows{by}")
    return differences


def _other_types(labels: "np.ndarray", contract: "Contract") -> list[str]:
    """Whether labels have another type than the contract's classes: to Python 1 and 1.0 are equal to True."""
    others = {type(label) for label in labels} - {type(label) for label in contract.classes}
    if not contract.classes or not others:
        return []
    names = ", ".join(sorted(one.__name__ for one in others))
    return [f"labels have the type {names}, the classes {type(contract.classes[0]).__name__}"]


def _predict_single_rows(model: "Model") -> tuple[float, list[str]]:
    """Median milliseconds of a prediction for one row as JSON gives it, and whether the answers are the same so."""
    import numpy as np

    probe = json.loads((model.directory / "probe.json").read_bytes())
    times, labels = [], []
    for row in itertools.islice(itertools.cycle(probe["rows"]), SINGLES):
        begin = time.perf_counter()
        labels.append(model.predict(row)[0])
        times.append(1000 * (time.perf_counter() - begin))
    expected = list(itertools.islice(itertools.cycle(probe["labels"]), SINGLES))
    # a linear model's sum over one row and over many may differ in the last bit
    if model.contract.classes:
        same = [(type(one), one) for one in labels] == [(type(one), one) for one in expected]
    else:
        same = bool(np.allclose(labels, expected, rtol=1e-12, atol=1e-12))
    return statistics.median(times), [] if same else [_ONE_BY_ONE]


def _peak_mb() -> float:
    """Peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss would begin with the peak of the process that started this one
        high = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return float(high.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes where there is no /proc


if __name__ == "__main__":
    try:
        _run_job()
    except TowlineError as refused:
        sys.exit(refused.what)
