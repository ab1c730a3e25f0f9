"""A project of one's own: its files, a config proposed from a table, a profile of a table, and checks of a setup."""
