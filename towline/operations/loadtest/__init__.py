"""Load tests of a service: closed loop with Locust, open loop at a fixed rate."""
