"""Runs of flows with Prefect: local, remote, scheduled; their end states and crash detection."""
