"""The Python API: one function for each command of the CLI that trains, promotes, scores or monitors a model.

Example:
    >>> import towline
    >>> outcome = towline.run("configs/bike_demand.yaml")  # doctest: +SKIP
    >>> towline.load("bike-demand").predict(rows)  # doctest: +SKIP

All functions work on the store of the project in the working folder; ``TOWLINE_PROJECT`` and ``TOWLINE_STORE`` name
another one. Steps of a run are logged to the standard logger ``towline.steps``.
"""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from towline.config import Frozen, PipelineConfig, Settings, build_config, locating_errors, read_config
from towline.errors import ConfigError
from towline.html.notebook import render_document, render_fields

if TYPE_CHECKING:
    from towline.backtesting.results import BacktestResult, PolicyName
    from towline.batch.batch_summary import BatchResult
    from towline.batch.runner import Progress
    from towline.inference.predictor import Model
    from towline.manifest import Manifest
    from towline.monitoring.policy import MonitoringRun
    from towline.orchestration.flow_runner import FlowName, FlowResult
    from towline.preflight import PreflightResult
    from towline.project.initialization import InitResult
    from towline.promotion.outcome import Outcome
    from towline.registry.ledger import Entry, Ledger
    from towline.registry.listing import ModelList

#: a config: the path of its YAML, a mapping with the same keys, or the object itself
Config = str | os.PathLike[str] | Mapping[str, Any] | PipelineConfig


class ChampionChange(Frozen):
    """The result of a promotion or a rollback.

    Attributes:
        model: its name.
        version: the champion now.
        previous: the champion before.
        changed: False if this version was the champion already.
        event: promoted or rolled_back.
        time: of the ledger's row (UTC, ISO 8601).
        reason: the text in the ledger.
        note: a message if MLflow does not show the change yet.
        row: the complete row of the ledger.
    """

    model: str
    version: int
    previous: int | None
    changed: bool
    event: str
    time: str
    reason: str
    note: str = ""
    row: dict[str, Any]

    def _repr_html_(self) -> str:
        return render_fields(self.model_dump(exclude={"row"}))


@dataclass(frozen=True, repr=False)
class VersionDetails:
    """A version: its manifest, its rows in the ledger and its model card.

    Attributes:
        manifest: data, hyperparameters, metrics, versions of the libraries.
        history: rows of the ledger, newest first.
        directory: the release.
    """

    manifest: "Manifest"
    history: "tuple[Entry, ...]"
    directory: Path

    @property
    def card(self) -> str:
        """The model card as one HTML document, plots included."""
        return (self.directory / "card.html").read_text(encoding="utf-8")

    def __repr__(self) -> str:
        return f"VersionDetails({self.manifest.name}@{self.manifest.version})"

    def _repr_html_(self) -> str:
        return render_document(self.card)


def run(
    config: Config,
    *,
    data: Any = None,
    as_of: datetime | None = None,
    overrides: Sequence[str] = (),
    force: bool = False,
    profile: str | None = None,
) -> "Outcome":
    """Trains, evaluates and, if the gate passes, promotes a model.

    If a run is interrupted, call it again: it resumes from the last completed step. A run that is already finished
    returns its outcome again.

    Args:
        config: path of a YAML file, mapping or PipelineConfig.
        data: a pandas, polars or Arrow table instead of ``data.source``; it is stored under the digest of its content.
        as_of: leave out rows after this time (UTC if it has no zone).
        overrides: ``key=value`` texts for keys of the YAML file, for example ``gate.max.mae=50``.
        force: run again even if an identical run has finished.
        profile: name of a profile: a worker runs the flow there. Default: this process.

    Returns:
        The outcome: version, metrics, verdict, promoted or refused. A notebook shows it as tables.

    Raises:
        ConfigError: the config cannot be used.
        DataError: the table cannot be read.
        DataValidationError: the table violates its contract or an expectation.
        FitError: an estimator cannot be built or fitted.
        TransientError: a store or a server is down; call again.

    Example:
        >>> outcome = towline.run("configs/bike_demand.yaml", overrides=["gate.max.mae=50"])  # doctest: +SKIP
        >>> outcome.event  # doctest: +SKIP
        'promoted'
    """
    settings = Settings.from_environment()
    pipeline = _pipeline(config, overrides, data, settings)
    parameters = {"config": pipeline, "as_of": as_of, "force": force}
    with locating_errors(config, overrides):
        return cast("Outcome", run_flow(settings, "training", parameters, profile).value)


