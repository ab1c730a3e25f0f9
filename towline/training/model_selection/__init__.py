"""Selection of a candidate: cross-validation, search of hyperparameters, ensembles, and the time budget."""
