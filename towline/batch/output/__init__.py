"""Outputs of batch scoring: the piece of each shard, and the assembly of all pieces."""
