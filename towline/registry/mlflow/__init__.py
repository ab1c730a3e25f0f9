"""MLflow's side of the registry: runs, versions and their synchronization with the ledger."""
