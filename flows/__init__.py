"""The DAGs: nothing but order and decisions."""
