"""Alerts: deduplicated notifications and webhooks."""
