"""Data validation with Great Expectations: the table against its contract and expectations."""
