"""A run record has the parameters, metrics, tags and files that a training run logs to MLflow.

MLflow compares versions by the parameters and metrics of their runs. So every run uses the same names; values that
differ between estimators are one JSON value.
"""

import importlib.metadata
import json
import math
import platform
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import yaml

from towline.config import PipelineConfig, format_duration
from towline.data.example_row import example_row
from towline.data.schema.contract import Contract
from towline.data.workspace import Workspace
from towline.formatting import escape_markdown
from towline.package_origin import installed_versions
from towline.provenance import Provenance
from towline.registry.mlflow import links
from towline.training import model_io
from towline.training.evaluation.holdout import Evaluation
from towline.training.final_fit import FittedModel
from towline.training.model_selection.cross_validation import CrossValidationResult
from towline.training.result import TrainingResult

if TYPE_CHECKING:
    from mlflow.entities import Dataset, LoggedModel
    from mlflow.types import Schema

_REQUIREMENTS = ("towline", "scikit-learn", "skops", "numpy", "pandas")
_SECTIONS = ("data", "validation", "split", "cross_validation", "evaluation", "gate")


def tags(work: Workspace, config: PipelineConfig, result: TrainingResult, provenance: Provenance) -> dict[str, str]:
    """Provenance of a run and of its candidates' runs."""
    values = {
        **provenance.model_dump(),
        "dataset": work.dataset.digest,
        "candidate": result.chosen.candidate,
        "seed": str(config.seed),
        "training_notes": "; ".join(result.notes)[:5000],
        "mlflow.source.name": "towline run",
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": provenance.git_commit,
        "mlflow.user": provenance.actor,
    }
    return {name: value for name, value in values.items() if value}


def version_tags(work: Workspace, result: TrainingResult, provenance: Provenance) -> dict[str, str]:
    """The tags of a version: few, since MLflow's list of versions shows all of them."""
    values = provenance.model_dump(include={"trigger", "as_of", "git_commit", "git_dirty"})
    origin = {name: value for name, value in values.items() if value}
    return {"candidate": result.chosen.candidate, "dataset": work.dataset.digest, **origin}


def params(work: Workspace, config: PipelineConfig, result: TrainingResult) -> dict[str, str]:
    """The parameters of a run: the fitted model, its data, and each setting of the config (``gate.latency_ms``)."""
    contract, chosen, fitted = work.contract(), result.chosen, result.model
    values = {
        "candidate": chosen.candidate,
        "estimator": chosen.estimator,
        "hyperparameters": chosen.params,
        "threshold": fitted.threshold,
        "calibration": fitted.calibration.method if fitted.calibration else None,
        "calibration_rows": fitted.calibration.rows if fitted.calibration else None,
        "search_trials": chosen.trials,
        "task": contract.task,
        "features": len(contract.feature_columns),
        **{f"lookup.{lookup.name}": lookup.digest for lookup in contract.lookups},
        "rows": work.dataset.rows,
        "train_rows": fitted.rows,
        "train_end": fitted.end,
        "window": format_duration(fitted.history.window),
        "half_life": format_duration(fitted.history.half_life) if fitted.history.half_life else None,
        "detrend": format_duration(fitted.history.detrend) if fitted.history.detrend else None,
        "refitted": fitted.refitted,
        "data_start": work.dataset.start,
        "data_end": work.dataset.end,
        "folds": config.cross_validation.folds,
        "seed": config.seed,
        "budget": format_duration(config.budget) if config.budget else "no limit",
        "candidates": [candidate.name for candidate in config.candidates],
    }
    settings = config.masked().model_dump(mode="json")
    settings["data"]["source"] = work.dataset.source
    values |= {f"{section}.{name}": value for section in _SECTIONS for name, value in settings[section].items()}
    return {name: _text(value) for name, value in values.items()}


def candidate(scores: CrossValidationResult) -> dict[str, str]:
    """The parameters of a candidate's run, each hyperparameter under its name."""
    hyperparameters = {f"params.{re.sub(r'[^0-9A-Za-z_-]', '_', name)}": value for name, value in scores.params.items()}
    values = {"candidate": scores.candidate, "estimator": scores.estimator, "trials": scores.trials, **hyperparameters}
    return {name[:250]: _text(value) for name, value in values.items()}


