"""Reports of monitoring runs: Evidently reports and Prometheus metrics."""
