"""A release is an immutable folder with everything that is needed to serve one version, named by its content.

It holds the model, its contract, the compiled scorer, the drift reference, metrics, the model card, a probe and lock
files. The manifest lists each file with its digest; the folder's name contains the digest of the manifest.
"""

import functools
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from towline import files, package_origin
from towline.config import Frozen, PipelineConfig
from towline.data.example_row import example_value
from towline.data.schema.contract import Contract
from towline.data.splits import SplitSummary, hash_rows
from towline.data.workspace import Workspace
from towline.inference.compiled.codec import PLAN_FILE
from towline.inference.compiled.parity import ParityCertificate, certify
from towline.manifest import HOLDOUT, MANIFEST, Manifest, describe_files, verify_release
from towline.processes import thread_pools
from towline.provenance import Provenance
from towline.release import model_card, reference, runtime, sbom
from towline.store import StoreLayout
from towline.training import model_io, performance_estimation
from towline.training.boosting.libraries import Booster
from towline.training.estimators import pipelines_of
from towline.training.evaluation.holdout import load_evaluation_predictions
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import encode_labels
from towline.training.final_fit import FittedModel, training_rows
from towline.training.result import TrainingResult

LIBRARIES = ("numpy", "pandas", "pydantic", "scikit-learn", "skops")
PROBES = 50


class Release(Frozen):
    """A reference to a release.

    Attributes:
        path: its folder, relative to the store.
        digest: SHA-256 of its manifest.
        bytes: size of its files.
        predictions_file: the workspace's file with its model's predictions for the holdout.
    """

    path: str
    digest: str
    bytes: int
    predictions_file: str


def package_release(
    work: Workspace, config: PipelineConfig, version: int, result: TrainingResult, provenance: Provenance
) -> Release:
    """Writes the release of a run: into a draft folder, which is renamed; the same inputs give the same release.

    Args:
        work: the run's workspace; names the store.
        config: of the run; copied into the release.
        version: the model's number in the ledger.
        result: of training.
        provenance: of the run; parts of it go into the manifest.

    Raises:
        TransientError: the disk is full or the store cannot be written; no draft remains.
        ReleaseError: the release exists and was changed.
    """
    releases = StoreLayout(work.store).releases / config.name
    manifest = _manifest(work, config, version, result, provenance)
    with files.disk(releases), files.exclusive_lock(releases / ".lock"):
        for stale in releases.glob(".draft-*"):  # of an interrupted run: the lock excludes another writer
            shutil.rmtree(stale)
        draft = releases / f".draft-{provenance.run_key[:16]}"
        try:
            _write_files(draft, work, config, manifest, result)
            for path in performance_estimation.save_estimator(work, config, result.model.candidate):
                files.write(draft / path.name, path.read_bytes())
            manifest = manifest.model_copy(update={"files": describe_files(draft)})
            files.write(draft / MANIFEST, manifest.text())
            target = releases / manifest.folder
            if target.exists():
                verify_release(target)
            else:
                draft.rename(target)
                files.sync(releases)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Release(
        path=target.relative_to(work.store).as_posix(),
        digest=manifest.digest,
        bytes=sum(entry.size for entry in manifest.files.values()),
        predictions_file=result.model.predictions_file,
    )


def _manifest(
    work: Workspace, config: PipelineConfig, version: int, result: TrainingResult, provenance: Provenance
) -> Manifest:
    contract, data, model = work.contract(), work.dataset, result.model
    estimator = result.chosen.estimator
    packages = model_io.packages_of(model.untrusted_types) | {estimator.partition(".")[0]}
    return Manifest(
        name=config.name,
        version=version,
        run_key=provenance.run_key,
        created=provenance.created,
        task=contract.task,
        target=contract.target,
        classes=contract.classes,
        positive=contract.positive,
        threshold=model.threshold,
        calibration=model.calibration.model_dump(include={"method", "rows"}) if model.calibration else None,
        dataset={
            **data.model_dump(include={"digest", "rows", "start", "end", "source"}),
            "split": _split(work, config, model),
            "history": model.history.model_dump(mode="json"),
            "training_rows": model.rows,
        },
        estimator=estimator,
        params=model.params,
        metrics=result.evaluation.metrics,
        primary=result.evaluation.primary,
        commit=provenance.commit_label,
        towline=provenance.towline,
        python=provenance.python,
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES}
        | package_origin.installed_versions(packages),
        trusted=model_io.untrusted_types(work.file(model.file)),
        seeds={"run": config.seed},
    )


def _split(work: Workspace, config: PipelineConfig, fitted: FittedModel) -> dict[str, Any]:
    """How the holdout was split off, in enough detail to decide whether the model was trained on a given row.

    ``train_end`` is the time of the newest training row of the released model, ``measured_end`` that of the evaluated
    model. They differ if the model was fitted again after its evaluation.
    """
    summary = SplitSummary.model_validate_json(work.file("split.json").read_bytes())
    by = summary.by
    if by == "time":
        ends = {"train_end": fitted.end, "measured_end": fitted.measured_end or fitted.end}
        return {"by": by, "time": config.data.time, "refitted": fitted.refitted, **ends}
    random = {"group": config.data.group, "seed": config.seed, "holdout": config.split.holdout}
    return {"by": by, "refitted": fitted.refitted, "copies": summary.copies, **random}


