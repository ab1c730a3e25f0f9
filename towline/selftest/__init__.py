"""The self-test: measures on a table what the gate and the drift alarm detect, and how often they are wrong."""
