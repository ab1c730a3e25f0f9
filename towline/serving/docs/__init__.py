"""The service's own API documentation."""
