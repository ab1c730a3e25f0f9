"""Tracking records training runs, models and versions in MLflow; the ledger decides which version serves.

It uses only MLflow's client. A version and the run key that identifies it are written in one call, so a
run that is killed leaves either no version, and starts again, or a complete one, which is used. The tag
``towline.version`` holds the ledger's number. MLflow's own numbers cannot be chosen: they equal the ledger's unless
versions were deleted in MLflow.
"""

import json
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from towline import files
from towline.config import Frozen, PipelineConfig, Settings
from towline.data.workspace import Workspace
from towline.provenance import Provenance
from towline.registry.mlflow import links, run_record
from towline.registry.mlflow.client import RUN_KEY, VERSION, connect, create_version, ensure_experiment
from towline.training.model_selection.cross_validation import CrossValidationResult
from towline.training.result import TrainingResult

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


class RegisteredVersion(Frozen):
    """A registered version, by the ledger's number; ``link`` is its page within the MLflow UI."""

    name: str
    version: int
    run_id: str
    experiment_id: str
    link: str


def prepare(settings: Settings) -> None:
    """Creates MLflow's store if it is missing. This takes seconds: call it early, in parallel to other work.

    Raises:
        TransientError: the store is locked, down, full or cannot be written.
    """
    with connect(settings):
        pass


def register(
    settings: Settings,
    work: Workspace,
    config: PipelineConfig,
    number: int,
    result: TrainingResult,
    provenance: Provenance,
) -> RegisteredVersion:
    """Records a run, a nested run for each candidate, the model, and a version of it; once for each run key.

    Runs have the status KILLED until they are complete, so that a killed run does not stay RUNNING. Its remains are
    deleted when the same run key is registered again.

    Args:
        settings: where MLflow is.
        work: the run's folder.
        config: of the run.
        number: the version that the ledger gave the run.
        result: of training.
        provenance: of the run; each of its fields becomes a tag.

    Raises:
        TransientError: the store is locked, down, full or cannot be written.
    """
    run_key = provenance.run_key
    with connect(settings) as client, files.exclusive_lock(work.file("register.lock")):
        experiment_id = ensure_experiment(client, settings, config.name, config.description)
        present = client.get_experiment(experiment_id).tags.items()
        for key, value in run_record.experiment_tags(result.evaluation).items() - present:
            client.set_experiment_tag(experiment_id, key, value)
        for known in client.search_model_versions(f"name = '{config.name}' and tags.`{RUN_KEY}` = '{run_key}'"):
            client.set_model_version_tag(config.name, known.version, VERSION, str(number))
            return _version(config.name, number, known.version, known.run_id, experiment_id)
        _remove_unfinished(client, experiment_id, run_key)

        tags = run_record.tags(work, config, result, provenance) | {RUN_KEY: run_key, VERSION: str(number)}
        began = int((time.time() - sum(scores.seconds for scores in result.candidates)) * 1000)
        run = _create_run(client, experiment_id, f"{result.chosen.candidate} {run_key[:8]}", tags, began)
        for scores in result.candidates:
            began = _log_candidate(client, run, scores, tags, began, chosen=scores == result.chosen)
        model_id = _log_model(client, run, work, config.name, result, run_key)
        _log_run(client, run, model_id, work, config, result)
        client.set_terminated(run.info.run_id)
        mlflow_number = create_version(
            client,
            config.name,
            number,
            source=f"models:/{model_id}",
            run_id=run.info.run_id,
            model_id=model_id,
            tags={RUN_KEY: run_key, **run_record.version_tags(work, result, provenance)},
            description=run_record.describe(work, result),
        )
        return _version(config.name, number, mlflow_number, run.info.run_id, experiment_id)


def close(
    settings: Settings,
    version: RegisteredVersion,
    release: Path,
    verdict: str,
    costs: Mapping[str, Mapping[str, float]],
) -> None:
    """Adds release, verdict and costs to a registered run; may be repeated. The mirror updates the version.

    Args:
        settings: where MLflow is.
        version: the run and its version.
        release: its release directory; copied to the run's artifacts under ``release/``.
        verdict: the gate's outcome, `pass` or `refuse`; a tag of the run.
        costs: step → ``wall_s``, ``cpu_s``, ``peak_mb``; the totals (of the memory, the maximum) become metrics.

    Raises:
        TransientError: the store is locked, down, full or cannot be written.
    """
    with connect(settings) as client:
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        measured = {name: [cost.get(name, 0.0) for cost in costs.values()] for name in ("wall_s", "cpu_s", "peak_mb")}
        totals = {name: max([0.0, *values]) if name == "peak_mb" else sum(values) for name, values in measured.items()}
        tags = {"verdict": verdict, "release": release.name}
        client.log_artifacts(version.run_id, str(release), "release")
        rows = [{"step": step, **cost} for step, cost in costs.items()]
        client.log_dict(version.run_id, run_record.table(rows), "costs.json")
        client.log_batch(
            version.run_id,
            metrics=[Metric(name, float(value), now, 0) for name, value in totals.items()],
            tags=[RunTag(name, value) for name, value in tags.items()],
        )


