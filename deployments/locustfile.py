"""Load on a service, with Locust's own screen or without.

    TOWLINE_API_KEY=... locust --locustfile deployments/locustfile.py --host http://127.0.0.1:8080
    TOWLINE_API_KEY=... locust --locustfile deployments/locustfile.py --host http://127.0.0.1:8080 \\
        --headless --users 50 --spawn-rate 10 --run-time 5m --html load.html

The service describes its rows, so this works with any model. It needs towline[loadtest]. `towline loadtest` runs the
same users, or sends requests at a fixed rate, and writes a report.
"""

from towline.operations.loadtest.generator import ClosedLoopUser

__all__ = ["ClosedLoopUser"]
