"""Clients of a service, each on a connection of its own that asks again once it has an answer."""

import json
import random
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection

Asked = tuple[str, dict | None]  # path, body


def ask(line: HTTPConnection, path: str, body: dict | None = None) -> tuple[int, bytes]:
    """Status and body of an answer."""
    sent = None if body is None else json.dumps(body).encode()
    line.request("POST" if sent else "GET", path, sent, {"content-type": "application/json"})
    answer = line.getresponse()
    return answer.status, answer.read()


def person(films: list[int], stars: list[float], number: int) -> list[Asked]:
    """What somebody with 5 to 50 ratings asks; equal numbers, equal requests."""
    rng = random.Random(number)
    seen = rng.sample(films, rng.randint(5, min(50, len(films) - 1)))
    history = [{"movie_id": film, "stars": rng.choice(stars)} for film in seen]
    return [("/recommend", {"history": history}),
            ("/predict", {"history": history, "movies": (films * 64)[:64]}),
            ("/recommend", {"history": history[:5], "reasons": 2})]


class Load:
    """Clients of the service at a port, who ask what these people ask."""

    def __init__(self, port: int, people: list[list[Asked]]) -> None:
        self.port, self.people = port, people

    def once(self, asked: Asked) -> bytes:
        """The answer to one request on a connection of its own."""
        return ask(HTTPConnection("127.0.0.1", self.port, timeout=120), *asked)[1]

    def numbers(self) -> dict[str, float]:
        """What /metrics says without labels."""
        text = self.once(("/metrics", None)).decode()
        return {k: float(v) for k, v in re.findall(r"^(\w+) (\S+)$", text, flags=re.M)}

    def part(self, clients: int, seconds: float) -> dict:
        """What the clients saw in that time, and what the service needed for it."""
        started, before = time.perf_counter(), self.numbers()

        def one(number: int) -> list[tuple[int, float]]:
            line, found = HTTPConnection("127.0.0.1", self.port, timeout=120), []
            while (start := time.perf_counter()) < started + seconds:
                asked = self.people[(number + len(found)) % len(self.people)]
                status, _ = ask(line, *asked[len(found) % len(asked)])
                found.append((status, time.perf_counter() - start))
            return found

        with ThreadPoolExecutor(clients) as pool:
            found = [pair for part in pool.map(one, range(clients)) for pair in part]
        took, after = time.perf_counter() - started, self.numbers()
        served = sorted(1e3 * spent for status, spent in found if status == 200)
        cpu = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
        return {"clients": clients, "seconds": round(took, 1), "served": len(served),
                "per_second": round(len(served) / took, 1),
                "p50_ms": round(served[len(served) // 2], 1),
                "p99_ms": round(served[int(0.99 * (len(served) - 1))], 1),
                "cpu_ms_each": round(1e3 * cpu / len(served), 1),  # with what refusals cost
                "status": {str(k): n for k, n in sorted(Counter(s for s, _ in found).items())},
                "rss_mb": round(after["process_resident_memory_bytes"] / 1e6, 1)}

    def equal(self) -> dict:
        """Answers of 64 at once against those alone, films together against films alone."""
        asked = [mine[1] for mine in self.people[:64]]
        alone = [self.once(each) for each in asked]
        with ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(self.once, asked))
        (path, body), apart = asked[0], 0.0
        for item in json.loads(alone[0])["items"]:
            found = json.loads(self.once((path, body | {"movies": [item["movie_id"]]})))
            apart = max(apart, abs(found["items"][0]["stars"] - item["stars"]))
        return {"64_at_once_equal_alone": together == alone, "64_films_minus_alone": apart}
