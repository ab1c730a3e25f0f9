"""Links to pages of MLflow's web interface; without ``workflowType`` MLflow opens its views for language models."""

from urllib.parse import quote

KIND = {"mlflow.experimentKind": "custom_model_development"}
VIEW = "towline"  # the saved view of an experiment with its metrics; MLflow's own view shows no metric
_CLASSIC = "workflowType=machine_learning"


def models() -> str:
    """All registered models."""
    return f"#/models?{_CLASSIC}"


def model(name: str) -> str:
    """A registered model with its versions."""
    return f"#/models/{quote(name)}?{_CLASSIC}"


def version(name: str, number: int) -> str:
    """One version of a model."""
    return f"#/models/{quote(name)}/versions/{number}?{_CLASSIC}"


def runs(experiment_id: str) -> str:
    """The runs of an experiment with the columns of ``VIEW``."""
    return f"#/experiments/{quote(experiment_id)}/runs?viewStateShareKey={VIEW}&{_CLASSIC}"
