"""How long `kv get` takes on the command line, from the shell's fork to its exit.

Starts a one-node cluster, so the time is interpreter, imports, connection and one read; the floor
(`python -c pass`) is measured beside it.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter

import stores


def times_ms(command: Sequence[str], runs: int) -> list[float]:
    """Wall time of each of `runs` runs, in milliseconds, sorted; the first one (cold caches) is left out."""
    took = []
    for _ in range(runs + 1):
        began = perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        took.append((perf_counter() - began) * 1000)
    return sorted(took[1:])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=21)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, stores.ours(Path(folder), nodes=1) as target:
        url = f"kv://{target.addresses[0]}"
        subprocess.run(stores.kv("--url", url, "set", "k", "v"), check=True, stdout=subprocess.DEVNULL)
        for name, command in {
            "python -c pass": [sys.executable, "-c", "pass"],
            "kv --version": stores.kv("--version"),
            "kv get": stores.kv("--url", url, "get", "k"),
        }.items():
            took = times_ms(command, options.runs)
            middle, first, last = statistics.median(took), took[0], took[-1]
            print(f"{name:16} median {middle:6.1f} ms   fastest {first:6.1f}   slowest {last:6.1f}")


if __name__ == "__main__":
    main()
