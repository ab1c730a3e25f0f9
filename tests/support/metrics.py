"""Functions that parse Prometheus metrics."""

from prometheus_client.parser import text_string_to_metric_families

from tests.support.sample_store import MODEL

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse_samples(text: str) -> Samples:
    """The samples of a service by name and labels, without the label of the worker."""
    return {
        (sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "worker"))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample_value(samples: Samples, metric: str, **labels: str) -> float:
    """The value of a metric of towline; 0 if the metric does not exist."""
    return samples.get((f"towline_{metric}", tuple(sorted(labels.items()))), 0.0)


def parse_gauges(text: str) -> dict[tuple[str, ...], float]:
    """The metrics of monitoring by name and label values; the model is first unless it is the sample store's."""
    return {
        (sample.name.removeprefix("towline_"), *(v for k, v in sample.labels.items() if (k, v) != ("model", MODEL))): (
            sample.value
        )
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
