"""Behaviour tests: tests of the prediction function that the config declares; each is a check of the gate."""
