"""Operation of a store: its servers, backups and load tests."""
