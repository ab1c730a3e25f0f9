"""Batch scoring: shards of a source are scored independently of each other, and their pieces become the output."""
