"""The DAGs: only the order of the steps and the decisions between them."""