def init(
    data: str | os.PathLike[str],
    target: str,
    *,
    name: str | None = None,
    time: str | None = None,
    query: str | None = None,
    force: bool = False,
) -> "InitResult":
    """Proposes a config for a table and writes it; in a folder without a project, the files of one too.

    Args:
        data: a CSV, Parquet or JSON file, a folder or glob pattern of them, or the URL of a database.
        target: the column to predict.
        name: of the pipeline and the model; default: the name of the file.
        time: the column with the time of each row; "": no column; default: it is detected.
        query: of the database.
        force: replace a config of the same name.

    Returns:
        The paths and each decision with its reason.

    Raises:
        ConfigError: there is no such column, or a config of this name exists.
        DataError: the table cannot be read.
    """
    from towline.project.initialization import TableReader, write_config

    settings = Settings.from_environment()
    with _private_files(settings):
        reader = TableReader(os.fspath(data), query, settings)
        try:
            column = reader.find_column(target, "target")
            return write_config(reader.propose(column, name, time), settings, force=force)
        finally:
            reader.close()


def validate(
    config: Config, *, data: Any = None, as_of: datetime | None = None, overrides: Sequence[str] = ()
) -> "PreflightResult":
    """Checks a config and its table without training.

    Args:
        config: path of a YAML file, mapping or PipelineConfig.
        data: a table instead of ``data.source``, as in ``run``.
        as_of: leave out rows after this time.
        overrides: ``key=value`` texts for keys of the YAML file.

    Returns:
        The rules with their results, the contract (kind and role of each column) and the path of the report.

    Raises:
        ConfigError: the config cannot be used.
        DataError: the table cannot be read.
        DataValidationError: the table violates its contract or an expectation.
    """
    from towline import extras

    extras.require("towline validate", "pipeline")
    from towline.preflight import run_preflight

    settings = Settings.from_environment()
    with _private_files(settings), locating_errors(config, overrides):
        return run_preflight(settings, _pipeline(config, overrides, data, settings), as_of)


def models(name: str | None = None) -> "ModelList":
    """Lists the models of the store, or the versions of one model.

    Args:
        name: a model; None: one row a model, its champion or its newest version.

    Raises:
        ConfigError: there is no such model.
        ReleaseError: the ledger was changed or lost.
    """
    from towline.registry.listing import list_models

    return list_models(*_stores(), name)


def show(version: str) -> VersionDetails:
    """Returns a version with its manifest, ledger rows and model card, after checking every digest of its release.

    Args:
        version: ``NAME`` (the champion), ``NAME@3`` or, in a store with one model, ``3``.

    Raises:
        ConfigError: there is no such version, or its run is not finished.
        ReleaseError: the release differs from its manifest.
    """
    from towline.manifest import verify_release
    from towline.registry.selection import require_release, select_version

    settings, ledger = _stores()
    entry = require_release(select_version(settings, ledger, version))
    directory = settings.layout.release(entry.release)
    history = tuple(row for row in ledger.history(entry.model) if row.version == entry.version)
    return VersionDetails(verify_release(directory), history, directory)


def promote(version: str, *, reason: str) -> ChampionChange:
    """Makes a version that passed its gate the champion.

    Args:
        version: ``NAME@3``.
        reason: stored in the ledger.

    Raises:
        ConfigError: there is no such version.
        PromotionRejectedError: it did not pass its gate, or another promotion came first.
        ReleaseError: its release differs from the judged one.
    """
    from towline.registry.ledger import actor
    from towline.registry.selection import check_judged_release, select_version

    settings, ledger = _stores()
    with _private_files(settings):
        judged = select_version(settings, ledger, version, numbered=True)
        champion = ledger.champion(judged.model)
        if champion is None or champion.version != judged.version:
            check_judged_release(settings, judged)
        expected = champion.version if champion else None
        entry = ledger.promote_again(judged.model, judged.version, expected, actor(), reason)
        return _champion_change(settings, entry, changed=champion is None or entry.seq != champion.seq)


