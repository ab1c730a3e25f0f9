"""Detects the meaning of the columns of an unknown table: notation, kind, time column, task."""
