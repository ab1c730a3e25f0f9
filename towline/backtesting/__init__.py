"""Backtests of retraining policies on historical data."""
