"""Releases and trainings on other platforms: MLServer (so KServe and Seldon Core 2), and Kubeflow Pipelines."""
