"""Service level objectives: scraped metrics, error budgets and burn rates."""