def rollback(name: str | None = None, *, reason: str = "rolled back by hand") -> ChampionChange:
    """Makes the previous champion the champion again.

    Args:
        name: a model; None: the only one.
        reason: stored in the ledger.

    Raises:
        ConfigError: there is no such model.
        PromotionRejectedError: there is no previous champion.
        ReleaseError: its release differs from the judged one.
    """
    from towline.registry.ledger import actor
    from towline.registry.selection import check_judged_release, only_model, require_model

    settings, ledger = _stores()
    with _private_files(settings):
        model = require_model(settings, ledger, name) if name else only_model(settings, ledger)
        check_judged_release(settings, ledger.rollback_target(model))
        return _champion_change(settings, ledger.rollback(model, actor(), reason), changed=True)


def score(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    separator: str | None = None,
    prefix: str = "",
    safe_csv: bool = False,
    trusted: Sequence[str] = (),
    keep: Sequence[str] | None = None,
    columns: Sequence[str] | None = None,
    bad_rows: Literal["quarantine", "stop"] = "quarantine",
    partition_by: str | None = None,
    workers: int = 1,
    engine: Literal["processes", "dask", "ray", "prefect"] = "processes",
    scheduler: str | None = None,
    profile: str | None = None,
    overwrite: bool = False,
    query: str | None = None,
    show: "Callable[[Progress], None] | None" = None,
) -> "BatchResult":
    """Writes the rows of files with their predictions.

    The output appears when it is complete. A repeated call resumes an interrupted one, without scoring finished shards.

    Args:
        source: a file, folder or pattern of CSV, JSON lines (also .gz, .zst) or Parquet; its URL; or a ``URL#TABLE``.
        output: CSV, Parquet or JSON lines by its name, else a folder of Parquet files; also a URL or ``URL#TABLE``.
        model: ``NAME``, ``NAME@3`` or the directory of a release; None: the only model's champion.
        separator: of a CSV; None: it is detected.
        prefix: of the names of the added columns.
        safe_csv: put ' before text that a spreadsheet would run as a formula.
        trusted: packages whose types may be in a release that is given by its directory.
        keep: columns of the input that are copied; None: all.
        columns: of prediction, probability_CLASS, model and version those that are added; None: all.
        bad_rows: write bad rows to OUT.quarantine.csv, or stop at the first one.
        partition_by: column by which an output folder is partitioned.
        workers: number of processes (more than one need an ``if __name__ == "__main__"`` in a script), or of runs.
        engine: processes of this machine, dask or ray (extras of the same names), or prefect: a pool's workers.
        scheduler: address of a Dask or Ray cluster; None: ``workers`` processes on this machine.
        profile: name of the profile with the Prefect server; None: the server that PREFECT_API_URL names.
        overwrite: replace an output of another input, version or options.
        query: one SELECT on the database whose URL is the source.
        show: receives the progress.

    Returns:
        The counts, the digests, the drift of the rows, and the columns with values that the training rows did not have.

    Raises:
        ConfigError: there is no such model, an option does not fit, or the output exists.
        DataError: the files cannot be read or do not have the model's columns.
        ReleaseError: the release differs from its manifest.
        TransientError: the disk is full, a worker process ended, or the cluster or the Prefect server does not answer.
    """
    from towline.batch.addresses import parse_source
    from towline.batch.addresses import score as score_job
    from towline.batch.job_options import BatchOptions, BatchRequest
    from towline.inference.predictor import open_release
    from towline.orchestration.flow_runner import open_pool_engine
    from towline.registry.ledger import actor
    from towline.registry.selection import find_release, only_model

    recorded = find_release(os.fspath(model) if model else only_model(*_stores()))
    loaded = open_release(recorded.directory, trusted, recorded.digest)
    options = BatchOptions(
        separator=separator, prefix=prefix, safe_csv=safe_csv, bad_rows=bad_rows, partition_by=partition_by,
        keep=None if keep is None else tuple(keep), columns=None if columns is None else tuple(columns),
    )  # fmt: skip
    settings = Settings.from_environment()
    chosen = open_pool_engine(settings, loaded.name, profile) if engine == "prefect" else engine
    request = partial(
        BatchRequest, options=options, trusted=tuple(trusted), workers=workers, engine=chosen, scheduler=scheduler,
        overwrite=overwrite,
    )  # fmt: skip

    def record(done: "BatchResult") -> None:
        if recorded.digest:  # else a folder, which may not be in the ledger
            _stores()[1].record_batch(loaded.name, loaded.version, actor(), done.evidence, done.job)

    read = parse_source(os.fspath(source), query)
    return score_job(loaded, read, os.fspath(output), request, settings.layout, show, record)


