"""Inference: a release opened for predictions, one row or a whole file."""
