"""Databases as source and output of batch scoring."""
