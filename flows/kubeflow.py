"""The training flow as a pipeline of Kubeflow: the same steps in the same order, each in its own container.

`towline export kubeflow CONFIG` compiles it. Candidates are cross-validated in parallel.
"""

from towline.config import PipelineConfig
from towline.platforms.kubeflow import PipelineStep
from towline.training.model_selection.cross_validation import baseline_candidate


def training_pipeline(config: PipelineConfig) -> tuple[PipelineStep, ...]:
    """The steps of a training of this config."""
    data = ("load", "validate", "split")
    steps = [
        PipelineStep(name="load", function="load", artifact="Dataset", parameters=("config", "as_of", "force")),
        PipelineStep(name="validate", function="validate", inputs=("load",)),
        PipelineStep(name="split", function="split", inputs=("load", "validate")),
    ]
    singles = (baseline_candidate(config), *config.single_candidates)
    scores = tuple(f"cross-validate {candidate.name}" for candidate in singles)
    steps += [PipelineStep(name=name, function="cross_validate", inputs=data) for name in scores]
    for ensemble in config.ensembles:  # each sees the scores of all before it
        name = f"cross-validate {ensemble.name}"
        steps.append(PipelineStep(name=name, function="cross_validate_ensemble", inputs=(*data, *scores)))
        scores += (name,)
    chosen = (*data, *scores, "choose history")
    fitted = (*chosen, "fit", "evaluate", "refit")
    released = (*fitted, "plot", "register", "package")
    return (
        *steps,
        PipelineStep(name="choose history", function="choose_history", inputs=(*data, *scores)),
        PipelineStep(name="fit", function="fit", inputs=chosen, artifact="Model"),
        PipelineStep(name="evaluate", function="evaluate", inputs=(*chosen, "fit"), artifact="Metrics"),
        PipelineStep(name="refit", function="refit", inputs=(*chosen, "fit"), artifact="Model"),
        PipelineStep(name="plot", function="plot", inputs=fitted),
        PipelineStep(name="register", function="register", inputs=(*fitted, "plot")),
        PipelineStep(name="package", function="package", inputs=(*fitted, "plot", "register"), artifact="Model"),
        PipelineStep(name="smoke test", function="smoke_test", inputs=released),
        PipelineStep(name="gate", function="apply_gate", inputs=(*released, "smoke test")),
        PipelineStep(name="decide promotion", function="decide_promotion", inputs=(*released, "smoke test", "gate")),
    )
