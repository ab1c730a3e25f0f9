"""Versions of models: the ledger that decides about them, and MLflow that shows them."""
