"""Inputs of batch scoring: files, their shards, and the rows of a shard as canonical columns."""
