"""Model performance in production: from labels where there are any, estimated where not."""
