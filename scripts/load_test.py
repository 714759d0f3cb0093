"""Load a service with many clients on loopback: latency, throughput, refusals, memory.

Starts scripts/serve.py on the run and asks for lists, predictions and reasons: one client, many,
too many, many again. Then checks that no answer depends on what else is asked.
"""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bst.utils.guard import command
from scripts.support.flags import RunFolder


@dataclass(frozen=True)
class Args:
    """Load a service."""

    model: RunFolder
    """run folder"""
    clients: int = 64
    """connections that each ask again as soon as they have an answer"""
    seconds: float = 20.0
    """length of each part"""
    json: Path | None = None
    """also write the numbers to this file"""


def measure(port: int, args: Args) -> dict:
    """All parts, printed as they end."""
    from scripts.benchmarks.common import hardware
    from scripts.benchmarks.load import Load, person

    about = json.loads(Load(port, []).once(("/readyz", None)))
    known = json.loads(Load(port, []).once(("/movies?k=100", None)))["items"]
    films = [film["movie_id"] for film in known]
    load = Load(port, [person(films, about["stars"], number) for number in range(512)])
    load.part(args.clients, args.seconds / 2)  # warm-up
    found = {"hardware": hardware(), "load_average": [os.getloadavg()[0]],
             "model": about["model"], "movies": about["movies"]}
    for name, clients in (("one", 1), ("many", args.clients), ("too many", 3 * args.clients),
                          ("many again", args.clients)):
        found[name] = load.part(clients, args.seconds)
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    found["equal"] = load.equal()
    found["load_average"].append(os.getloadavg()[0])  # of the machine: others at work on it
    print(f"equal: {json.dumps(found['equal'])}")
    return found


def main(args: Args) -> None:
    """Start the service, measure, stop it."""
    script = Path(__file__).with_name("serve.py")
    service = subprocess.Popen([sys.executable, script, "--run", args.model, "--port", "0"],
                               stdout=subprocess.PIPE, text=True)
    try:
        line = service.stdout.readline()
        if not line:
            sys.exit(service.wait())  # it has said why
        found = measure(int(line.rpartition(":")[2]), args)
    finally:
        service.terminate()
        service.wait()
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    command(main, Args, __doc__)