def _write_files(
    draft: Path, work: Workspace, config: PipelineConfig, manifest: Manifest, result: TrainingResult
) -> None:
    contract, fitted = work.contract(), result.model
    plots = {path.name: path.read_bytes() for path in sorted(work.file("plots").glob("*.png"))}
    rows = training_rows(work, config, fitted)
    model = model_io.load_model(work.file(fitted.file), model_io.trusted_packages(config))
    certificate, plan = _compile(work, config, model, contract.features(rows))
    packages = model_io.packages_of(fitted.untrusted_types)
    lock_file = runtime.select_lock_file(compiled=bool(plan), packages=packages)
    card = model_card.render_card(manifest, config, contract, result, plots, certificate)
    metrics = {
        "evaluation": result.evaluation.model_dump(mode="json"),
        "cross_validation": [scores.model_dump(mode="json") for scores in result.candidates],
    }
    contents: dict[str, str | bytes] = {
        Contract.FILE: contract.model_dump_json(indent=1),
        **reference.build_reference(work, config, rows),
        "config.yaml": _render_config(config),
        "metrics.json": json.dumps(metrics, indent=1, ensure_ascii=False),
        "validation.json": result.validation.model_dump_json(indent=1),
        "probe.json": json.dumps(_probe(work, config, model), indent=1, ensure_ascii=False),
        "certificate.json": certificate.model_dump_json(indent=1),
        "environment.lock": _environment(),
        runtime.NAME: lock_file,
        sbom.NAME: sbom.build_sbom(manifest, lock_file),
        "card.md": card.markdown,
        "card.html": card.html,
        **{f"plots/{name}": content for name, content in plots.items()},
    }
    for name, content in contents.items():
        files.write(draft / name, content)
    if fitted.refitted:
        with files.replacing(draft / HOLDOUT) as file:
            np.savez_compressed(file, allow_pickle=False, **_evaluated_holdout(work, config))
    with work.file(fitted.file).open("rb") as model_file, files.replacing(draft / "model.skops") as copy:
        shutil.copyfileobj(model_file, copy)
    if plan:
        files.write(draft / PLAN_FILE, plan)
    for part, pipeline in pipelines_of(model).items():
        booster = pipeline[-1]
        if isinstance(booster, Booster):  # for other tools; towline reads model.skops, which has the same content
            files.write(draft / f"{part}-{booster.file}".removeprefix("-"), booster.model_)


def _evaluated_holdout(work: Workspace, config: PipelineConfig) -> dict[str, np.ndarray]:
    """The evaluated model's predictions for the holdout, by row hash; the released model was fitted on these rows.

    A later challenger can then be compared on rows that neither model was fitted on.
    """
    contract, rows = work.contract(), work.subset("holdout").rows
    _, predictions, _ = load_evaluation_predictions(work)
    content = {"rows": hash_rows(rows[[column.name for column in contract.columns]], config.seed)}
    content["labels"] = encode_labels(predictions.labels, contract.classes) if contract.classes else predictions.labels
    if predictions.probabilities is not None:
        content["probabilities"] = predictions.probabilities
    return content


def _compile(
    work: Workspace, config: PipelineConfig, model: Any, train: pd.DataFrame
) -> tuple[ParityCertificate, bytes]:
    """The parity certificate and the compiled scorer, which is empty if it predicts a row differently."""
    tables = {"train": train, "holdout": work.subset("holdout").features}
    with thread_pools().limit(limits=1):
        return certify(model, work.contract(), tables, config.seed)


def _render_config(config: PipelineConfig) -> str:
    """The resolved config as YAML; a secret written into a URL is masked, a ``${NAME}`` stays."""
    resolved = config.masked().model_dump(mode="json")
    return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


@functools.cache
def _environment() -> str:
    """Every installed distribution as ``name==version``, without addresses."""
    described = [dist.metadata for dist in importlib.metadata.distributions()]  # each access reads the file again
    packages = {f"{entry['Name'].lower()}=={entry['Version']}" for entry in described if entry["Name"]}
    return "\n".join(sorted(packages)) + "\n"


def _probe(work: Workspace, config: PipelineConfig, model: Any) -> dict[str, Any]:
    """Probe rows as a client would send them, with the predictions of the model in this process.

    They are not rows of the table: each column holds values of the holdout in its own random order, and columns with
    personal data hold generated values.
    """
    contract, holdout = work.contract(), work.subset("holdout").rows
    chosen = np.unique(np.linspace(0, len(holdout) - 1, PROBES).astype(int))
    rng = np.random.default_rng(config.seed)
    columns: dict[str, list[Any]] = {}
    for column in contract.input_columns:
        values = holdout[column.name].iloc[rng.permutation(chosen)]
        columns[column.name] = [example_value(column)] * len(chosen) if column.pii else _to_json_values(values)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    # dtype=object, as a release reads rows: a frame of the columns would have other types than the table
    features = contract.features(pd.DataFrame(rows, columns=list(columns), dtype=object))
    with thread_pools().limit(limits=1):
        expected = predict(model, features, contract)
    return {
        "rows": rows,
        "labels": expected.labels.tolist(),
        "probabilities": None if expected.probabilities is None else expected.probabilities.tolist(),
    }


def _to_json_values(values: pd.Series) -> list[Any]:
    """The values as JSON types."""
    objects = values.astype(object).where(values.notna(), None)
    return [value.isoformat() if isinstance(value, pd.Timestamp) else value for value in objects]
