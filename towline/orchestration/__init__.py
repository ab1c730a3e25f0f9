"""Flow runs with Prefect: in this process, scheduled on this machine, or on the workers of a work pool."""