def cross_validation(scores: CrossValidationResult) -> dict[str, float]:
    """``<metric>_cv_mean`` and ``_sd`` over the folds."""
    over = {"mean": scores.mean, "sd": scores.sd}
    return {
        f"{name}_cv_{kind}": value for kind, by in over.items() for name, value in by.items() if math.isfinite(value)
    }


def metrics(result: TrainingResult) -> dict[str, float]:
    """Holdout metrics with the ends of their intervals, the baseline's, and the chosen candidate's cross-validation."""
    evaluation, values = result.evaluation, dict[str, float | None]()
    for name, interval in evaluation.metrics.items():
        values |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
    values |= {f"{name}_baseline": value for name, value in evaluation.baseline.items()}
    if evaluation.calibration:
        values |= {f"{name}_uncalibrated": value for name, value in evaluation.calibration.before.items()}
        values |= {f"{name}_calibrated": value for name, value in evaluation.calibration.after.items()}
    values |= {"holdout_rows": float(evaluation.rows), **cross_validation(result.chosen)}
    return {name: value for name, value in values.items() if value is not None and math.isfinite(value)}


def experiment_tags(evaluation: Evaluation) -> dict[str, str]:
    """The tags of an experiment: MLflow shows the metrics of its runs instead of traces of language models."""
    first = evaluation.primary
    names = [first, f"{first}_baseline", f"{first}_cv_mean", *(name for name in evaluation.metrics if name != first)]
    columns = [f"metrics.`{name}`" for name in names[:6]] + ["params.`rows`", "tags.`verdict`"]
    return links.KIND | {f"mlflow.sharedViewState.{links.VIEW}": json.dumps({"selectedColumns": columns})}


def describe(work: Workspace, result: TrainingResult) -> str:
    """The version's page in Markdown; lists of versions show its first words as they are."""
    data, fitted, evaluation = work.dataset, result.model, result.evaluation
    best = evaluation.metrics[evaluation.primary]
    covered = f", {fitted.start} to {fitted.end}" if fitted.start else ""
    lines = [
        f"{fitted.candidate}: {evaluation.primary} {_number(best.value)}",
        "",
        f"Fitted on {fitted.rows:,} of {data.rows:,} rows{covered}."
        + (f" The metrics are of a model without the rows after {fitted.measured_end}." if fitted.measured_end else ""),
        "",
        f"Data: {escape_markdown(data.source)}, sha256 `{data.digest}`  ",
        f"Model file: sha256 `{fitted.sha256}`",
        "",
        f"| holdout ({evaluation.rows:,} rows) | value | 95 % interval | baseline |",
        "|---|---|---|---|",
    ]
    for name, metric in evaluation.metrics.items():
        label = f"**{name}**" if name == evaluation.primary else name
        interval = f"{_number(metric.low)} to {_number(metric.high)}"
        lines.append(f"| {label} | {_number(metric.value)} | {interval} | {_number(evaluation.baseline.get(name))} |")
    if result.notes:
        lines += ["", *(f"- {escape_markdown(note)}" for note in result.notes)]
    return "\n".join(lines)


