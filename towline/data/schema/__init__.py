"""The contract of a table: which columns it has, how their values are read, and what a row must satisfy."""
