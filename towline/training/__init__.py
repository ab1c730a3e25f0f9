"""Training: cross-validation, selection, fits and evaluation of models."""
