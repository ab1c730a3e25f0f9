"""The HTTP service of a model: processes, API keys, model reloading and the application."""
