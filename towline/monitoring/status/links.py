"""Addresses of the other web interfaces, for the status page."""

import uuid
from collections.abc import Mapping

from towline.config import Frozen
from towline.registry.mlflow import links


class Links(Frozen):
    """Addresses of the web interfaces; empty if one does not run.

    Attributes:
        prefect, mlflow, evidently: addresses without a final slash.
        experiments: MLflow's experiment id by model, as far as known.
    """

    prefect: str = ""
    mlflow: str = ""
    evidently: str = ""
    experiments: Mapping[str, str] = {}

    def interfaces(self) -> dict[str, str]:
        """Title → first page of each interface."""
        pages = {"Runs in Prefect": self.prefect and f"{self.prefect}/runs"}
        pages["Models in MLflow"] = self.mlflow and f"{self.mlflow}/{links.models()}"
        pages["Drift in Evidently"] = self.evidently
        return {title: address for title, address in pages.items() if address}

    def flow_run(self, run_id: str) -> str:
        return f"{self.prefect}/runs/flow-run/{run_id}" if self.prefect and run_id else ""

    def model(self, name: str) -> str:
        return f"{self.mlflow}/{links.model(name)}" if self.mlflow else ""

    def version(self, name: str, version: int) -> str:
        return f"{self.mlflow}/{links.version(name, version)}" if self.mlflow else ""

    def trainings(self, name: str) -> str:
        return f"{self.mlflow}/{links.runs(self.experiments[name])}" if self.mlflow and name in self.experiments else ""

    def drift_windows(self, name: str) -> str:
        return f"{self.evidently}/projects/{evidently_project(name)}" if self.evidently else ""


def evidently_project(model: str) -> uuid.UUID:
    """The id of a model's project in Evidently's workspace."""
    return uuid.uuid5(uuid.NAMESPACE_URL, f"towline:{model}")
