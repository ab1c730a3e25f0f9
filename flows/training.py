"""The training flow: from a table to a model in service, or to a recorded rejection."""

from datetime import datetime

from prefect import flow

from tasks.data import load, split, validate
from tasks.registry import decide_promotion, register, update_mlflow
from tasks.release import apply_gate, build_image, package, smoke_test
from tasks.rollout import begin_rollout
from tasks.training import (
    check_behaviour,
    choose_history,
    compare_with_reference,
    cross_validate,
    cross_validate_ensemble,
    evaluate,
    fit,
    plan_fits,
    plot,
    refit,
)
from towline.config import ConfigOrPath, PipelineConfig, Settings
from towline.config.monitoring import RunTrigger
from towline.orchestration.end_states import training_end_state
from towline.promotion.outcome import Outcome, find_finished, record_run_end, summarize
from towline.release.smoke_test import start_tester
from towline.training.behaviour.behaviour_suite import check_files, check_with_contract
from towline.training.model_selection.config_checks import check_config
from towline.training.model_selection.cross_validation import baseline_candidate, check_candidates, choose_candidate
from towline.training.result import TrainingResult


@flow(name="training", flow_run_name="{config.name}")
@training_end_state
def training_flow(
    config: ConfigOrPath,
    as_of: datetime | None = None,
    force: bool = False,
    trigger: RunTrigger = "manual",
) -> Outcome:
    """Trains one model and promotes it if it passes the gate; a run that has finished is not repeated.

    Args:
        config: the pipeline's config, or its path in the project.
        as_of: ignore later rows; default: use all rows.
        force: run again although an identical run has finished.
        trigger: why this run was started; recorded with it.

    Raises:
        ConfigError: the config cannot be used; no data was loaded.
        DataValidationError: the table breaks its contract; nothing is registered.
        TransientError: a store was unavailable during all retries; the same command resumes the run.
    """
    settings = Settings.from_environment()
    check_config(config)
    check_files(config.behaviour, settings.project)
    run = load(config, settings, as_of, force, trigger)
    work, provenance, training = run.work, run.provenance, config.training
    with work.exclusive_lock(), record_run_end(settings, config.name):
        if outcome := find_finished(settings, config.name, work, provenance.run_key):
            work.end_run(provenance.run_key, keep_fits=_are_fits_kept(outcome, config))
            return outcome
        validation = validate(work, training, config.validation, run.champion_contract, settings)
        check_candidates(config, work.contract())
        check_with_contract(config, work, settings.project)
        sizes = split(work, training)
        candidates = (baseline_candidate(training), *training.single_candidates)
        limits = plan_fits(work, training)
        scores = tuple(cross_validate(work, training, candidate, limits, settings) for candidate in candidates)
        scores += tuple(cross_validate_ensemble(work, training, each, scores, limits) for each in training.ensembles)
        chosen = choose_candidate(scores, training, work.contract().task)
        comparison = compare_with_reference(work, training, scores, chosen)
        history = choose_history(work, training, chosen)
        evaluated = fit(work, training, chosen, history)
        evaluation = evaluate(work, training, evaluated)
        model = refit(work, training, chosen, evaluated)
        result = TrainingResult(
            candidates=scores,
            model=model,
            evaluation=evaluation,
            validation=validation,
            behaviour=check_behaviour(work, config, settings, model),
            comparison=comparison,
        )
        with start_tester() as tester:
            plot(work, training, result)
            version = register(work, config, settings, result, provenance)
            release = package(work, config, version.version, result, provenance)
            smoke = smoke_test(work, release, tester)
        verdict = apply_gate(work, config, settings, result, smoke, provenance.run_key)
        if config.package.image and verdict.outcome == "pass":
            verdict = build_image(work, config, settings, version, release, verdict, provenance)
        entry = decide_promotion(config, settings, version, release, verdict, provenance)
        note = update_mlflow(work, settings, version, release, verdict)
        if entry.event == "passed" and config.approval is None:  # else the last approval begins the rollout
            note = " ".join(filter(None, (begin_rollout(config, settings, entry), note)))
        outcome = summarize(
            entry,
            work,
            sizes,
            result,
            run_key=provenance.run_key,
            verdict=verdict,
            link=version.link,
            run_id=version.run_id,
            note=note,
        )
        work.end_run(provenance.run_key, keep_fits=_are_fits_kept(outcome, config))
        return outcome


def _are_fits_kept(outcome: Outcome, config: PipelineConfig) -> bool:
    """A rejected version may pass another gate; that run reuses the fits."""
    return outcome.event == "refused" and config.data.keep_snapshot
