"""The status page of the models."""
