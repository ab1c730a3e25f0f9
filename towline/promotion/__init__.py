"""Promotion: the gate's checks, the verdict, and the outcome of a run."""
