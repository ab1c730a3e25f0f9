"""The model card: what the model is for, what it was made of, how good it is and where it is not.

The sections follow Mitchell et al., Model Cards for Model Reporting (2019).
"""

import base64
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from towline.config import GREATER_IS_BETTER, PipelineConfig
from towline.data.schema.contract import Column, Contract
from towline.data.validation.suite import Validation
from towline.inference.compiled.parity import ParityCertificate
from towline.manifest import Manifest
from towline.markdown import escape
from towline.training.cross_validation import CrossValidationResult
from towline.training.evaluation.holdout import Evaluation, SliceResult
from towline.training.final_fit import FittedModel

TEMPLATES = Path(__file__).parent
WORST = 15
MOST = 15


class ModelCard(NamedTuple):
    """One card in two forms; the HTML holds its plots and needs no other file."""

    markdown: str
    html: str


def render_card(
    manifest: Manifest,
    config: PipelineConfig,
    contract: Contract,
    evaluation: Evaluation,
    scores: Sequence[CrossValidationResult],
    validation: Validation,
    plots: Mapping[str, bytes],
    certificate: ParityCertificate,
    fitted: FittedModel,
) -> ModelCard:
    """Renders the card of a release; whatever the user or the table wrote is escaped.

    Args:
        manifest: the release's facts.
        config: for the description and the candidates.
        contract: what a row must be.
        evaluation: what the model reached on the holdout.
        scores: what each candidate reached in cross-validation.
        validation: what was checked before training.
        plots: PNG files by name.
        certificate: how the release answers.
        fitted: the released model: what it learnt from.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

    facts = {
        "manifest": manifest,
        "config": config,
        "evaluation": evaluation,
        "validation": validation,
        "certificate": certificate,
        "fitted": fitted,
        "histories": [(str(one), one.rows, one.value, one.failed) for one in fitted.history.trials],
        "metrics": [(name, value, evaluation.baseline.get(name)) for name, value in evaluation.metrics.items()],
        "candidates": [
            (score.candidate, score.mean.get(evaluation.primary), score.sd.get(evaluation.primary), score.failed)
            for score in scores
        ],
        "slices": _worst_first(evaluation)[:WORST],
        "importance": evaluation.importance[:MOST],
        "columns": [(column.name, column.kind, _allowed(column)) for column in contract.feature_columns],
        "ignored": [(column.name, column.note) for column in contract.columns if column.role == "ignored"],
        "better": "higher" if GREATER_IS_BETTER[evaluation.primary] else "lower",
        "plots": {name: base64.b64encode(content).decode() for name, content in plots.items()},
    }

    def render(template: str, finalize: Callable[[Any], Any] | None) -> str:
        environment = Environment(
            loader=FileSystemLoader(TEMPLATES),
            autoescape=select_autoescape(["html.jinja"]),
            finalize=finalize,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
        )
        environment.filters |= {"number": format_number, "title": format_title}
        return environment.get_template(template).render(facts)

    return ModelCard(markdown=render("model_card.md.jinja", _markdown), html=render("model_card.html.jinja", None))


def format_number(value: float | None) -> str:
    """A number as a person reads it: 4 digits, whole ones in full."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if isinstance(value, int) or abs(value) >= 1000 else f"{value:.4g}"


def format_title(name: str) -> str:
    """``fold_scores.png`` → Fold scores."""
    return name.removesuffix(".png").replace("_", " ").capitalize()


def _worst_first(evaluation: Evaluation) -> list[SliceResult]:
    measured = [part for part in evaluation.slices if part.metric.value is not None]
    return sorted(
        measured, key=lambda part: part.metric.value or 0.0, reverse=not GREATER_IS_BETTER[evaluation.primary]
    )


def _allowed(column: Column) -> str:
    if column.pii:
        told = "personal data" + (", used as " + ", ".join(column.derive) if column.derive else "")
    elif column.derive:
        told = "used as " + ", ".join(column.derive)
    elif column.categories is not None:
        shown = ", ".join(column.categories[:8])
        told = f"{column.levels} values: {shown}" + (", …" if column.levels > 8 else "")
    elif column.kind == "category":
        told = f"{column.levels:,} values"
    elif column.min is not None and column.max is not None:
        told = f"{format_number(column.min)} to {format_number(column.max)}"
    else:
        told = "any"
    return told + ("; may be null" if column.nullable else "")


def _markdown(value: Any) -> Any:
    """Escapes a text for Markdown; leaves other values to the template's filters."""
    return escape(value) if isinstance(value, str) else value
