"""Addresses of the other web interfaces, for the status page."""

import uuid
from collections.abc import Mapping

from towline.config import Frozen
from towline.registry.mlflow import links


class Links(Frozen):
    """Where the web interfaces answer; empty where one does not.

    Attributes:
        prefect, mlflow, evidently: addresses, without a slash at the end.
        experiments: MLflow's id of the experiment of each model, as far as it is known.
    """

    prefect: str = ""
    mlflow: str = ""
    evidently: str = ""
    experiments: Mapping[str, str] = {}

    def interfaces(self) -> dict[str, str]:
        """What each interface shows → its first page."""
        pages = {"Runs in Prefect": self.prefect and f"{self.prefect}/runs"}
        pages["Models in MLflow"] = self.mlflow and f"{self.mlflow}/{links.models()}"
        pages["Drift in Evidently"] = self.evidently
        return {name: address for name, address in pages.items() if address}

    def run(self, number: str) -> str:
        return f"{self.prefect}/runs/flow-run/{number}" if self.prefect and number else ""

    def model(self, name: str) -> str:
        return f"{self.mlflow}/{links.model(name)}" if self.mlflow else ""

    def version(self, name: str, number: int) -> str:
        return f"{self.mlflow}/{links.version(name, number)}" if self.mlflow else ""

    def trainings(self, name: str) -> str:
        return f"{self.mlflow}/{links.runs(self.experiments[name])}" if self.mlflow and name in self.experiments else ""

    def nights(self, name: str) -> str:
        return f"{self.evidently}/projects/{evidently_project(name)}" if self.evidently else ""


def evidently_project(model: str) -> uuid.UUID:
    """The project of a model in Evidently's workspace."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"towline:{model}")
