"""Clients of a service, each on a connection of its own that asks again once it has an answer."""

import hashlib
import json
import os
import random
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path

PROC = Path("/proc")  # of Linux


class Load:
    """The service of a process at a port, and items and stars to ask it about."""

    def __init__(self, port: int, pid: int) -> None:
        self.port, self.pid, self.asked = port, pid, 0
        self.about = json.loads(self.once("/readyz"))
        self.items = [item["movie_id"] for item in json.loads(self.once("/movies?k=100"))["items"]]

    def question(self, number: int) -> tuple[str, bytes]:
        """Path and body: a list, 64 predictions, or a list with reasons; 5 to 50 ratings each."""
        rng = random.Random(number)
        seen = rng.sample(self.items, rng.randint(5, min(50, len(self.items) - 1)))
        history = [{"movie_id": item, "stars": rng.choice(self.about["stars"])} for item in seen]
        path, body = [("/recommend", {"history": history}),
                      ("/predict", {"history": history, "movies": (self.items * 64)[:64]}),
                      ("/recommend", {"history": history[:5], "reasons": 2})][number % 3]
        return path, json.dumps(body).encode()

    def once(self, path: str, body: bytes | None = None) -> bytes:
        """The answer to one request on a connection of its own."""
        return ask(HTTPConnection("127.0.0.1", self.port, timeout=120), path, body)[1]

    def part(self, clients: int, seconds: float, *, known: int = 0) -> dict:
        """What the clients saw in that time, and what the service needed for it.

        Args:
            clients: number of connections.
            seconds: length.
            known: ask these first questions again and again; 0: ask what nobody has asked before.
        """
        first, self.asked = self.asked, self.asked + 10**6
        started, cpu = time.perf_counter(), self.cpu()

        def one(client: int) -> list[tuple[int, float]]:
            line, found = HTTPConnection("127.0.0.1", self.port, timeout=120), []
            while time.perf_counter() < started + seconds:
                number = client + clients * len(found)
                asked = self.question(number % known if known else first + number)
                start = time.perf_counter()
                found.append((ask(line, *asked)[0], time.perf_counter() - start))
            return found

        with ThreadPoolExecutor(clients) as pool:
            found = [pair for part in pool.map(one, range(clients)) for pair in part]
        took, cpu = time.perf_counter() - started, self.cpu() - cpu
        served = sorted(1e3 * spent for status, spent in found if status == 200)
        refused = sorted(1e3 * spent for status, spent in found if status == 429)
        return {"clients": clients, "seconds": round(took, 1), "served": len(served),
                "per_second": round(len(served) / took, 1),
                "p50_ms": round(served[len(served) // 2], 1),
                "p99_ms": round(served[int(0.99 * (len(served) - 1))], 1),
                "p50_429_ms": round(refused[len(refused) // 2], 1) if refused else None,
                "cpu_ms_each": round(1e3 * cpu / len(served), 2),  # with what refusals cost
                "status": {str(k): n for k, n in sorted(Counter(s for s, _ in found).items())},
                "memory_mb": round(self.memory() / 1e6, 1),
                "cache_mb": round(self.cache() / 1e6, 1)}  # a part of it

    def equal(self) -> dict:
        """Answers of 64 at once against those alone, items together against items alone."""
        asked = [self.question(3 * number + 1) for number in range(64)]
        alone = [self.once(*each) for each in asked]
        with ThreadPoolExecutor(len(asked)) as pool:  # spelt so that no answer is in the cache
            together = list(pool.map(lambda each: self.once(each[0], each[1] + b"\n"), asked))
        (path, body), apart = asked[0], 0.0
        for item in json.loads(alone[0])["items"]:
            one = json.loads(body) | {"movies": [item["movie_id"]]}
            found = json.loads(self.once(path, json.dumps(one).encode()))
            apart = max(apart, abs(found["items"][0]["stars"] - item["stars"]))
        return {"64_at_once_equal_alone": together == alone, "64_films_minus_alone": apart,
                "sha256_of_64": hashlib.sha256(b"".join(alone)).hexdigest()[:8]}

    def processes(self) -> list[Path]:
        """The process of the service and its workers."""
        workers = (PROC / f"{self.pid}/task/{self.pid}/children").read_text().split()
        return [PROC / pid for pid in (str(self.pid), *workers)]

    def cpu(self) -> float:
        """CPU seconds of them so far."""
        spent = (re.split(r"\) ", (process / "stat").read_text())[-1].split()[11:13]
                 for process in self.processes())
        return sum(map(int, sum(spent, []))) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes that they have in memory; a page that several share counts once (Pss)."""
        return sum(1024 * int(re.search(r"^Pss: +(\d+)", (process / "smaps_rollup").read_text(),
                                        flags=re.M)[1]) for process in self.processes())

    def cache(self) -> float:
        """Bytes of the answers that they keep."""
        text = self.once("/metrics").decode()
        return float(re.search(r"^bst_cache_bytes (\S+)$", text, flags=re.M)[1])


def ask(line: HTTPConnection, path: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    line.request("POST" if body else "GET", path, body, {"content-type": "application/json"})
    answer = line.getresponse()
    return answer.status, answer.read()
