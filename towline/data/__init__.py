"""From a source to rows a model may learn from."""
