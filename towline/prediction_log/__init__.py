"""The prediction log: the predictions of services, and the ground-truth labels that arrive later."""
