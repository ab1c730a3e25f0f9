"""Engines run the shards of a job: processes of this machine, a Dask cluster or a Ray cluster."""
