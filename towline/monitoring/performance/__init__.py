"""Model performance in production: measured on labels, or estimated without them."""
