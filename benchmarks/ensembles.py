"""The gain and the cost of an ensemble of the default candidates on real tables.

Usage: ensembles.py TABLES LABELS [--draw 30] [--seed 5] [--max-rows 40000] [--results FILE.jsonl]

TABLES is a folder of CSV files, LABELS a CSV file with the columns table and target (a slash in a name is a hyphen in
the file name). For a seeded draw of the tables, the config is the one that `towline init` proposes: candidates linear,
forest and boosting. They are cross-validated on the train part, and an ensemble of them is added. Then the best single
candidate and the ensemble are fitted on the train part, compiled, and scored on the holdout.

Printed for each table: the cross-validated and the holdout score of both, the selected one, seconds of
the fit, bytes of the compiled plan, and the median microseconds to predict one row. Then the gain on the holdout if an
ensemble is selected where it is better by more than some number of standard errors, for several numbers.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from towline.config import GREATER_IS_BETTER, Candidate, PipelineConfig, Settings
from towline.data import splits
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.schema.rows import RowReader
from towline.data.source import sources
from towline.data.workspace import Workspace, open_workspace
from towline.errors import TowlineError
from towline.inference.compiled import codec, parity
from towline.inference.compiled.scorer import CompiledScorer
from towline.project.config_text import parse_config
from towline.project.initialization import TableReader
from towline.training import model_io
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.final_fit import fit
from towline.training.model_selection.cross_validation import (
    CrossValidationResult,
    baseline_candidate,
    choose_candidate,
    cross_validate,
)
from towline.training.model_selection.ensembles import cross_validate_ensemble

ENSEMBLE = Candidate(estimator="ensemble", name="ensemble")
SINGLE = tuple(Candidate(estimator=name, name=name) for name in ("linear", "forest", "boosting"))


def propose(path: Path, target: str, settings: Settings) -> PipelineConfig:
    """The config of `towline init`, with an ensemble of its candidates."""
    reader = TableReader(str(path), None, settings)
    try:
        config = parse_config(reader.propose(target, None, None))
    finally:
        reader.close()
    return config.model_copy(update={"candidates": (*SINGLE, ENSEMBLE)})


def prepare(config: PipelineConfig, settings: Settings) -> Workspace:
    dataset = sources.load_dataset(config.data, settings.project, settings.store, None)
    work = open_workspace(config, dataset, settings.project, settings.store, None)
    work.save(Contract.FILE, infer_contract(work.table(), config, dataset.formats))
    splits.split_table(work, config)
    return work


def measure_model(work: Workspace, config: PipelineConfig, chosen: CrossValidationResult) -> dict[str, Any]:
    """Fits and compiles a candidate; its score on the holdout and its costs."""
    contract, metric = work.contract(), primary_metric(config, work.contract().task)
    started = time.perf_counter()
    fitted = fit(work, config, chosen)
    seconds = time.perf_counter() - started
    model = model_io.load_model(work.file(fitted.file))
    holdout = work.subset("holdout")
    score = compute_metrics(holdout.labels, predict(model, holdout.features, contract), contract)[metric]
    certificate, plan = parity.certify(model, contract, {"train": work.subset("train").features}, config.seed)
    result = {"holdout": score, "fit_s": round(seconds, 2), "compiled": certificate.compiled, "plan": len(plan)}
    if not plan:
        return result | {"reason": certificate.reason}
    path = work.file("plan.npz")
    path.write_bytes(plan)
    scorer = CompiledScorer(codec.read_plan(path), contract, RowReader(contract))
    rows = RowReader(contract).read(_as_rows(holdout.rows.head(100), contract))
    times = []
    for row in [*rows, *rows]:
        begin = time.perf_counter()
        scorer.predict_rows([row])
        times.append(time.perf_counter() - begin)
    return result | {"row_us": round(1e6 * float(np.median(times)))}


def _as_rows(rows: pd.DataFrame, contract: Contract) -> list[dict[str, Any]]:
    features = rows[[column.name for column in contract.input_columns]].astype(object)
    return features.where(features.notna(), None).to_dict("records")  # type: ignore[return-value]


def measure(path: Path, target: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(project=Path(folder), store=Path(folder) / "store", tracking_uri="", ledger_url="")
        config = propose(path, target, settings)
        work = prepare(config, settings)
        task = work.contract().task
        metric, started = primary_metric(config, task), time.perf_counter()
        scores = tuple(cross_validate(work, config, each) for each in (baseline_candidate(config), *SINGLE))
        seconds = time.perf_counter() - started
        ensemble = cross_validate_ensemble(work, config, ENSEMBLE, scores)
        best = choose_candidate(scores, config, task)
        result: dict[str, Any] = {
            "table": path.stem, "rows": work.dataset.rows, "metric": metric, "best": best.candidate,
            "cv_best": best.mean[metric], "cv_s": round(seconds, 1), "ensemble_s": ensemble.seconds,
            "folds_best": [fold.get(metric) for fold in best.folds],
            "baseline": scores[0].mean.get(metric),
            "single": {each.candidate: each.mean.get(metric) for each in scores[1:]},
        }  # fmt: skip
        result["best_model"] = measure_model(work, config, best)
        if ensemble.failed:
            return result | {"failed": ensemble.failed}
        result |= {"cv_ensemble": ensemble.mean[metric], "weights": ensemble.params["weights"]}
        result["folds_ensemble"] = [fold.get(metric) for fold in ensemble.folds]
        result["chosen"] = choose_candidate((*scores, ensemble), config, task).candidate
        return result | {"ensemble_model": measure_model(work, config, ensemble)}


def summarize(results: list[dict[str, Any]]) -> str:
    """The gain of the ensemble on the holdout, by the margin of its selection, and its cost."""
    scored = [each for each in results if "ensemble_model" in each]
    gains = np.array([_holdout_gain(each) for each in scored])
    advantages = np.array([_fold_gain(each) for each in scored])
    lines = [
        f"{len(results)} tables, {len(scored)} with an ensemble; holdout, relative to the best single candidate:",
        "| better in cross-validation by | selected | better | worse | median gain | mean of all, each at most 5 % |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for margin in (-np.inf, -1.0, -0.5, 0.0, 0.5, 1.0):
        chosen = advantages > margin
        own, bounded = gains[chosen], np.where(chosen, gains.clip(-0.05, 0.05), 0.0)
        counts = f"{chosen.sum()} | {(own > 0).sum()} | {(own < 0).sum()}"
        lines.append(f"| > {margin} standard errors | {counts} | {np.median(own):+.2%} | {bounded.mean():+.2%} |")
    costs = {
        name: round(float(np.median([each["ensemble_model"][name] / each["best_model"][name] for each in scored])), 1)
        for name in ("fit_s", "plan", "row_us")
    }
    return "\n".join([*lines, f"cost relative to the best single candidate (median): {costs}"])


def _holdout_gain(result: dict[str, Any]) -> float:
    """The gain of the ensemble on the holdout, relative to the score of the best single candidate."""
    sign = 1 if GREATER_IS_BETTER[result["metric"]] else -1
    score, reference = result["ensemble_model"]["holdout"], result["best_model"]["holdout"]
    return sign * (score - reference) / max(abs(reference), 1e-12)


def _fold_gain(result: dict[str, Any]) -> float:
    """The mean gain of the ensemble over the folds in standard errors."""
    sign = 1 if GREATER_IS_BETTER[result["metric"]] else -1
    gains = sign * (np.array(result["folds_ensemble"], float) - np.array(result["folds_best"], float))
    return float(gains.mean() / max(gains.std(ddof=1) / np.sqrt(len(gains)), 1e-12))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tables", type=Path)
    parser.add_argument("labels", type=Path)
    parser.add_argument("--draw", type=int, default=30)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--max-rows", type=int, default=40_000)
    parser.add_argument("--results", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    stored = arguments.results.read_text().splitlines() if arguments.results and arguments.results.exists() else []
    results = [json.loads(line) for line in stored]
    finished = {each["table"] for each in results}
    labels = pd.read_csv(arguments.labels).sample(frac=1, random_state=arguments.seed)
    for _, label in labels.iterrows():
        path = arguments.tables / f"{label['table'].replace('/', '-')}.csv"
        if len(results) >= arguments.draw:
            break
        if not path.exists() or path.stem in finished or sum(1 for _ in path.open()) > arguments.max_rows:
            continue
        try:
            results.append(measure(path, label["target"]))
        except TowlineError as error:
            print(f"{path.stem}: {error.what}", file=sys.stderr)
            continue
        line = json.dumps(results[-1])
        print(line, flush=True)
        if arguments.results:
            with arguments.results.open("a") as file:
                file.write(line + "\n")
    print(summarize(results))


if __name__ == "__main__":
    main()
