"""Cross-validate, fit, evaluate, draw."""

from collections.abc import Sequence

from tasks import artifacts, cached_task
from towline.config import Candidate, PipelineConfig, format_duration
from towline.data.workspace import Workspace
from towline.steps import step
from towline.training import cross_validation, final_fit, history, plots
from towline.training.evaluation import holdout
from towline.training.evaluation.interval import Interval


@cached_task("cross-validate", task_run_name="cross-validate {candidate.name}")
def cross_validate(
    work: Workspace, config: PipelineConfig, candidate: Candidate
) -> cross_validation.CrossValidationResult:
    with step(f"cross-validate {candidate.name}", work.path) as told:
        scores = cross_validation.cross_validate(work, config, candidate)
        metric = cross_validation.primary_metric(config, work.contract().task)
        if scores.failed:
            told.note = f"could not be fitted: {scores.failed}"
        else:
            told.note = f"{metric} {scores.mean[metric]:.4g} ± {scores.sd[metric]:.2g}"
    rows = [
        {"fold": number, **{name: f"{value:.4g}" for name, value in fold.items()}}
        for number, fold in enumerate(scores.folds, 1)
    ]
    artifacts.table(
        rows, key=f"{config.name}-cross-validation", description=f"{candidate.name}, fold by fold: {told.note}"
    )
    return scores


@cached_task("choose history")
def choose_history(
    work: Workspace, config: PipelineConfig, chosen: cross_validation.CrossValidationResult
) -> history.History:
    if len(config.data.histories) == 1:
        return history.choose_history(work, config, chosen)
    with step("choose history", work.path) as told:
        found = history.choose_history(work, config, chosen)
        told.note = f"{found}, best of {len(found.trials)} on {found.rows:,} recent rows"
    rows = [
        {
            "window": format_duration(one.window),
            "half-life": format_duration(one.half_life) if one.half_life else "none",
            "detrend": format_duration(one.detrend) if one.detrend else "none",
            "rows": one.rows,
            found.metric: one.failed or f"{one.value:.4g}",
        }
        for one in found.trials
    ]
    artifacts.table(rows, key=f"{config.name}-history", description=told.note)
    return found


@cached_task("fit")
def fit(
    work: Workspace,
    config: PipelineConfig,
    chosen: cross_validation.CrossValidationResult,
    chosen_history: history.History,
) -> final_fit.FittedModel:
    with step("fit", work.path) as told:
        fitted = final_fit.fit(work, config, chosen, chosen_history)
        told.note = f"{chosen.candidate} on {fitted.rows:,} rows"
    return fitted


@cached_task("refit")
def refit(
    work: Workspace,
    config: PipelineConfig,
    chosen: cross_validation.CrossValidationResult,
    measured: final_fit.FittedModel,
) -> final_fit.FittedModel:
    if not config.refits:
        return measured
    with step("refit", work.path) as told:
        fitted = final_fit.refit(work, config, chosen, measured)
        until, trend = f", up to {fitted.end}" if fitted.end else "", f", {fitted.trend}" if fitted.trend else ""
        told.note = f"{chosen.candidate} on {fitted.rows:,} rows{until}{trend}"
    return fitted


@cached_task("evaluate")
def evaluate(work: Workspace, config: PipelineConfig, fitted: final_fit.FittedModel) -> holdout.Evaluation:
    with step("evaluate", work.path) as told:
        evaluated = holdout.evaluate(work, config, fitted)
        interval = evaluated.metrics[evaluated.primary]
        told.note = f"{evaluated.primary} {interval.text()} on {evaluated.rows:,} unseen rows"
    rows = [
        {"metric": name, "value": interval.text(), "baseline": Interval(value=evaluated.baseline.get(name)).text()}
        for name, interval in evaluated.metrics.items()
    ]
    artifacts.table(rows, key=f"{config.name}-holdout", description=told.note)
    return evaluated


@cached_task("draw")
def draw(
    work: Workspace,
    config: PipelineConfig,
    scores: Sequence[cross_validation.CrossValidationResult],
    evaluated: holdout.Evaluation,
    fitted: final_fit.FittedModel,
) -> tuple[str, ...]:
    with step("draw", work.path) as told:
        names = plots.draw_plots(work, config, scores, evaluated, fitted)
        told.note = f"{len(names)} plots"
    return names
