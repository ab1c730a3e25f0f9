"""A model as it is shipped: the folder, its manifest, and what answers from it."""