def drift(
    config: Config,
    *,
    current: str | os.PathLike[str] | None = None,
    report: bool = False,
    as_of: datetime | None = None,
    overrides: Sequence[str] = (),
    profile: str | None = None,
) -> "MonitoringRun":
    """Compares production data with the champion's training data.

    Without ``current`` this is the scheduled drift flow: it reads the prediction log, reports an alarm and applies the
    policy of the config (nothing, warn, retrain, roll back or block). With ``current`` it only compares.

    Args:
        config: path of a YAML file, mapping or PipelineConfig.
        current: a CSV, Parquet or JSON file instead of the prediction log.
        report: with ``current``: write an Evidently report even without an alarm.
        as_of: ignore predictions from this time on.
        overrides: ``key=value`` texts for keys of the YAML file.
        profile: name of a profile: a worker runs the flow there.

    Raises:
        ConfigError: the config cannot be used.
        DataError: the table or a part of the log cannot be read.
        PromotionRejectedError: the model has no champion.
    """
    settings = Settings.from_environment()
    pipeline = _pipeline(config, overrides, None, settings)
    if current is None:
        if report:
            raise ConfigError("a report needs a table to compare", where="drift", remedy="give `current` as well")
        return _run_monitoring(settings, "drift", pipeline, as_of, profile)
    from towline.monitoring import monitoring_run
    from towline.monitoring.policy import MonitoringRun

    table = Path(current)
    with _private_files(settings):
        now = monitoring_run.resolve_time(as_of)
        champion = monitoring_run.champion_at(settings, pipeline.name, now)
        result = monitoring_run.detect_drift_in_file(settings, pipeline, champion, table)
        page = ""
        if report or result.is_alarm:
            from towline.monitoring.reporting.evidently_report import write_report
            from towline.monitoring.reporting.plot_samples import sample_batches

            rows = sample_batches(monitoring_run.read_file(settings, pipeline, champion, table))
            page = str(write_report(settings, pipeline, champion, result, now, rows))
    return MonitoringRun(model=pipeline.name, version=champion.version, at=now, drift=result, report=page)


def quality(
    config: Config, *, as_of: datetime | None = None, overrides: Sequence[str] = (), profile: str | None = None
) -> "MonitoringRun":
    """Measures logged predictions against ground-truth labels, and applies the policy of the config.

    Args:
        config: path of a YAML file, mapping or PipelineConfig.
        as_of: ignore predictions and labels from this time on.
        overrides: ``key=value`` texts for keys of the YAML file.
        profile: name of a profile: a worker runs the flow there.

    Raises:
        ConfigError: the config cannot be used.
        DataError: a part of the log cannot be read.
        PromotionRejectedError: the model has no champion.
    """
    settings = Settings.from_environment()
    return _run_monitoring(settings, "quality", _pipeline(config, overrides, None, settings), as_of, profile)


def backtest(
    config: Config,
    start: datetime,
    end: datetime,
    *,
    step: str = "1mo",
    policies: "Sequence[PolicyName] | None" = None,
    label_delay: timedelta | None = None,
    overrides: Sequence[str] = (),
) -> "BacktestResult":
    """Compares retraining policies on the history of your own table.

    Args:
        config: path of a YAML file, mapping or PipelineConfig.
        start: the first day that is simulated.
        end: the day after the last one.
        step: time between two monitoring runs: ``1mo``, ``2w``, ``1d``, ``12h``.
        policies: of never, schedule, drift, quality, both, gain; default: all.
        label_delay: time until a label is known; default: ``quality.delay``.
        overrides: ``key=value`` texts for keys of the YAML file.

    Returns:
        The metric, the trainings and the cost of each policy, step by step.

    Raises:
        ConfigError: the config cannot be used, or there is no history to simulate.
        DataError: the table cannot be read.
    """
    from towline import extras

    extras.require("towline backtest", "pipeline")
    from towline.backtesting.results import POLICIES
    from towline.backtesting.simulation import run_backtest

    settings = Settings.from_environment()
    with _private_files(settings):
        pipeline = _pipeline(config, overrides, None, settings)
        return run_backtest(pipeline, settings.project, start, end, step, tuple(policies or POLICIES), label_delay)


