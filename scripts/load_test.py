"""Load a service with many clients on loopback: latency, throughput, refusals, memory.

Starts scripts/serve.py on the run, asks for top tens and predictions, then from too many clients at
once, and checks that answers do not depend on what else is asked.
"""

import http.client
import json
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

ROOT = Path(__file__).resolve().parent.parent


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
        sent = None if body is None else json.dumps(body).encode()
        self.line.request("GET" if body is None else "POST", path, sent,
                          {"content-type": "application/json"})
        answer = self.line.getresponse()
        return answer.status, answer.read()


def requests(films: list[int], stars: list[float], number: int) -> list[tuple[str, dict]]:
    """Histories of 5 to 50 films, the same for the same number: one list and two predictions."""
    rng = random.Random(number)
    seen = rng.sample(films, rng.randint(5, min(50, len(films) - 1)))
    history = [{"movie_id": film, "stars": rng.choice(stars)} for film in seen]
    return [("/recommend", {"history": history, "k": 10}),
            ("/predict", {"history": history, "movies": (films * 64)[:64]}),
            ("/recommend", {"history": history[:5], "k": 10, "reasons": 2})]


def load(port: int, clients: int, seconds: float, asked: list[list[tuple[str, dict]]]) -> dict:
    """What the clients saw in that time, a row of the result."""
    end = time.perf_counter() + seconds

    def one(number: int) -> list[tuple[int, float]]:
        client, found, k = Client(port), [], 0
        while (started := time.perf_counter()) < end:
            mine = asked[(number + k) % len(asked)]
            status, _ = client.ask(*mine[k % len(mine)])
            found.append((status, time.perf_counter() - started))
            k += 1
        client.line.close()
        return found

    started = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        found = [pair for part in pool.map(one, range(clients)) for pair in part]
    took = time.perf_counter() - started
    served = sorted(1e3 * spent for status, spent in found if status == 200)
    return {"clients": clients, "seconds": round(took, 1), "served": len(served),
            "per_second": round(len(served) / took, 1),
            "p50_ms": round(served[len(served) // 2], 1),
            "p99_ms": round(served[int(0.99 * (len(served) - 1))], 1),
            "status": {str(k): n for k, n in sorted(Counter(s for s, _ in found).items())}}


def compare(port: int, asked: list[list[tuple[str, dict]]]) -> dict:
    """Answers of 64 at once against those alone, and films together against films alone."""
    bodies = [mine[1] for mine in asked[:64]]
    alone = [Client(port).ask(*body) for body in bodies]
    with ThreadPoolExecutor(len(bodies)) as pool:
        together = list(pool.map(lambda body: Client(port).ask(*body), bodies))
    path, body = bodies[0]
    items = json.loads(alone[0][1])["items"]
    single = [json.loads(Client(port).ask(path, body | {"movies": [item["movie_id"]]})[1])["items"]
              for item in items]
    apart = max(abs(a["stars"] - b["stars"]) for a, (b,) in zip(items, single, strict=True))
    return {"clients_at_once": len(bodies), "same_bytes_as_alone": together == alone,
            "films_in_one_request": len(items), "largest_difference_to_alone": apart}


def main(args: Args) -> None:
    """Start, load, print."""
    service = subprocess.Popen(
        [sys.executable, "scripts/serve.py", "--model", str(args.model.resolve()), "--port", "0"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        line = service.stdout.readline()
        if not line:
            sys.exit(service.wait())  # it has said why
        port = int(line.rpartition(":")[2])
        about = json.loads(Client(port).ask("/readyz")[1])
        known = json.loads(Client(port).ask("/movies?k=100")[1])["items"]
        films = [film["movie_id"] for film in known]
        asked = [requests(films, about["stars"], number) for number in range(512)]

        def memory() -> float:
            text = Client(port).ask("/metrics")[1].decode()
            return round(int(re.search(r"resident_memory_bytes (\d+)", text)[1]) / 1e6, 1)

        load(port, args.clients, args.seconds / 4, asked)  # warm-up
        result = {"model": about["model"], "movies": about["movies"], "rss_mb_start": memory()}
        for name, clients in (("one client", 1), ("usual", args.clients),
                              ("too many", 3 * args.clients), ("usual again", args.clients)):
            result[name] = load(port, clients, args.seconds, asked) | {"rss_mb": memory()}
            print(f"{name}: {json.dumps(result[name])}", flush=True)
        result["equal"] = compare(port, asked)
        print(json.dumps(result["equal"]))
        result["rss_mb_end"] = memory()
        print(f"memory: {result['rss_mb_start']} MB after the warm-up, {result['rss_mb_end']} MB "
              "at the end")
    finally:
        service.terminate()
        service.wait()
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Args, description=__doc__))
