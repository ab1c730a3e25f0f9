"""Request and response formats of the service."""