def load(release: str | os.PathLike[str], *, trusted: Sequence[str] = ()) -> "Model":
    """Opens a model. Needs only the base installation: no server, no MLflow.

    Args:
        release: ``bike-demand`` (the champion), ``bike-demand@3`` (that version), or the directory of a release.
        trusted: packages whose estimators may be in a release that is given by its directory; for a release in the
            ledger the types are recorded.

    Raises:
        ConfigError: there is no such model or version.
        ReleaseError: the folder is not a release, or the release differs from its manifest.

    Example:
        >>> towline.load("bike-demand").predict({"hour": 8, "weather": "clear"})  # doctest: +SKIP
    """
    from towline.inference.predictor import open_release
    from towline.registry.selection import find_release

    recorded = find_release(release if isinstance(release, str) else Path(release))
    return open_release(recorded.directory, trusted, recorded.digest)


def run_flow(
    settings: Settings, name: "FlowName", parameters: Mapping[str, Any], profile: str | None = None
) -> "FlowResult":
    """Runs a flow of the project and returns its FlowResult; see ``orchestration.flow_runner``."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from towline.orchestration import flow_runner, profiles

    target = profiles.read(profile, settings) if profile else None

    def run_in_this_thread() -> "FlowResult":
        return flow_runner.run_flow(settings, name, parameters, target, partial(print, file=sys.stderr))

    with _private_files(settings):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return run_in_this_thread()
        with ThreadPoolExecutor(1) as pool:  # Prefect returns coroutines where a loop runs, as in a notebook
            return pool.submit(run_in_this_thread).result()


def _run_monitoring(
    settings: Settings, name: "FlowName", config: PipelineConfig, as_of: datetime | None, profile: str | None
) -> "MonitoringRun":
    return cast("MonitoringRun", run_flow(settings, name, {"config": config, "as_of": as_of}, profile).value)


@contextmanager
def _private_files(settings: Settings) -> Iterator[None]:
    """Makes new files readable by their user alone, and modules of the project importable."""
    from towline.processes import private_files

    if str(settings.project) not in sys.path:
        sys.path.append(str(settings.project))
    with private_files():
        yield


def _stores() -> "tuple[Settings, Ledger]":
    from towline.registry.ledger import open_ledger

    settings = Settings.from_environment()
    return settings, open_ledger(settings)


def _pipeline(config: Config, overrides: Sequence[str], data: Any, settings: Settings) -> PipelineConfig:
    if isinstance(config, str | os.PathLike):
        pipeline = read_config(Path(config), overrides)
    elif overrides:
        raise ConfigError("overrides change a YAML file", where="overrides", remedy="change the mapping itself")
    elif isinstance(config, PipelineConfig):
        pipeline = config
    else:
        raw = dict(config)
        if data is not None:
            raw["data"] = {"source": "data.parquet", **raw.get("data", {})}
        pipeline = build_config(raw, "config")
    if data is None:
        return pipeline
    if not pipeline.data.keep_snapshot:
        raise ConfigError(
            "data.keep_snapshot is false, but a table given in Python is copied to the store",
            where="data",
            remedy="write the table to a file and name it in data.source",
        )
    from towline.data.source.python_tables import store_table

    source = store_table(data, settings.layout, settings.project)
    return pipeline.model_copy(update={"data": pipeline.data.model_copy(update={"source": str(source)})})


def _champion_change(settings: Settings, entry: "Entry", *, changed: bool) -> ChampionChange:
    """The change, once MLflow shows it; the champion serves without waiting for that."""
    from towline.registry.mlflow.synchronization import update_mlflow

    return ChampionChange(
        model=entry.model,
        version=entry.version,
        previous=entry.previous,
        changed=changed,
        event=entry.event,
        time=entry.time,
        reason=entry.reason,
        note=update_mlflow(settings, entry.model),
        row=entry.model_dump(),
    )
