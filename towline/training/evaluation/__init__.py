"""Metrics of predictions with intervals, overall and by slice."""
