"""Traces and metrics that the service sends: OpenTelemetry by OTLP, and CloudWatch's embedded metric format."""
