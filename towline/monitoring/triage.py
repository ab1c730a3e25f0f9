"""Who is to blame: the same labelled rows answered by the champion and by the one before it."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from towline.config import GREATER_IS_BETTER, PRIMARY, PipelineConfig
from towline.errors import DataError, ReleaseError
from towline.monitoring import outcomes
from towline.monitoring.evidence import Drift, Triage
from towline.monitoring.quality import blocks
from towline.release.predictor import open_release
from towline.training import stored
from towline.training.bootstrap import resample, weights
from towline.training.metrics import scores
from towline.training.predictions import Predictions


def triage(
    table: pa.Table, champion: Path, previous: Path | None, config: PipelineConfig, drift: Drift | None
) -> Triage:
    """Compares two versions on rows that neither has learnt from: those that production saw since the champion serves.

    Args:
        table: of ``labels.read``; the champion's own predictions are taken as they were logged.
        champion: its release.
        previous: the release that a rollback would bring back; None where there is none.
        config: the metric, and what may be loaded.
        drift: the last night, which says whether the input is what the contract says.
    """
    model = open_release(champion, stored.packages(config))
    metric = config.evaluation.metric or PRIMARY[model.contract.task]
    found = outcomes.read(table, model.contract, model.version)
    found = found.take(found.labelled)
    rows, sound = len(found.truth), drift is None or drift.state != "broken"
    value = scores(found.truth, found.predictions, model.contract).get(metric) if rows else None

    def told(reason: str, earlier: float | None = None, *, better: bool = False) -> Triage:
        why = reason if sound else f"{drift.reason if drift else ''}; {reason}"
        return Triage(
            rows=rows, champion=_finite(value), previous=_finite(earlier), better=better, sound=sound, reason=why
        )

    if previous is None:
        return told("there is no champion before this one")
    if not rows:
        return told("no row has a label")
    try:
        other = open_release(previous, stored.packages(config))
        if (other.contract.target, other.contract.classes) != (model.contract.target, model.contract.classes):
            return told(f"version {other.version} predicts something else")
        answers = other.predictions(other.features(found.inputs))
    except (DataError, ReleaseError) as error:
        return told(f"the champion before cannot answer these rows: {error.what}")
    drawn = weights(rows, config.evaluation.resamples, config.seed, blocks(rows))

    def sample(predictions: Predictions) -> np.ndarray:
        return resample(found.truth, predictions, model.contract, metric, drawn)

    sign = 1.0 if GREATER_IS_BETTER[metric] else -1.0
    gain = sign * (sample(answers) - sample(found.predictions))
    gain = gain[np.isfinite(gain)]
    earlier = scores(found.truth, answers, model.contract).get(metric)
    better = len(gain) >= 20 and float(np.quantile(gain, 0.025)) > 0
    return told(
        f"{metric} {_shown(value)} against {_shown(earlier)} of version {other.version}", earlier, better=better
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and np.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "–" if _finite(value) is None else f"{value:.4g}"
