"""Load a service with many clients on loopback: latency, throughput, refusals, memory.

Starts scripts/serve.py on the run and asks for lists, predictions and reasons that nobody has asked
for before: one client, many, too many; then many ask what is in the cache, and a soak follows.
At the end it checks that no answer depends on what else is asked.
"""

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.support.command import command
from scripts.support.flags import CORES, RunFolder


@dataclass(frozen=True)
class Args:
    """Load a service."""

    run: RunFolder
    """run folder"""
    clients: int = 64
    """connections that each ask again as soon as they have an answer"""
    seconds: float = 20.0
    """length of each part"""
    minutes: float = 1.0
    """length of the soak, whose memory is printed each minute"""
    workers: int = CORES
    """processes of the service"""
    json: Path | None = None
    """also write the numbers to this file"""


def measure(port: int, pid: int, args: Args) -> dict:
    """All parts, printed as they end."""
    from scripts.benchmarks.common import hardware
    from scripts.benchmarks.load import Load

    load, before = Load(port, pid), os.getloadavg()[0]
    load.part(args.clients, args.seconds / 2)  # warm-up
    found = {"hardware": hardware(), "workers": len(load.processes()) - 1,
             "model": load.about["model"], "movies": load.about["movies"]}
    minutes = [(f"minute {k + 1}", args.clients, min(60, 60 * args.minutes), 0)
               for k in range(math.ceil(args.minutes))]
    for name, clients, seconds, known in (
            ("one", 1, args.seconds, 0), ("many", args.clients, args.seconds, 0),
            ("too many", 128 * found["workers"], args.seconds, 0),
            ("known", args.clients, args.seconds, 64), *minutes):
        found[name] = load.part(clients, seconds, known=known)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    found["equal"] = load.equal()
    print(f"equal: {json.dumps(found['equal'])}")
    return found | {"load_average": [before, os.getloadavg()[0]]}  # others at work on the machine


def main(args: Args) -> None:
    """Start the service, measure, stop it."""
    words = [sys.executable, Path(__file__).with_name("serve.py"), "--run", args.run,
             "--port", "0", "--workers", str(args.workers)]
    service = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    try:
        line = service.stdout.readline()
        if not line:
            sys.exit(service.wait())  # it has said why
        found = json.dumps(measure(int(line.rpartition(":")[2]), service.pid, args), indent=1)
    finally:
        service.terminate()
        service.wait()
    if args.json is not None:
        args.json.write_text(found + "\n")


if __name__ == "__main__":
    command(main, Args, __doc__)
