"""Inference: opens a release and predicts single rows, tables or whole files."""
