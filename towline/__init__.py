"""towline pulls a tabular model from data to production and keeps it there."""

__version__ = "0.1.0"
