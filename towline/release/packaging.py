"""A run's results put into one immutable folder, whole or not at all."""

import functools
import importlib.metadata
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import yaml
from threadpoolctl import ThreadpoolController

from towline import files, origins
from towline.config import Frozen, PipelineConfig, Settings
from towline.data.schema.contract import Contract
from towline.data.schema.example import example_value
from towline.data.splits import hash_rows
from towline.data.validation.suite import Validation
from towline.data.workspace import Workspace
from towline.inference.compiled.codec import PLAN_FILE
from towline.inference.compiled.parity import ParityCertificate, certify
from towline.manifest import HOLDOUT, MANIFEST, Manifest, describe_files, verify_release
from towline.release import model_card, reference, runtime, sbom
from towline.training import model_io, performance_estimation
from towline.training.cross_validation import CrossValidationResult
from towline.training.evaluation.holdout import Evaluation, load_evaluation_predictions
from towline.training.evaluation.metrics import predict
from towline.training.evaluation.predictions import encode_labels
from towline.training.final_fit import FittedModel, training_rows

LIBRARIES = ("numpy", "pandas", "pydantic", "scikit-learn", "skops")
PROBES = 50


class Version(Protocol):
    """What the registry calls this model."""

    @property
    def name(self) -> str: ...
    @property
    def version(self) -> int: ...


class Release(Frozen):
    """A reference to a release: its folder relative to the store, its manifest's digest, its size in bytes.

    ``predictions_file`` is the workspace's file with what its model says of the holdout.
    """

    path: str
    digest: str
    bytes: int
    predictions_file: str


def package_release(
    work: Workspace,
    config: PipelineConfig,
    settings: Settings,
    version: Version,
    fitted: FittedModel,
    evaluation: Evaluation,
    scores: Sequence[CrossValidationResult],
    validation: Validation,
    facts: Mapping[str, str],
) -> Release:
    """Writes the release of a run beside its final place and renames it; the same inputs give the same release.

    Args:
        work: the run's folder.
        config: what the run did; copied into the release.
        settings: says which store the release goes to.
        version: its name, and its number in the ledger.
        fitted: the model to release.
        evaluation: what its recipe reached on the holdout.
        scores: what every candidate reached in cross-validation.
        validation: what was checked before.
        facts: provenance; ``created``, ``git_commit``, ``git_dirty``, ``towline`` and ``python`` go into the manifest.

    Raises:
        TransientError: the disk is full or the store cannot be written; nothing is left behind.
        ReleaseError: this release exists already and has been changed since.
    """
    home = settings.layout.releases / version.name
    manifest = _manifest(work, config, version, fitted, evaluation, scores, facts)
    with files.disk(home), files.exclusive_lock(home / ".lock"):
        for stale in home.glob(".draft-*"):  # of a killed run: the lock says that nobody writes there now
            shutil.rmtree(stale)
        draft = home / f".draft-{work.key[:16]}"
        try:
            _write(draft, work, config, manifest, fitted, evaluation, scores, validation)
            for path in performance_estimation.save_estimator(work, config, fitted.candidate):
                files.write(draft / path.name, path.read_bytes())
            manifest = manifest.model_copy(update={"files": describe_files(draft)})
            files.write(draft / MANIFEST, manifest.text())
            target = home / manifest.folder
            if target.exists():
                verify_release(target)
            else:
                draft.rename(target)
                files.sync(home)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return Release(
        path=target.relative_to(settings.store).as_posix(),
        digest=manifest.digest,
        bytes=sum(entry.size for entry in manifest.files.values()),
        predictions_file=fitted.predictions_file,
    )


def _manifest(
    work: Workspace,
    config: PipelineConfig,
    version: Version,
    fitted: FittedModel,
    evaluation: Evaluation,
    scores: Sequence[CrossValidationResult],
    facts: Mapping[str, str],
) -> Manifest:
    contract = work.contract()
    data = work.dataset
    estimator = next(score.estimator for score in scores if score.candidate == fitted.candidate)
    types = model_io.untrusted_types(work.file(fitted.file))
    homes = model_io.packages_in_model(work.file(fitted.file)) | {estimator.partition(".")[0]}
    return Manifest(
        name=version.name,
        version=version.version,
        run_key=work.key,
        created=facts["created"],
        task=contract.task,
        target=contract.target,
        classes=contract.classes,
        positive=contract.positive,
        threshold=fitted.threshold,
        dataset={
            "digest": data.digest,
            "rows": data.rows,
            "start": data.start,
            "end": data.end,
            "source": data.source,
            "split": _split(work, config, fitted),
            "history": fitted.history.model_dump(mode="json"),
            "training_rows": fitted.rows,
        },
        estimator=estimator,
        params=fitted.params,
        metrics=evaluation.metrics,
        primary=evaluation.primary,
        commit=facts["git_commit"] + ("-dirty" if facts["git_dirty"] == "true" else ""),
        towline=facts["towline"],
        python=facts["python"],
        libraries={name: importlib.metadata.version(name) for name in LIBRARIES} | origins.installed_versions(homes),
        trusted=types,
        seeds={"run": config.seed},
    )


def _split(work: Workspace, config: PipelineConfig, fitted: FittedModel) -> dict[str, Any]:
    """How the holdout was set apart: enough to tell of any row whether the model was trained on it.

    ``train_end`` is the time of the newest row that the released model has seen; where that was fitted again after
    the holdout was measured on, ``measured_end`` is the same of the model that was measured.
    """
    by = json.loads(work.file("parts.json").read_bytes())["by"]
    if by == "time":
        ends = {"train_end": fitted.end, "measured_end": fitted.measured_end or fitted.end}
        return {"by": by, "time": config.data.time, "refitted": fitted.refitted, **ends}
    own = {"group": config.data.group, "seed": config.seed, "holdout": config.split.holdout}
    return {"by": by, "refitted": fitted.refitted, **own}


