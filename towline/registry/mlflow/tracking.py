"""Runs and versions in MLflow: what was tried, on which data, with which result. The ledger decides what serves.

MLflow is spoken to through its client alone. A version and the run key that identifies it are written in one call, so a
run that is killed leaves either no version, and is begun anew, or a whole one, which is found again. Versions have the
ledger's numbers, in the tag ``towline.version``. MLflow's own numbers cannot be chosen: they are the same as long as
MLflow has not counted further than the ledger.
"""

import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from towline import files
from towline.config import Frozen, PipelineConfig, Settings
from towline.config.passwords import mask_passwords
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace
from towline.errors import TowlineError, TransientError
from towline.registry.mlflow import links, run_record
from towline.registry.mlflow.mirror import RUN_KEY, VERSION, sqlite_file
from towline.training.cross_validation import CrossValidationResult
from towline.training.evaluation.holdout import Evaluation
from towline.training.final_fit import FittedModel

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

_PLACEHOLDER = "towline.placeholder"

_WAIT = 5  # seconds, for a lock on the store or an answer of the server


class Version(Frozen):
    """A registered version, by the ledger's number; ``link`` is its page within the MLflow UI."""

    name: str
    version: int
    run_id: str
    experiment_id: str
    link: str


def prepare(settings: Settings) -> None:
    """Makes the store where there is none, which takes MLflow seconds: call it early, beside other work.

    Raises:
        TransientError: the store is locked, away, full or cannot be written.
    """
    with connect(settings):
        pass


def register(
    settings: Settings,
    work: Workspace,
    config: PipelineConfig,
    number: int,
    scores: Sequence[CrossValidationResult],
    chosen: CrossValidationResult,
    fitted: FittedModel,
    evaluation: Evaluation,
    validation: Validation,
    facts: Mapping[str, str],
) -> Version:
    """Records a run, a nested run for each candidate, the model, and a version of it; once for each ``work.key``.

    The runs count as KILLED until they are complete, so that one that is killed does not stay RUNNING for ever; what
    such a run left behind is deleted when its key comes again.

    Args:
        settings: where MLflow is.
        work: the run's folder.
        config: what the run does.
        number: the version that the ledger gave the run.
        scores: the cross-validation of every candidate.
        chosen: the candidate that was fitted.
        fitted: the model.
        evaluation: its holdout metrics.
        validation: what the table was checked for.
        facts: provenance: ``git_commit``, ``git_dirty``, ``trigger`` and others; each becomes a tag.

    Raises:
        TransientError: the store is locked, away, full or cannot be written.
    """
    with connect(settings) as client, files.exclusive_lock(work.file("register.lock")):
        experiment_id = home(client, settings, config.name, config.description)
        present = client.get_experiment(experiment_id).tags.items()
        for key, value in run_record.experiment_tags(evaluation).items() - present:
            client.set_experiment_tag(experiment_id, key, value)
        for known in client.search_model_versions(f"name = '{config.name}' and tags.`{RUN_KEY}` = '{work.key}'"):
            client.set_model_version_tag(config.name, known.version, VERSION, str(number))
            return _version(config.name, number, known.version, known.run_id, experiment_id)
        _remove_unfinished(client, experiment_id, work.key)

        tags = run_record.tags(work, config, chosen, facts) | {RUN_KEY: work.key, VERSION: str(number)}
        began = int((time.time() - sum(one.seconds for one in scores)) * 1000)
        run = _begin(client, experiment_id, f"{chosen.candidate} {work.key[:8]}", tags, began)
        for one in scores:
            began = _log_candidate(client, run, one, tags, began, chosen=one.candidate == chosen.candidate)
        model_id = _log_model(client, run, work, config.name, chosen, fitted)
        _log_run(client, run, model_id, work, config, scores, chosen, fitted, evaluation, validation)
        client.set_terminated(run.info.run_id)
        own = create_version(
            client,
            config.name,
            number,
            source=f"models:/{model_id}",
            run_id=run.info.run_id,
            model_id=model_id,
            tags={RUN_KEY: work.key, **run_record.version_tags(work, chosen, facts)},
            description=run_record.describe(work, chosen, fitted, evaluation),
        )
        return _version(config.name, number, own, run.info.run_id, experiment_id)


