"""Load a service with many clients on loopback: latency, throughput, refusals, memory.

Starts scripts/serve.py on the run and asks for lists, predictions and reasons: one client, many,
too many, many again. Then checks that no answer depends on what else is asked.
"""

import http.client
import json
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tyro

Asked = tuple[str, dict]  # path, body


@dataclass(frozen=True)
class Args:
    """Load a service."""

    model: Path
    """run folder"""
    clients: int = 64
    """connections that each ask again as soon as they have an answer"""
    seconds: float = 20.0
    """length of each part"""
    json: Path | None = None
    """also write the numbers to this file"""


class Client:
    """One connection that is kept open."""

    def __init__(self, port: int) -> None:
        self.line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, path: str, body: dict | None = None) -> tuple[int, bytes]:
        """Status and body of an answer."""
        self.line.request("GET" if body is None else "POST", path,
                          None if body is None else json.dumps(body).encode(),
                          {"content-type": "application/json"})
        answer = self.line.getresponse()
        return answer.status, answer.read()


def person(films: list[int], stars: list[float], number: int) -> list[Asked]:
    """What somebody with 5 to 50 ratings asks; equal numbers, equal requests."""
    rng = random.Random(number)
    seen = rng.sample(films, rng.randint(5, min(50, len(films) - 1)))
    history = [{"movie_id": film, "stars": rng.choice(stars)} for film in seen]
    return [("/recommend", {"history": history}),
            ("/predict", {"history": history, "movies": (films * 64)[:64]}),
            ("/recommend", {"history": history[:5], "reasons": 2})]


def load(port: int, clients: int, seconds: float, people: list[list[Asked]]) -> dict:
    """What the clients saw in that time, and what the service needed for it."""
    end, before = time.perf_counter() + seconds, numbers(port)

    def one(number: int) -> list[tuple[int, float]]:
        client, found = Client(port), []
        while (started := time.perf_counter()) < end:
            mine, k = people[(number + len(found)) % len(people)], len(found)
            status, _ = client.ask(*mine[k % len(mine)])
            found.append((status, time.perf_counter() - started))
        return found

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [pair for part in pool.map(one, range(clients)) for pair in part]
    took, after = time.perf_counter() - started, numbers(port)
    served = sorted(1e3 * spent for status, spent in found if status == 200)
    cpu = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    return {"clients": clients, "seconds": round(took, 1), "served": len(served),
            "per_second": round(len(served) / took, 1),
            "p50_ms": round(served[len(served) // 2], 1),
            "p99_ms": round(served[int(0.99 * (len(served) - 1))], 1),
            "cpu_ms_each": round(1e3 * cpu / len(served), 1),  # refusals are paid by the served
            "status": {str(k): n for k, n in sorted(Counter(s for s, _ in found).items())},
            "rss_mb": round(after["process_resident_memory_bytes"] / 1e6, 1)}


def numbers(port: int) -> dict[str, float]:
    """What /metrics says without labels."""
    text = Client(port).ask("/metrics")[1].decode()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, flags=re.M)}


def compare(port: int, people: list[list[Asked]]) -> dict:
    """Answers of 64 at once against those alone, and films together against films alone."""
    bodies = [asked[1] for asked in people[:64]]
    alone = [Client(port).ask(*body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: Client(port).ask(*body), bodies))
    (path, body), apart = bodies[0], 0.0
    for item in json.loads(alone[0][1])["items"]:
        found = Client(port).ask(path, body | {"movies": [item["movie_id"]]})[1]
        apart = max(apart, abs(json.loads(found)["items"][0]["stars"] - item["stars"]))
    return {"64_at_once_equal_alone": together == alone, "64_films_minus_alone": apart}


def main(args: Args) -> None:
    """Start, load, print."""
    script = Path(__file__).with_name("serve.py")
    service = subprocess.Popen([sys.executable, script, "--model", args.model, "--port", "0"],
                               stdout=subprocess.PIPE, text=True)
    try:
        line = service.stdout.readline()
        if not line:
            sys.exit(service.wait())  # it has said why
        port = int(line.rpartition(":")[2])
        about = json.loads(Client(port).ask("/readyz")[1])
        films = [m["movie_id"] for m in json.loads(Client(port).ask("/movies?k=100")[1])["items"]]
        people = [person(films, about["stars"], number) for number in range(512)]
        load(port, args.clients, args.seconds / 2, people)  # warm-up
        found = {"model": about["model"], "movies": about["movies"],
                 "load_average": [os.getloadavg()[0]]}  # of the machine, before and after
        for name, clients in (("one", 1), ("many", args.clients), ("too many", 3 * args.clients),
                              ("many again", args.clients)):
            found[name] = load(port, clients, args.seconds, people)
            print(f"{name}: {json.dumps(found[name])}", flush=True)
        found["equal"] = compare(port, people)
        found["load_average"].append(os.getloadavg()[0])
        print(f"equal: {json.dumps(found['equal'])}")
    finally:
        service.terminate()
        service.wait()
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
