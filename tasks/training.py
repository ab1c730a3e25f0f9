"""Tasks of training: cross-validate, choose the history, fit, evaluate, refit, plot."""

from tasks import artifacts, cached_task, retrying_task
from towline.config import Candidate, PipelineConfig, Settings, TrainingConfig, format_duration
from towline.data.workspace import Workspace
from towline.steps import step
from towline.training import final_fit, history, plots
from towline.training.behaviour import behaviour_suite
from towline.training.behaviour.results import BehaviourCheck
from towline.training.evaluation import holdout
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.predictions import Interval
from towline.training.model_selection import budget, cross_validation, ensembles, reference_model
from towline.training.result import TrainingResult


@cached_task("plan fits")
def plan_fits(work: Workspace, config: TrainingConfig) -> budget.BudgetLimits:
    if not budget.find_slow_candidates(work, config):
        return budget.BudgetLimits()
    with step("plan fits", work.path) as progress:
        limits = budget.plan_fits(work, config)
        progress.note = str(limits)
    return limits


@cached_task("cross-validate", task_run_name="cross-validate {candidate.name}", ignored_input="settings")
def cross_validate(
    work: Workspace,
    config: TrainingConfig,
    candidate: Candidate,
    limits: budget.BudgetLimits,
    settings: Settings | None = None,
) -> cross_validation.CrossValidationResult:
    with step(f"cross-validate {candidate.name}", work.path) as progress:
        scores = cross_validation.cross_validate(work, config, candidate, limits, settings)
        progress.note = _describe_scores(scores, work, config)
    _show_folds(scores, config, progress.note)
    return scores


@cached_task("cross-validate ensemble", task_run_name="cross-validate {ensemble.name}")
def cross_validate_ensemble(
    work: Workspace,
    config: TrainingConfig,
    ensemble: Candidate,
    scores: tuple[cross_validation.CrossValidationResult, ...],
    limits: budget.BudgetLimits,
) -> cross_validation.CrossValidationResult:
    with step(f"cross-validate {ensemble.name}", work.path) as progress:
        combined = ensembles.cross_validate_ensemble(work, config, ensemble, scores, limits)
        progress.note = _describe_scores(combined, work, config)
        if not combined.failed:
            weights = combined.params["weights"].items()
            progress.note += f", {' + '.join(f'{weight:.0%} {name}' for name, weight in weights)}"
    _show_folds(combined, config, progress.note)
    return combined


def _describe_scores(scores: cross_validation.CrossValidationResult, work: Workspace, config: TrainingConfig) -> str:
    if scores.failed:
        return f"not fitted: {scores.failed}"
    metric = primary_metric(config, work.contract().task)
    note = f"{metric} {scores.mean[metric]:.4g} ± {scores.sd[metric]:.2g}"
    if scores.rows < scores.rows_available:
        note += f", fitted on {scores.rows:,} of {scores.rows_available:,} rows"
    return note


def _show_folds(scores: cross_validation.CrossValidationResult, config: TrainingConfig, note: str) -> None:
    rows = [
        {"fold": number, **{name: f"{value:.4g}" for name, value in fold.items()}}
        for number, fold in enumerate(scores.folds, 1)
    ]
    description = f"{scores.candidate}, fold by fold: {note}"
    artifacts.table(rows, key=f"{config.name}-cross-validation", description=description)


@cached_task("compare with boosting")
def compare_with_reference(
    work: Workspace,
    config: TrainingConfig,
    scores: tuple[cross_validation.CrossValidationResult, ...],
    chosen: cross_validation.CrossValidationResult,
) -> reference_model.ReferenceComparison | None:
    if not reference_model.is_comparison_needed(scores, config):
        return None
    with step("compare with boosting", work.path) as progress:
        comparison = reference_model.compare_with_reference(work, config, scores, chosen)
        progress.note = str(comparison)
    return comparison


@cached_task("choose history")
def choose_history(
    work: Workspace, config: TrainingConfig, chosen: cross_validation.CrossValidationResult
) -> history.History:
    if len(config.data.histories) == 1:
        return history.choose_history(work, config, chosen)
    with step("choose history", work.path) as progress:
        best = history.choose_history(work, config, chosen)
        progress.note = f"{best}, best of {len(best.trials)} on {best.rows:,} recent rows"
    rows = [
        {
            "window": format_duration(trial.window),
            "half-life": format_duration(trial.half_life) if trial.half_life else "none",
            "detrend": format_duration(trial.detrend) if trial.detrend else "none",
            "rows": trial.rows,
            best.metric: trial.failed or f"{trial.value:.4g}",
        }
        for trial in best.trials
    ]
    artifacts.table(rows, key=f"{config.name}-history", description=progress.note)
    return best


@cached_task("fit")
def fit(
    work: Workspace,
    config: TrainingConfig,
    chosen: cross_validation.CrossValidationResult,
    chosen_history: history.History,
) -> final_fit.FittedModel:
    with step("fit", work.path) as progress:
        model = final_fit.fit(work, config, chosen, chosen_history)
        progress.note = f"{chosen.candidate} on {model.rows:,} rows"
    return model


@cached_task("evaluate")
def evaluate(work: Workspace, config: TrainingConfig, model: final_fit.FittedModel) -> holdout.Evaluation:
    with step("evaluate", work.path) as progress:
        evaluation = holdout.evaluate(work, config, model)
        interval = evaluation.metrics[evaluation.primary]
        progress.note = f"{evaluation.primary} {interval.text()} on {evaluation.rows:,} unseen rows"
        if evaluation.calibration:
            progress.note += f"; {evaluation.calibration}"
    rows = [
        {"metric": name, "value": interval.text(), "baseline": Interval(value=evaluation.baseline.get(name)).text()}
        for name, interval in evaluation.metrics.items()
    ]
    artifacts.table(rows, key=f"{config.name}-holdout", description=progress.note)
    return evaluation


@cached_task("refit")
def refit(
    work: Workspace,
    config: TrainingConfig,
    chosen: cross_validation.CrossValidationResult,
    evaluated: final_fit.FittedModel,
) -> final_fit.FittedModel:
    if not config.refits:
        return evaluated
    with step("refit", work.path) as progress:
        model = final_fit.refit(work, config, chosen, evaluated)
        until, trend = f", up to {model.end}" if model.end else "", f", {model.trend}" if model.trend else ""
        progress.note = f"{chosen.candidate} on {model.rows:,} rows{until}{trend}"
    return model


@retrying_task("test behaviour")
def check_behaviour(
    work: Workspace, config: PipelineConfig, settings: Settings, model: final_fit.FittedModel
) -> tuple[BehaviourCheck, ...]:
    """Not cached: a file of known cases may have changed."""
    if config.behaviour.is_empty:
        return ()
    with step("test behaviour", work.path) as progress:
        checks = behaviour_suite.run_behaviour_tests(work, config, model, settings.project)
        passed = sum(check.outcome == "pass" for check in checks)
        progress.note = f"{passed} of {len(checks)} checks passed"
    rows = [check.model_dump() for check in checks]
    artifacts.table(rows, key=f"{config.name}-behaviour", description=progress.note)
    return checks


@cached_task("plot")
def plot(work: Workspace, config: TrainingConfig, result: TrainingResult) -> tuple[str, ...]:
    with step("plot", work.path) as progress:
        names = plots.draw_plots(work, config, result)
        progress.note = f"{len(names)} plots"
    return names
