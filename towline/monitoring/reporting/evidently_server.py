"""Evidently's web interface: ``python -m towline.monitoring.reporting.evidently_server PORT``."""

import sys
from collections.abc import Sequence


def main(words: Sequence[str]) -> None:
    from towline.config import Settings
    from towline.monitoring.reporting.evidently_workspace import serve

    serve(Settings.from_environment(), int(words[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
