"""Monitoring: what the log tells of a model that serves."""
