"""What a worker, one process of the service, scores with: a model, its answers, a queue.

A new model in the run folder takes the place of the old one between two requests.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from cachetools import LRUCache
from fastapi import HTTPException, Response

from bst.recommend.recommender import Recommender
from bst.serving.metrics import QUEUE_SIZE, WAITING
from bst.utils.errors import DataError
from bst.utils.files import SUMS, sha256_of, stamp

FILES = "model.json", "model.safetensors", "fitted.json"  # of a run folder, that are served
CACHE, ENTRY = 64 * 2**20, 500  # bytes of all kept answers; what one takes beside its text
log = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model, and answers that it gave, by request."""

    recommender: Recommender
    digest: str  # of the weights, 8 hexadecimal digits
    cache: LRUCache  # the least recently used answers go first


class Models:
    """The model of a run folder; a new one replaces it whole, a broken one does not."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.error = folder, None
        self.stamp = self._look()
        self.current = self._load()

    def refresh(self) -> bool | None:
        """Load the folder again if a file of it has changed, or after `force_reload`.

        Returns True: a new model serves; False: it is broken, the old one serves; None: no change.
        """
        look = self._look()
        # the sums change with every resume point, so they count only where they may mend an error
        count = len(FILES) if self.error is None else len(look)
        if look[:count] == self.stamp[:count]:
            return None
        self.stamp = look
        try:
            loaded = self._load()
        except Exception as error:  # whatever is wrong with it, the old model goes on
            self.error = str(error) or type(error).__name__
            log.error("kept model %s: %s", self.current.digest, self.error)
            return False
        if self._look()[:len(FILES)] != look[:len(FILES)]:
            self.force_reload()  # written while it was read: look again next time
            return None
        self.current, self.error = loaded, None
        log.warning("loaded model %s", loaded.digest)
        return True

    def force_reload(self) -> None:
        """Have the next `refresh` load the folder, changed or not."""
        self.stamp = ()

    def _load(self) -> Loaded:
        recommender = Recommender.from_pretrained(self.folder)
        stars = recommender.predict([], recommender.catalogue.ids)
        if not np.isfinite(stars).all():
            raise DataError(f"{self.folder}: the model predicts {stars[~np.isfinite(stars)][0]}; "
                            "its weights are broken, train again")
        return Loaded(recommender, sha256_of(self.folder / "model.safetensors")[:8],
                      LRUCache(CACHE, getsizeof=lambda answer: len(answer) + ENTRY))

    def _look(self) -> tuple:
        """What tells whether the files are still the same."""
        return tuple(stamp(self.folder / name) for name in (*FILES, SUMS))


class Queue:
    """The requests that wait for the one thread of this process that scores.

    Args:
        size: requests that may wait or be at work; one more is refused.
        patience: seconds after which a request that is still waiting is refused.
    """

    def __init__(self, size: int, patience: float) -> None:
        self.size, self.patience, self.waiting = size, patience, 0
        self.executor = ThreadPoolExecutor(1, "score", torch.set_num_threads, (1,))
        QUEUE_SIZE.set(size)

    def check(self) -> None:
        """Refuse a request (429) if the queue is full."""
        if self.waiting >= self.size:
            raise HTTPException(429, f"{self.waiting} requests wait already; try again later")

    async def run(self, job: Callable[[], Response]) -> Response:
        """The result of the job; refused if the queue is full (429) or the wait too long (503)."""
        self.check()
        latest = time.monotonic() + self.patience

        def work() -> Response:
            if time.monotonic() > latest:
                raise HTTPException(503, f"not served within {self.patience:g} seconds; try later")
            return job()

        self.waiting += 1
        WAITING.inc()
        try:
            return await asyncio.wrap_future(self.executor.submit(work))
        finally:
            self.waiting -= 1
            WAITING.dec()
