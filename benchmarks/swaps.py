"""Changes the champion under constant load, then compares every response with the version that it names.

    python benchmarks/swaps.py --swaps 100

Two versions of a model are trained, one is served, and clients send requests without a pause while the other one is
promoted and rolled back. Each response is stored with its request id, its version and its rows. Afterwards each of the
two releases predicts the same rows: a response that differs from the predictions of its version is wrong.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.load import RecordingLoad, swap_champions
from tests.support.serve_process import ServeProcess
from tests.support.store_commands import MODEL, StoreCommands, write_bike_config
from towline.operations import servers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="towline swaps ") as folder:
        commands = StoreCommands(Path(folder) / "store", write_bike_config(Path(folder)))
        try:
            for candidate in ("linear", "{estimator: boosting, params: {max_iter: 60}}"):
                code, _, err = commands.run("--set", f"candidates=[{candidate}]")
                if code:
                    raise SystemExit(err)
        finally:
            servers.stop(commands.settings)
        releases = {row.version: commands.store / row.release for row in commands.ledger.versions(MODEL)}
        commands.ledger.rollback(MODEL, "swaps", "begin with the older")
        pool = json.loads((releases[1] / "probe.json").read_bytes())["rows"]
        with ServeProcess(commands.settings, MODEL, "--workers", str(given.workers)) as serving:
            load, delays, memory = RecordingLoad(serving.port, pool), [], [serving.memory()]
            asyncio.run(
                load.run(
                    given.callers, lambda: delays.extend(swap_champions(commands.ledger, MODEL, load, given.swaps, 2))
                )
            )
            memory.append(serving.memory())
            code = serving.stop()
        wrong = load.find_wrong_predictions(releases)
        latency = sorted(answer.ended - answer.started for answer in load.answers)
        versions = Counter(answer.version for answer in load.answers)
        for name, value in (
            ("requests answered", f"{len(load.answers):,}"),
            ("by version", ", ".join(f"{version}: {count:,}" for version, count in sorted(versions.items()))),
            ("failures", len(load.failures)),
            ("swaps", len(delays)),
            ("wrong predictions", len(wrong)),
            ("picked up after, median", f"{sorted(delays)[len(delays) // 2]:.2f} s"),
            ("picked up after, at most", f"{max(delays):.2f} s"),
            ("longest gap without an answer", f"{load.longest_gap() * 1e3:.0f} ms"),
            ("latency, median", f"{latency[len(latency) // 2] * 1e3:.1f} ms"),
            ("latency, p99", f"{latency[len(latency) * 99 // 100] * 1e3:.1f} ms"),
            ("memory, before and after", " and ".join(f"{size:.0f} MiB" for size in memory)),
            ("exit code of the service", code),
        ):
            print(f"{name:<32}{value:>24}")
        for problem in (*load.failures[:10], *wrong[:10]):
            print(problem, file=sys.stderr)


if __name__ == "__main__":
    main()
