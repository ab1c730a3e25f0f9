"""Expressions: a small SQL-like language in which features of a row are written; docs/features.md describes it."""
