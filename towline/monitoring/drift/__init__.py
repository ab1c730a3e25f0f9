"""Data drift: the distance of current rows from a release's reference, and thresholds."""
