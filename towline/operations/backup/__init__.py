"""Backups of a whole store in one file, and their restoration."""
