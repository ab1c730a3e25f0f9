"""Evidently's web interface over the nights of the watch: ``python -m towline.cli.evidently_server PORT``."""

import sys
from collections.abc import Sequence


def main(words: Sequence[str]) -> None:
    from towline.config import Settings
    from towline.monitoring.report_server import serve

    serve(Settings.from_environment(), int(words[0]))


if __name__ == "__main__":
    main(sys.argv[1:])
