"""The source of a dataset: reads files, databases and tables in memory, and writes the snapshot."""
