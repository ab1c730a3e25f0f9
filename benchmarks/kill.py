"""Kills runs with SIGKILL at random times, repeats the command, and counts the faults in the store.

    python benchmarks/kill.py --kills 60

Every other kill ends the run's own process only, as for lack of memory; the others end its whole process group. A run
is killed one to three times before it may end. The Prefect server of the store keeps running, as for a user.
"""

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.support.store_commands import StoreCommands, wait_for_orphans, write_bike_config
from towline.operations import servers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw = random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="towline kill ") as folder:
        commands = StoreCommands(Path(folder) / "store", write_bike_config(Path(folder)))
        try:
            begin = time.monotonic()
            commands.run("--set", "seed=100000")
            whole = time.monotonic() - begin
            while counts["kills"] < arguments.kills:
                words = ("--set", f"seed={counts['runs']}")
                for _ in range(min(draw.randint(1, 3), arguments.kills - counts["kills"])):
                    moment = time.monotonic() + draw.uniform(0, whole)
                    group = draw.random() < 0.5
                    counts["kills"] += commands.kill_run_when(
                        lambda moment=moment: time.monotonic() > moment, *words, group=group
                    )
                    if not group:
                        counts["orphans after 30 s"] += len(wait_for_orphans(commands))
                begin = time.monotonic()
                code, _, err = commands.run(*words)
                whole = max(whole * 0.9, time.monotonic() - begin)
                counts["runs"] += 1
                if code:
                    counts["reruns that failed"] += 1
                    print(err, file=sys.stderr)
                    continue
                counts["steps skipped on the rerun"] += commands.count_task_states()["Cached"]
                for kind, faults in commands.find_faults().items():
                    counts[kind] += len(faults)
                    for fault in faults:
                        print(f"{kind}: {fault}", file=sys.stderr)
                print(f"{counts['kills']} kills, {counts['runs']} runs", file=sys.stderr, flush=True)
        finally:
            servers.stop(commands.settings)
    for name in (
        "kills",
        "runs",
        "steps skipped on the rerun",
        "reruns that failed",
        *line_kinds(),
        "orphans after 30 s",
    ):
        print(f"{name:<28}{counts[name]:>6}")


def line_kinds() -> tuple[str, ...]:
    return (
        "second versions",
        "champions without a pass",
        "aliases that differ",
        "runs left open",
        "leftovers",
        "unreadable files",
    )


if __name__ == "__main__":
    main()
