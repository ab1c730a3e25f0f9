"""History lived through again: what a policy of retraining would have come to."""
