"""A release behind HTTP: the process, its keys, what it serves, and the application."""