def table(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Records as a table artifact of MLflow, with numbers rounded to five digits."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[_round(row.get(name)) for name in columns] for row in rows]}


def dataset(work: Workspace, config: PipelineConfig) -> "Dataset":
    """The dataset with towline's digest of all rows; MLflow's own digest covers the first 10,000 rows."""
    from mlflow.entities import Dataset

    data = work.dataset
    return Dataset(
        name=config.name,
        digest=data.digest[:32],
        source_type="local",
        source=json.dumps({"uri": data.source, "snapshot": data.path, "sha256": data.digest}),
        schema=json.dumps({"mlflow_colspec": _schema(work.contract()).to_dict()}),
        profile=json.dumps({"num_rows": data.rows, "num_elements": data.rows * len(data.columns)}),
    )


def write_artifacts(folder: Path, work: Workspace, config: PipelineConfig, result: TrainingResult) -> None:
    """The files of a run: plots, data docs, config, environment, and its records as JSON and as tables."""
    evaluation, validation = result.evaluation, result.validation
    if work.file("plots").is_dir():
        shutil.copytree(work.file("plots"), folder / "plots")
    for name in (validation.docs, Contract.FILE):
        if work.file(name).is_file():
            shutil.copy(work.file(name), folder)
    # from folder names: reading the metadata takes half a second
    installed = {info.stem.replace("-", "==", 1) for path in sys.path for info in Path(path).glob("*.dist-info")}
    slices = [
        {"column": s.column, "value": s.value, "rows": s.rows, evaluation.primary: s.metric.value, "low": s.metric.low,
         "high": s.metric.high, "baseline": s.baseline}
        for s in evaluation.slices
    ]  # fmt: skip
    candidates = [
        {"candidate": scores.candidate, **cross_validation(scores), "seconds": scores.seconds, "failed": scores.failed}
        for scores in result.candidates
    ]
    contents = {
        "config.yaml": yaml.safe_dump(config.masked().model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        "environment.lock": "\n".join(sorted(installed)) + "\n",
        "validation.json": validation.model_dump_json(indent=1),
        "evaluation.json": evaluation.model_dump_json(indent=1),
        "slices.json": json.dumps(table(slices), ensure_ascii=False),
        "candidates.json": json.dumps(table(candidates), ensure_ascii=False),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")


def write_model(folder: Path, logged: "LoggedModel", run_id: str, work: Workspace, fitted: FittedModel) -> None:
    """Writes an MLflow model directory around the stored model, as ``mlflow.sklearn.save_model`` does for skops.

    That function would load, store and load the model again.
    """
    import sklearn
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, Schema

    contract = work.contract()
    file = folder / "model.skops"
    shutil.copy(work.file(fitted.file), file)
    outputs = Schema([ColSpec(_label_type(contract))])
    model = Model(
        artifact_path=logged.artifact_location,
        run_id=run_id,
        model_uuid=logged.model_id,
        model_id=logged.model_id,
        signature=ModelSignature(_schema(contract), outputs),
    )
    model.saved_input_example_info = {
        "artifact_path": "input_example.json", "type": "dataframe", "pandas_orient": "split",
        "serving_input_path": "serving_input_example.json",
    }  # fmt: skip
    pyfunc.add_to_model(
        model,
        loader_module="mlflow.sklearn",
        model_path="model.skops",
        predict_fn="predict",
        python_env="python_env.yaml",
    )
    model.add_flavor(
        "sklearn",
        pickled_model="model.skops",
        sklearn_version=sklearn.__version__,
        serialization_format="skops",
        code=None,
        skops_trusted_types=list(fitted.untrusted_types),
    )
    # MLflow's model is the pipeline behind the reader, so its inputs include the features of the config
    example = contract.features(pd.DataFrame([example_row(contract)]))[[c.name for c in contract.feature_columns]]
    example_json = example.to_json(orient="split", index=False, date_format="iso")
    libraries = {name: importlib.metadata.version(name) for name in _REQUIREMENTS} | installed_versions(
        model_io.packages_of(fitted.untrusted_types)
    )
    requirements = [f"{name}=={version}" for name, version in libraries.items()]
    environment = {
        "python": platform.python_version(),
        "build_dependencies": [],
        "dependencies": ["-r requirements.txt"],
    }
    (folder / "input_example.json").write_text(example_json)
    (folder / "serving_input_example.json").write_text(f'{{"dataframe_split": {example_json}}}')
    (folder / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (folder / "python_env.yaml").write_text(yaml.safe_dump(environment, sort_keys=False))
    model.model_size_bytes = file.stat().st_size
    model.save(folder / "MLmodel")


def _schema(contract: Contract) -> "Schema":
    """The signature's inputs. Integers are doubles, because MLflow's integers cannot be null."""
    from mlflow.types import ColSpec, Schema

    types = {"numeric": "double", "boolean": "double", "datetime": "datetime"}
    columns = contract.feature_columns
    return Schema(
        [ColSpec(types.get(column.kind, "string"), column.name, required=not column.nullable) for column in columns]
    )


def _label_type(contract: Contract) -> str:
    kinds = {bool: "boolean", int: "long", float: "double", str: "string"}
    return kinds[type(contract.classes[0])] if contract.classes else "double"


def _text(value: object) -> str:
    if value is None or value in ((), [], {}):
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)[:6000]


def _round(value: object) -> object:
    return float(f"{value:.5g}") if isinstance(value, float) and math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
