"""The modules that a process loads for a task, in a new interpreter."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.paths import REPOSITORY
from tests.support.releases import make_house_table, train_regression
from tests.support.sample_store import MODEL, SampleStore


def test_the_service_loads_no_table_library() -> None:
    """The prediction log imports neither pandas nor pyarrow."""
    code = "import sys, towline.prediction_log.writer; print(*{name.partition('.')[0] for name in sys.modules})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"pandas", "pyarrow", "sklearn", "sqlalchemy"} & set(result.stdout.split())


def test_serving_a_compiled_model_imports_no_heavy_library(sample_store: SampleStore) -> None:
    """The start time and memory of a service depend on it."""
    code = (
        "import sys;"
        "from towline.serving.model_reloader import ModelReloader;"
        "from towline.serving.options import ServeOptions;"
        "from towline.config import Settings;"
        "served = ModelReloader(ServeOptions(sys.argv[1], Settings.from_environment()));"
        "served.open(); served.check_ledger();"
        "print(served.model.compiled, *sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, MODEL],
        env={"TOWLINE_STORE": str(sample_store.settings.store)},
        capture_output=True,
        text=True,
        check=True,
    )
    compiled, *modules = result.stdout.split()
    assert compiled == "True"
    assert not {"pandas", "sklearn", "scipy", "sqlalchemy", "pyarrow", "mlflow", "skops"} & set(modules)


def test_an_embedded_model_is_light(tmp_path: Path) -> None:
    """A prediction of a compiled release needs no pipeline, no web framework, no scikit-learn and no pandas."""
    code = (
        "import json, sys; from towline import load; model = load(sys.argv[1])\n"
        "print(float(model.predict(json.load(open(sys.argv[1] + '/probe.json'))['rows'][0])[0]))\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    )
    run = train_regression(tmp_path)
    release = run.settings.store / run.package().path
    result = subprocess.run([sys.executable, "-c", code, release], capture_output=True, text=True, check=True)
    answer, modules = result.stdout.splitlines()
    assert float(answer) == json.loads((release / "probe.json").read_bytes())["labels"][0]
    heavy = {
        "prefect", "mlflow", "great_expectations", "evidently", "starlette", "fastapi", "uvicorn", "sklearn", "scipy",
        "pandas", "pyarrow", "skops", "sqlalchemy", "matplotlib",
    }  # fmt: skip
    assert heavy & set(modules.split()) == set()


def test_importing_the_ledger_is_light() -> None:
    """`towline models` imports no library that it does not use."""
    code = "import sys, json, towline.registry.ledger; print(json.dumps(sorted(sys.modules)))"
    loaded = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert not {"sqlalchemy", "pandas", "numpy", "mlflow", "sklearn"} & set(loaded)


def test_importing_towline_is_light() -> None:
    """A program that embeds a model imports neither Prefect nor MLflow nor a web framework."""
    heavy = {"prefect", "mlflow", "great_expectations", "evidently", "fastapi", "pandas", "sklearn", "sqlalchemy"}
    code = "import sys, towline; towline.load; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert heavy & set(result.stdout.split()) == set()


def test_detection_imports_no_slow_library(sample_store: SampleStore, tmp_path: Path) -> None:
    """Neither Evidently nor pandas nor scikit-learn is imported."""
    path = tmp_path / "rows.parquet"
    make_house_table(200).drop(columns=["value", "sold"]).to_parquet(path)
    code = (
        "import sys; from pathlib import Path; from towline.config import DriftConfig\n"
        "from towline.data.schema.contract import Contract\n"
        "from towline.monitoring.drift.current_rows import read_table\n"
        "from towline.monitoring.drift.detector import detect\n"
        "contract = Contract.model_validate_json(Path(sys.argv[1], 'contract.json').read_bytes())\n"
        "print(detect(Path(sys.argv[1]), read_table(Path(sys.argv[2]), contract), DriftConfig()).state, *sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(sample_store.release(1)), str(path)],
        capture_output=True, text=True, check=True,
        cwd=REPOSITORY,
    )  # fmt: skip
    state, *modules = result.stdout.split()
    assert state == "ok"
    assert {"evidently", "pandas", "sklearn", "mlflow", "prefect", "matplotlib"} & set(modules) == set()


def test_evidently_is_not_imported_without_an_alarm(tmp_path: Path) -> None:
    """Monitoring modules do not import it, not even to catch up on missing reports."""
    code = (
        "import sys, pathlib, datetime; from towline.monitoring import journal;"
        "from towline.monitoring.reporting import evidently_report, plot_samples;"
        "from towline.monitoring.status import summary;"
        f"evidently_report.add_missing_windows("
        f"[], pathlib.Path({str(tmp_path)!r}), 'm', datetime.datetime.now(datetime.UTC));"
        "print('evidently' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_batch_scoring_needs_the_base_installation_only() -> None:
    """Its modules, with drift, load without the packages of the extras."""
    absent = ("orjson", "starlette", "prometheus_client", "prefect", "mlflow", "rich")
    hide = f"import sys; sys.modules.update(dict.fromkeys({absent}));"
    subprocess.run([sys.executable, "-c", f"{hide} import towline.batch.shard_scoring"], check=True)


def test_limits_of_threads_hold_in_a_process_that_has_not_loaded_openmp() -> None:
    """Otherwise the search for leaks of the first table takes a minute on busy cores instead of a second."""
    code = (
        "from threadpoolctl import threadpool_info;"
        "from towline.processes import thread_pools;"
        "limit = thread_pools().limit(limits=1, user_api='openmp');"
        "from sklearn.ensemble import HistGradientBoostingClassifier;"
        "print(*{pool['num_threads'] for pool in threadpool_info() if pool['user_api'] == 'openmp'})"
    )
    environment = {"OMP_NUM_THREADS": "3", "PATH": os.environ["PATH"]}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1"]