def _write(
    draft: Path,
    work: Workspace,
    config: PipelineConfig,
    manifest: Manifest,
    fitted: FittedModel,
    evaluation: Evaluation,
    scores: Sequence[CrossValidationResult],
    validation: Validation,
) -> None:
    contract = work.contract()
    plots = {path.name: path.read_bytes() for path in sorted(work.file("plots").glob("*.png"))}
    rows = training_rows(work, config, fitted)
    seen = contract.features(rows)
    model = model_io.load_model(work.file(fitted.file), model_io.trusted_packages(config))
    certificate, plan = _compiled(work, config, contract, model, seen)
    needs = runtime.select_lock_file(compiled=bool(plan), packages=model_io.packages_in_model(work.file(fitted.file)))
    written = model_card.render_card(
        manifest, config, contract, evaluation, scores, validation, plots, certificate, fitted
    )
    metrics = {
        "evaluation": evaluation.model_dump(mode="json"),
        "cross_validation": [score.model_dump(mode="json") for score in scores],
    }
    contents: dict[str, str | bytes] = {
        Contract.FILE: contract.model_dump_json(indent=1),
        **reference.build_reference(work, config, rows),
        "config.yaml": _render_config(config),
        "metrics.json": json.dumps(metrics, indent=1, ensure_ascii=False),
        "validation.json": validation.model_dump_json(indent=1),
        "probe.json": json.dumps(_probe(work, config, model), indent=1, ensure_ascii=False),
        "certificate.json": certificate.model_dump_json(indent=1),
        "environment.lock": _environment(),
        runtime.NAME: needs,
        sbom.NAME: sbom.build_sbom(manifest, needs),
        "card.md": written.markdown,
        "card.html": written.html,
        **{f"plots/{name}": content for name, content in plots.items()},
    }
    for name, content in contents.items():
        files.write(draft / name, content)
    if fitted.refitted:
        with files.replacing(draft / HOLDOUT) as file:
            np.savez_compressed(file, allow_pickle=False, **_measured(work, config))
    with work.file(fitted.file).open("rb") as model, files.replacing(draft / "model.skops") as copy:
        shutil.copyfileobj(model, copy)
    if plan:
        files.write(draft / PLAN_FILE, plan)


def _measured(work: Workspace, config: PipelineConfig) -> dict[str, np.ndarray]:
    """What the model that was measured said of each holdout row, by the row's hash: the released one has seen them.

    A later challenger can so be compared on rows that neither recipe was fitted on.
    """
    contract, rows = work.contract(), work.part("holdout")[2]
    _, found, _ = load_evaluation_predictions(work)
    content = {"rows": hash_rows(rows[[column.name for column in contract.columns]], config.seed)}
    content["labels"] = encode_labels(found.labels, contract.classes) if contract.classes else found.labels
    if found.probabilities is not None:
        content["probabilities"] = found.probabilities
    return content


def _compiled(
    work: Workspace, config: PipelineConfig, contract: Contract, model: Any, seen: pd.DataFrame
) -> tuple[ParityCertificate, bytes]:
    """The compiled scorer, if it answers every row as the model does, and the proof."""
    tables = {"train": seen, "holdout": work.part("holdout")[0]}
    with ThreadpoolController().limit(limits=1):
        return certify(model, contract, tables, config.seed)


def _render_config(config: PipelineConfig) -> str:
    """The resolved config as YAML; a secret written into a URL is masked, a ``${NAME}`` stays."""
    resolved = config.masked().model_dump(mode="json")
    return yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True)


@functools.cache
def _environment() -> str:
    """Every installed distribution, ``name==version``; no addresses."""
    found = {f"{dist.name.lower()}=={dist.version}" for dist in importlib.metadata.distributions() if dist.name}
    return "\n".join(sorted(found)) + "\n"


def _probe(work: Workspace, config: PipelineConfig, model: Any) -> dict[str, Any]:
    """A few rows as a caller would send them, and what the model answers in this process.

    No row of the table is among them: each column holds values of the holdout in an order of its own, and a column with
    personal data made-up ones.
    """
    contract, holdout = work.contract(), work.part("holdout")[2]
    chosen = np.unique(np.linspace(0, len(holdout) - 1, PROBES).astype(int))
    rng = np.random.default_rng(config.seed)
    columns: dict[str, list[Any]] = {}
    for column in contract.feature_columns:
        values = holdout[column.name].iloc[rng.permutation(chosen)]
        columns[column.name] = [example_value(column)] * len(chosen) if column.pii else _to_json_values(values)
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    # as the release reads them; a frame of the columns would have other types than the table
    features = contract.features(pd.DataFrame(rows, columns=list(columns), dtype=object))
    with ThreadpoolController().limit(limits=1):
        expected = predict(model, features, contract)
    return {
        "rows": rows,
        "labels": expected.labels.tolist(),
        "probabilities": None if expected.probabilities is None else expected.probabilities.tolist(),
    }


def _to_json_values(values: pd.Series) -> list[Any]:
    """Values as JSON has them."""
    given = values.astype(object).where(values.notna(), None)
    return [value.isoformat() if isinstance(value, pd.Timestamp) else value for value in given]
