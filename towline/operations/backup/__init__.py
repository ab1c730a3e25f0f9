"""Backup and restore of a store with its databases, in one verified archive."""
