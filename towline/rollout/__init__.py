"""Rollouts: which version answers a row, what the versions' answers are worth, and what follows from it."""
