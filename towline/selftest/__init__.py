"""The self-test: measures on a table what gate, alarms and verdicts detect, and how often they are wrong."""
