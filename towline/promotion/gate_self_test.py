"""The gate's self-test: models that are broken on purpose must be rejected, else the gate proves nothing.

Their predictions are made from the truth of the holdout, so nothing is fitted. They are judged by the checks of metrics
and of the baseline. The champion and the rows of cross-validation do not help: the next champion may be worse.
"""

from collections.abc import Iterator

import numpy as np

from towline.config import PipelineConfig
from towline.data.schema.contract import Column, Contract
from towline.data.validation.leakage import find_leaks
from towline.promotion.gate import GateCheck, Holdout, decide, judge_predictions
from towline.training.evaluation.definitions import metrics_of
from towline.training.evaluation.holdout import Evaluation
from towline.training.evaluation.metrics import compute_metrics
from towline.training.evaluation.predictions import Interval, Predictions, decode_labels, encode_labels

LEAK = "a copy of the target"
LEAK_ROWS, MAX_ROWS, MAX_CONSTANTS = 2_000, 3_000, 10
MIN_CLASS_ROWS, MIN_LEAK_ROWS = 10, 20  # with fewer rows, the check for leaks decides nothing


def check_gate(config: PipelineConfig, evaluation: Evaluation, holdout: Holdout) -> GateCheck:
    """The check that the gate rejects each broken model, and that a leaking column is found.

    Args:
        config: sets the gate.
        evaluation: of the challenger; its task and primary metric are used.
        holdout: rows and truth.
    """
    holdout = _sample(holdout._replace(champion=None, out_of_fold=None), config.seed)
    metrics = metrics_of(config, holdout.contract.task)
    rejected, passed = list[str](), list[str]()
    for name, predictions in _broken_models(holdout):
        values = compute_metrics(holdout.truth, predictions, holdout.contract, metrics=metrics)
        intervals = {metric: Interval(value=value if np.isfinite(value) else None) for metric, value in values.items()}
        measured = evaluation.model_copy(update={"metrics": intervals})
        checks = judge_predictions(config, measured, holdout._replace(challenger=predictions))
        (passed if decide(checks, config.gate) == "pass" else rejected).append(name)
    if _can_leak(holdout):
        (rejected if _is_leak_detected(config, holdout) else passed).append("a leaking column")
    if passed:
        remedy = "set gate.min or gate.max of a metric that these models fail, e.g. gate.min.precision besides recall"
        detail = f"the gate lets broken models pass: {', '.join(passed)}; {remedy}"
        return GateCheck(name="self-test", outcome="fail", detail=detail, value=float(len(passed)), bound=0.0)
    detail = f"the gate rejects {', '.join(rejected)}"
    return GateCheck(name="self-test", outcome="pass", detail=detail, value=0.0, bound=0.0)


def _sample(holdout: Holdout, seed: int) -> Holdout:
    """At most ``MAX_ROWS`` rows, so that the test takes less than a second."""
    rows = np.sort(np.random.default_rng(seed).permutation(len(holdout.truth))[:MAX_ROWS])
    return holdout._replace(
        rows=holdout.rows.iloc[rows].reset_index(drop=True),
        truth=holdout.truth[rows],
        challenger=holdout.challenger.take(rows),
        baseline=holdout.baseline.take(rows),
    )


def _broken_models(holdout: Holdout) -> Iterator[tuple[str, Predictions]]:
    truth, classes, baseline = holdout.truth, holdout.contract.classes, holdout.baseline
    missing = np.full(len(truth), np.nan)
    if not classes:
        # about the level of the training rows: a model gets no credit for a level of the target that rises with time
        yield "flipped targets", Predictions(2 * baseline.labels.astype(np.float64) - truth)
        yield "a constant", baseline
        yield "NaN predictions", Predictions(missing)
        return
    flipped = (encode_labels(truth, classes) + 1) % len(classes)
    yield "flipped labels", Predictions(decode_labels(flipped, classes), np.eye(len(classes))[flipped])
    for position, label in enumerate(classes[:MAX_CONSTANTS]):
        constant = decode_labels(np.full(len(truth), position), classes)
        yield f"the constant {label}", Predictions(constant, baseline.probabilities)
    first = decode_labels(np.zeros(len(truth), dtype=np.int64), classes)
    yield "NaN probabilities", Predictions(first, np.tile(missing[:, None], len(classes)))


def _can_leak(holdout: Holdout) -> bool:
    if not holdout.contract.classes:
        return len(holdout.truth) >= MIN_LEAK_ROWS and len(np.unique(holdout.truth)) > 1
    counts = np.bincount(encode_labels(holdout.truth, holdout.contract.classes))
    return int((counts >= MIN_CLASS_ROWS).sum()) >= 2


def _is_leak_detected(config: PipelineConfig, holdout: Holdout) -> bool:
    """Whether the validation finds a column that is computed from the target alone."""
    contract = holdout.contract
    rows = holdout.rows[[contract.target]].copy()
    if contract.classes:
        rows[LEAK] = [f"group {position}" for position in encode_labels(holdout.truth, contract.classes)]
        column = Column(name=LEAK, kind="category", role="feature", levels=len(contract.classes))
    else:
        rows[LEAK] = 3 * holdout.truth.astype(np.float64) + 1
        column = Column(name=LEAK, kind="numeric", role="feature")
    leaking = Contract(
        target=contract.target,
        task=contract.task,
        columns=(contract.target_column, column),
        classes=contract.classes,
        positive=contract.positive,
    )
    sample = rows.sample(min(len(rows), LEAK_ROWS), random_state=config.seed)
    return any(LEAK in leak.columns for leak in find_leaks(sample, leaking, config.seed))