def close(
    settings: Settings,
    version: Version,
    release: Path,
    verdict: str,
    costs: Mapping[str, Mapping[str, float]],
) -> None:
    """Adds to a registered run what was known only later; may be repeated. Its version is the mirror's matter.

    Args:
        settings: where MLflow is.
        version: the run and its version.
        release: its release directory; copied to the run's artifacts under ``release/``.
        verdict: the gate's outcome, `pass` or `refuse`; a tag of the run.
        costs: step → ``wall_s``, ``cpu_s``, ``peak_mb``; the totals (of the memory, the maximum) become metrics.

    Raises:
        TransientError: the store is locked, away, full or cannot be written.
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


def create_version(client: "MlflowClient", name: str, number: int, *, tags: Mapping[str, str], **given: Any) -> str:
    """Creates a version and returns MLflow's number of it, which is ``number`` unless MLflow has counted further.

    Where MLflow has counted less far, placeholders are counted and deleted again.
    """
    present = client.search_model_versions(f"name = '{name}'")
    for left in [one for one in present if _PLACEHOLDER in one.tags]:  # by a run that was killed here
        client.delete_model_version(name, left.version)
    last, placeholders = max([0, *(int(one.version) for one in present)]), []
    while last < number - 1:
        placeholder = client.create_model_version(name, _PLACEHOLDER, tags={_PLACEHOLDER: str(number)})
        placeholders.append(placeholder.version)
        last = int(placeholder.version)
    created = client.create_model_version(name, tags={**tags, VERSION: str(number)}, **given)
    for version in placeholders:
        client.delete_model_version(name, version)
    return str(created.version)


def _version(name: str, version: int, own: str | int, run_id: str, experiment_id: str) -> Version:
    link = links.version(name, int(own))
    return Version(name=name, version=version, run_id=run_id, experiment_id=experiment_id, link=link)


def home(client: "MlflowClient", settings: Settings, name: str, description: str | None) -> str:
    """Makes the experiment and the registered model where they are missing; returns the experiment's id.

    A description of None leaves the model's as it is.
    """
    with files.exclusive_lock(settings.layout.mlflow_lock):
        if not client.search_registered_models(f"name = '{name}'"):
            client.create_registered_model(name, description=description)
        elif description is not None and client.get_registered_model(name).description != description:
            client.update_registered_model(name, description)
        found = client.get_experiment_by_name(name)
        if found is None:
            place = str(settings.layout.mlflow_artifacts) if sqlite_file(settings) else None
            return str(client.create_experiment(name, artifact_location=place))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return str(found.experiment_id)


def _remove_unfinished(client: "MlflowClient", experiment_id: str, key: str) -> None:
    for run in client.search_runs([experiment_id], f"tags.`{RUN_KEY}` = '{key}'"):
        for output in run.outputs.model_outputs if run.outputs else ():
            client.delete_logged_model(output.model_id)
        client.delete_run(run.info.run_id)


def _begin(client: "MlflowClient", experiment_id: str, name: str, tags: Mapping[str, str], began: int) -> "Run":
    run = client.create_run(experiment_id, began, dict(tags), name)
    client.update_run(run.info.run_id, "KILLED")
    return run


def _log_candidate(
    client: "MlflowClient",
    parent: "Run",
    scores: CrossValidationResult,
    tags: Mapping[str, str],
    began: int,
    *,
    chosen: bool,
) -> int:
    """One nested run; returns when it ended, in ms. Its fold metrics are steps, so that the chart shows the folds."""
    from mlflow.entities import Metric, Param

    own = {
        "mlflow.parentRunId": parent.info.run_id,
        "estimator": scores.estimator,
        "chosen": str(chosen).lower(),
        "failed": scores.failed,
    }
    run = _begin(client, parent.info.experiment_id, scores.candidate, {**tags, **own}, began)
    ended = began + int(scores.seconds * 1000)
    folds = [(f"{name}_cv", value, step) for step, fold in enumerate(scores.folds) for name, value in fold.items()]
    summary = [(name, value, 0) for name, value in run_record.cross_validation(scores).items()]
    client.log_batch(
        run.info.run_id,
        metrics=[Metric(name, value, ended, step) for name, value, step in folds + summary],
        params=[Param(name, value) for name, value in run_record.candidate(scores).items()],
    )
    client.set_terminated(run.info.run_id, "FAILED" if scores.failed else "FINISHED", ended)
    return ended


def _log_model(
    client: "MlflowClient", run: "Run", work: Workspace, name: str, chosen: CrossValidationResult, fitted: FittedModel
) -> str:
    """Logs the workspace's model file itself, so that MLflow, the workspace and the release hold the same bytes."""
    from mlflow.entities import LoggedModelOutput

    logged = client.create_logged_model(
        run.info.experiment_id, name, run.info.run_id, {RUN_KEY: work.key}, run_record.candidate(chosen)
    )
    with tempfile.TemporaryDirectory() as folder:
        run_record.write_model(Path(folder), logged, run.info.run_id, work, fitted)
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
    scores: Sequence[CrossValidationResult],
    chosen: CrossValidationResult,
    fitted: FittedModel,
    evaluation: Evaluation,
    validation: Validation,
) -> None:
    from mlflow.entities import DatasetInput, InputTag, Metric, Param, RunTag

    run_id, now = run.info.run_id, int(time.time() * 1000)
    dataset = run_record.dataset(work, config)
    params = [Param(name, value) for name, value in run_record.params(work, config, chosen, fitted).items()]
    metrics = [
        Metric(name, value, now, 0, model_id, dataset.name, dataset.digest, run_id)
        for name, value in run_record.metrics(chosen, evaluation).items()
    ]
    tables = [{"path": f"{name}.json", "type": "table"} for name in ("candidates", "slices", "costs")]
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])])
    tags = {
        "mlflow.loggedArtifacts": json.dumps(tables),
        "mlflow.note.content": run_record.describe(work, chosen, fitted, evaluation),
    }
    client.log_batch(run_id, metrics, params, [RunTag(name, value) for name, value in tags.items()])
    with tempfile.TemporaryDirectory() as folder:
        run_record.write_artifacts(Path(folder), work, config, scores, evaluation, validation)
        client.log_artifacts(run_id, folder)


