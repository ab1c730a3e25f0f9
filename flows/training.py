"""Training: from a table to a model that serves, or a recorded refusal."""

from datetime import datetime
from typing import Literal

from prefect import flow

from tasks.data import load, split, validate
from tasks.registry import conclude, mirror, register
from tasks.release import build_image, judge, package, smoke_test
from tasks.training import choose_history, cross_validate, draw, evaluate, fit, refit
from towline.config import ConfigOrPath, Settings
from towline.orchestration.end_states import training_end_state
from towline.promotion.outcome import Outcome, find_finished, provenance
from towline.release.smoke_test import start_tester
from towline.training.config_checks import check_config
from towline.training.cross_validation import baseline_candidate, check_candidates, choose_candidate


@flow(name="training", flow_run_name="{config.name}")
@training_end_state
def training_flow(
    config: ConfigOrPath,
    as_of: datetime | None = None,
    force: bool = False,
    trigger: Literal["manual", "schedule", "drift", "quality", "slo"] = "manual",
) -> Outcome:
    """Trains, judges and promotes one model; a run that was done before is not done again.

    Args:
        config: what to do; or the path of a config in the project.
        as_of: rows after it do not exist for this run; default: all rows count.
        force: run again although an identical run has finished.
        trigger: why this run was started; recorded with it.

    Raises:
        ConfigError: the config names what cannot be used; no data was loaded.
        DataValidationError: the table breaks its contract; nothing is registered.
        TransientError: a store stayed away through the retries; the same command resumes.
    """
    settings = Settings.from_environment()
    check_config(config)
    work = load(config, settings, as_of, force)
    with work.exclusive_lock():
        if done := find_finished(settings, config, work):
            return done
        facts = provenance(settings, work, config, as_of=as_of, trigger=trigger)
        validation = validate(work, config, settings)
        check_candidates(config, work.contract())
        parts = split(work, config)
        scores = [
            cross_validate(work, config, candidate) for candidate in (baseline_candidate(config), *config.candidates)
        ]
        chosen = choose_candidate(scores, config, work.contract().task)
        history = choose_history(work, config, chosen)
        measured = fit(work, config, chosen, history)
        evaluation = evaluate(work, config, measured)
        fitted = refit(work, config, chosen, measured)
        with start_tester() as tester:
            draw(work, config, scores, evaluation, fitted)
            version = register(work, config, settings, scores, chosen, fitted, evaluation, validation, facts)
            packed = package(work, config, settings, version, scores, fitted, evaluation, validation, facts)
            tried = smoke_test(work, packed, tester)
        verdict = judge(work, config, settings, evaluation, tried)
        if config.package.image and verdict.outcome == "pass":
            verdict = build_image(work, config, settings, version, packed, verdict, facts)
        entry = conclude(work, config, settings, version, packed, verdict, facts)
        note = mirror(work, settings, version, packed, verdict)
        outcome = Outcome.of(
            work, entry, validation, parts, scores, chosen, evaluation, verdict, version.link, version.run_id, note
        )
        work.remove()
        return outcome
