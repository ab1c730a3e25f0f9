"""From rows to a model, and whether it is good enough."""
