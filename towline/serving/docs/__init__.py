"""API documentation of a service: the OpenAPI document and the page at /docs."""
