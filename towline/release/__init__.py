"""Releases: writes a model as a folder of verified files, and builds container images of it."""