@contextmanager
def connect(settings: Settings) -> Iterator["MlflowClient"]:
    """A client of a store that is there and whole; whatever goes wrong with it comes out as TransientError."""
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(_WAIT),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    for name, value in quiet.items():
        os.environ.setdefault(name, value)
    file = sqlite_file(settings)
    if file:
        _probe(file if file.exists() else _beginning(file))
    import sqlalchemy.exc
    from mlflow import MlflowClient, set_tracking_uri
    from mlflow.exceptions import MlflowException

    loggers = [logging.getLogger(name) for name in ("mlflow", "alembic", "urllib3")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), files.disk(settings.store):
            warnings.simplefilter("ignore")
            set_tracking_uri(settings.tracking_uri)  # a version's model is looked up there, not in the client's store
            if file and not file.exists():
                with files.exclusive_lock(settings.layout.mlflow_lock):
                    _make(file)
            client = MlflowClient(settings.tracking_uri, settings.tracking_uri)
            yield client
    except TowlineError:
        raise
    except (MlflowException, sqlalchemy.exc.SQLAlchemyError) as error:
        raise _unavailable(settings.tracking_uri, str(error)) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _beginning(file: Path) -> Path:
    return file.with_name(f".{file.name}.new")


def _make(file: Path) -> None:
    """Makes an SQLite store beside its place and puts it there whole: half made, it could not be mended."""
    from mlflow import MlflowClient

    if file.exists():
        return
    new = _beginning(file)
    new.unlink(missing_ok=True)
    client = MlflowClient(f"sqlite:///{new}", f"sqlite:///{new}")
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    with suppress(FileExistsError):  # an MLflow server was quicker
        file.hardlink_to(new)
    new.unlink()


def _probe(file: Path) -> None:
    """Asks SQLite for the write lock: MLflow itself would try for minutes before it gives up."""
    import sqlite3

    with files.disk(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with closing(sqlite3.connect(file, timeout=_WAIT, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("PRAGMA schema_version")
    except sqlite3.Error as error:
        raise _unavailable(f"sqlite:///{file}", str(error)) from error


def _unavailable(uri: str, said: str) -> TransientError:
    remedy = (
        "check that the MLflow server at TOWLINE_TRACKING_URI runs and lets you in, then run the same command again"
    )
    if uri.startswith("sqlite:"):
        remedy = "make the store's file and folder writable, or point TOWLINE_STORE at one that is"
        if "locked" in said:
            remedy = "another process holds the store: wait for it to end, then run the same command again"
        elif "not a database" in said or "malformed" in said:
            remedy = "the file is damaged: restore it from a backup, or move it away to begin a new store"
    what = next((line.strip() for line in said.splitlines() if line.strip()), "no answer")[:200]
    return TransientError(
        f"the MLflow store cannot be used: {mask_passwords(what)}", where=mask_passwords(uri), remedy=remedy
    )
