"""Which versions exist, and which of them serves."""
