"""The model card: purpose, data, hyperparameters, metrics and limits of one version, as Markdown and as HTML.

The sections follow Mitchell et al., Model Cards for Model Reporting (2019).
"""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from towline.config import PipelineConfig
from towline.data.schema.contract import Column, Contract
from towline.formatting import escape_markdown, format_number, shorten_list
from towline.html import environment, render_page
from towline.inference.compiled.parity import ParityCertificate
from towline.manifest import Manifest
from towline.training.evaluation.definitions import Metric, primary_metric
from towline.training.evaluation.holdout import Evaluation, SliceResult
from towline.training.result import TrainingResult

TEMPLATES = Path(__file__).parent
MAX_SLICES = 15
MAX_CLASSES = 8
MAX_COLUMNS = 15


class ModelCard(NamedTuple):
    """A card in both forms; the HTML contains its plots and needs no other file."""

    markdown: str
    html: str


def render_card(
    manifest: Manifest,
    config: PipelineConfig,
    contract: Contract,
    result: TrainingResult,
    plots: Mapping[str, bytes],
    certificate: ParityCertificate,
) -> ModelCard:
    """Renders the card of a release; text of the user and of the table is escaped.

    Args:
        manifest: of the release.
        config: of the run.
        contract: of the rows.
        result: of training.
        plots: PNG files by name.
        certificate: of the compiled scorer.
    """
    evaluation, fitted = result.evaluation, result.model
    primary = primary_metric(config, contract.task)
    values = {
        "manifest": manifest,
        "decision": _describe_threshold(manifest),
        "config": config,
        "evaluation": evaluation,
        "validation": result.validation,
        "certificate": certificate,
        "fitted": fitted,
        "histories": [(str(trial), trial.rows, trial.value, trial.failed) for trial in fitted.history.trials],
        "metrics": [(name, value, evaluation.baseline.get(name)) for name, value in evaluation.metrics.items()],
        "candidates": [
            (score.candidate, score.mean.get(evaluation.primary), score.sd.get(evaluation.primary), score.failed)
            for score in result.candidates
        ],
        "calibration": evaluation.calibration,
        "notes": result.notes,
        "behaviour": [(check.outcome, check.name, check.detail) for check in result.behaviour],
        "slices": _sort_worst_first(evaluation, primary)[:MAX_SLICES],
        "importance": evaluation.importance[:MAX_COLUMNS],
        "columns": [(column.name, column.kind, _describe_values(column)) for column in contract.input_columns],
        "derived": [(column.name, column.expression, column.kind) for column in contract.derived_features],
        "lookups": [
            (lookup.name, lookup.entries, lookup.digest, lookup.unmatched, lookup.rows) for lookup in contract.lookups
        ],
        "ignored": [(c.name, c.note) for c in (*contract.columns, *contract.derived) if c.role == "ignored"],
        "better": "higher" if primary.greater_is_better else "lower",
        "plots": [(name, format_title(name), base64.b64encode(content).decode()) for name, content in plots.items()],
    }

    # Markdown is escaped by the finalizer
    markdown = environment(TEMPLATES, autoescape=False, finalize=_escape_text)
    return ModelCard(
        markdown=markdown.get_template("model_card.md.jinja").render(values),
        html=render_page(TEMPLATES / "model_card.html.jinja", **values),
    )


def format_title(name: str) -> str:
    """``fold_scores.png`` → Fold scores."""
    return name.removesuffix(".png").replace("_", " ").capitalize()


def _describe_threshold(manifest: Manifest) -> str:
    """Of several classes, the largest ratio of probability and threshold decides."""
    if not isinstance(manifest.threshold, tuple):
        return format_number(manifest.threshold)
    limits = [f"{label}: {limit:.3g}" for label, limit in zip(manifest.classes, manifest.threshold, strict=True)]
    return f"the largest ratio of probability to threshold: {shorten_list(limits, MAX_CLASSES)}"


def _sort_worst_first(evaluation: Evaluation, primary: Metric) -> list[SliceResult]:
    measured = [part for part in evaluation.slices if part.metric.value is not None]
    return sorted(measured, key=lambda part: part.metric.value or 0.0, reverse=not primary.greater_is_better)


def _describe_values(column: Column) -> str:
    if column.pii:
        text = "personal data" + (", used as " + ", ".join(column.derive) if column.derive else "")
    elif column.derive:
        text = "used as " + ", ".join(column.derive)
    elif column.categories is not None:
        first = ", ".join(column.categories[:8])
        text = f"{column.levels} values: {first}" + (", …" if column.levels > 8 else "")
    elif column.kind == "text":
        text = "used as components of its TF-IDF weights"
    elif column.kind == "category":
        text = f"{column.levels:,} values"
    elif column.min is not None and column.max is not None:
        text = f"{format_number(column.min)} to {format_number(column.max)} {column.format.number_unit}".rstrip()
        text += ", follows the time" if column.time_correlation else ""
    else:
        text = "any"
    return text + ("; may be null" if column.nullable else "")


def _escape_text(value: Any) -> Any:
    """Escapes text for Markdown; other values are formatted by the template's filters."""
    return escape_markdown(value) if isinstance(value, str) else value