def _version(name: str, version: int, mlflow_number: str | int, run_id: str, experiment_id: str) -> RegisteredVersion:
    link = links.version(name, int(mlflow_number))
    return RegisteredVersion(name=name, version=version, run_id=run_id, experiment_id=experiment_id, link=link)


def _remove_unfinished(client: "MlflowClient", experiment_id: str, key: str) -> None:
    for run in client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{key}'"):
        for output in run.outputs.model_outputs if run.outputs else ():
            client.delete_logged_model(output.model_id)
        client.delete_run(run.info.run_id)


def _create_run(client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str], start_ms: int) -> "Run":
    run = client.create_run(experiment_id, start_ms, dict(tags), name)
    client.update_run(run.info.run_id, "KILLED")
    return run


def _log_candidate(
    client: "MlflowClient",
    parent: "Run",
    scores: CrossValidationResult,
    tags: Mapping[str, str],
    start_ms: int,
    *,
    chosen: bool,
) -> int:
    """Logs a nested run; returns its end time in ms. Folds are steps of a metric, so that MLflow's chart shows them."""
    from mlflow.entities import Metric, Param

    candidate_tags = {
        "mlflow.parentRunId": parent.info.run_id,
        "estimator": scores.estimator,
        "chosen": str(chosen).lower(),
        "failed": scores.failed,
    }
    run = _create_run(client, parent.info.experiment_id, scores.candidate, {**tags, **candidate_tags}, start_ms)
    end_ms = start_ms + int(scores.seconds * 1000)
    folds = [(f"{name}_cv", value, step) for step, fold in enumerate(scores.folds) for name, value in fold.items()]
    summary = [(name, value, 0) for name, value in run_record.cross_validation(scores).items()]
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, end_ms, step) for name, value, step in folds + summary],
        params=[Param(name, value) for name, value in run_record.candidate(scores).items()],
    )
    client.set_terminated(run.info.run_id, "FAILED" if scores.failed else "FINISHED", end_ms)
    return end_ms


def _log_model(
    client: "MlflowClient", run: "Run", work: Workspace, name: str, result: TrainingResult, run_key: str
) -> str:
    """Logs the model file of the workspace, so that MLflow, the workspace and the release hold the same bytes."""
    from mlflow.entities import LoggedModelOutput

    logged = client.create_logged_model(
        run.info.experiment_id, name, run.info.run_id, {RUN_KEY: run_key}, run_record.candidate(result.chosen)
    )
    with tempfile.TemporaryDirectory() as folder:
        run_record.write_model(Path(folder), logged, run.info.run_id, work, result.model)
        client.log_model_artifacts(logged.model_id, folder)
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(run.info.run_id, [LoggedModelOutput(logged.model_id, 0)])
    return str(logged.model_id)


def _log_run(
    client: "MlflowClient",
    run: "Run",
    model_id: str,
    work: Workspace,
    config: PipelineConfig,
    result: TrainingResult,
) -> None:
    from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag

    run_id, now = run.info.run_id, int(time.time() * 1000)
    dataset = run_record.dataset(work, config)
    params = [Param(name, value) for name, value in run_record.params(work, config, result).items()]
    metrics = [
        Metric(name, value, now, 0, model_id, dataset.name, dataset.digest, run_id)
        for name, value in run_record.metrics(result).items()
    ]
    tables = [{"path": f"{name}.json", "type": "table"} for name in ("candidates", "slices", "costs")]
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    tags = {
        "mlflow.loggedArtifacts": json.dumps(tables),
        "mlflow.note.content": run_record.describe(work, result),
    }
    client.log_batch(run_id, metrics, params, [RunTag(name, value) for name, value in tags.items()])
    with tempfile.TemporaryDirectory() as folder:
        run_record.write_artifacts(Path(folder), work, config, result)
        client.log_artifacts(run_id, folder)
