"""Monitoring of a served model: drift, quality, SLOs and alerts."""
