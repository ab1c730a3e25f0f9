"""The prediction log: what services answered, and the ground-truth labels that came later."""
