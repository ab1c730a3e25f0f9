"""Rollouts: the version that answers a row, the comparison of both versions, and the decision."""
