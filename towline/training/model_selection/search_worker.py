"""A worker evaluates trials of the searches of one config, which a training on this or another machine has started."""

import time
import warnings
from collections.abc import Callable

from towline.config import PipelineConfig, Settings
from towline.errors import ConfigError, TowlineError, TransientError
from towline.provenance import code_digest
from towline.training.model_selection.cross_validation import SharedSearch
from towline.training.model_selection.shared_study import Evaluate, SharedStudy, TrialResult, open_studies
from towline.training.model_selection.tuning import POLL_S

OnTrial = Callable[[str, int, TrialResult], None]


def evaluate_trials(
    settings: Settings,
    config: PipelineConfig,
    on_trial: OnTrial,
    on_refusal: Callable[[TowlineError], None],
    idle: float | None = None,
) -> int:
    """Claims and evaluates trials until it is interrupted; returns the number of evaluated trials.

    A search that this worker cannot help with is reported once: it may be left of an abandoned run.

    Args:
        settings: of the store and of the database in which searches are shared.
        config: must be that of the run.
        on_trial: called after each trial with the name of the candidate, the number and the result.
        on_refusal: called with the reason: the run has another config or other code, or its files are not here.
        idle: seconds without a trial after which the worker ends; default: it waits for the next search.

    Raises:
        ConfigError: no database is named.
        TransientError: the database cannot be used.
        TowlineError: the worker ends without a trial since it could not help with any search.
    """
    if not settings.search_url:
        remedy = "set it to the database of the run, e.g. postgresql://user@host/searches"
        raise ConfigError("no database for shared searches is named", where="TOWLINE_SEARCH_URL", remedy=remedy)
    code = code_digest(config.training, settings.project)
    evaluators: dict[str, tuple[str, Evaluate]] = {}
    refusals: dict[str, TowlineError] = {}
    count, last = 0, time.monotonic()
    while idle is None or time.monotonic() - last < idle:
        evaluated = 0
        for study in open_studies(settings.search_url):
            try:
                search = SharedSearch.model_validate(study.attributes)
                if search.model != config.name or study.name in refusals:
                    continue
                if study.name not in evaluators:
                    if refusal := _find_mismatch(search, config.training.digest, code, settings):
                        refusals[study.name] = refusal
                        on_refusal(refusal)
                        continue
                    evaluators[study.name] = search.candidate.name, search.evaluator(config.training, settings.store)
                evaluated += _evaluate_waiting_trials(study, *evaluators[study.name], on_trial)
            except KeyError:  # the search has ended, and its study was removed
                evaluators.pop(study.name, None)
        count += evaluated
        if evaluated:
            last = time.monotonic()
        else:
            time.sleep(POLL_S)
    if refusals and not count:
        raise next(iter(refusals.values()))
    return count


def _evaluate_waiting_trials(study: SharedStudy, candidate: str, evaluate: Evaluate, on_trial: OnTrial) -> int:
    count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while study.is_open and (trial := study.evaluate_waiting_trial(evaluate)) is not None:
            on_trial(candidate, *trial)
            count += 1
    return count


def _find_mismatch(search: SharedSearch, training: str, code: str, settings: Settings) -> TowlineError | None:
    """Why this worker cannot evaluate trials of a search; None if it can."""
    where = f"the search of {search.model}, candidate {search.candidate.name}"
    if search.training != training:
        remedy = "give the worker the file and the --set options of the run"
        return ConfigError("the run has another config than this worker", where=where, remedy=remedy)
    if search.code != code:
        remedy = "install the same versions of towline and of its libraries, and the same commit of the project"
        return ConfigError("the run has other code than this worker", where=where, remedy=remedy)
    token = search.workspace.model_copy(update={"store": settings.store}).file("token")
    if not token.exists() or token.read_text() != search.workspace.token:
        return TransientError(
            "the files of the run are not in this store",
            where=str(token.parent),
            remedy="share the store's folder with the machine of the run, and name it in TOWLINE_STORE",
        )
    return None
