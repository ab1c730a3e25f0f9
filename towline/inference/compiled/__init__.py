"""The compiled scorer: a fitted pipeline as NumPy tables, with proof of equal predictions."""
