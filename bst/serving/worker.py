"""What a service scores with: the model of a folder, and the one thread that works for it.

So many requests may wait for the thread, the next one is refused at once. A new model in the folder
takes the place of the old one between two requests.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bst.recommend.recommender import Recommender
from bst.utils.errors import DataError
from bst.utils.files import SUMS, sha256_of, stamp

FILES = "model.json", "model.safetensors", "fitted.json"  # of a run folder, that are served
log = logging.getLogger(__name__)


class Refused(Exception):
    """A request that gets no answer now: status, one line, seconds to wait before the next try."""

    def __init__(self, status: int, line: str, wait: int = 0) -> None:
        super().__init__(line)
        self.status, self.wait = status, wait


class Loaded(NamedTuple):
    """A model and its name."""

    recommender: Recommender
    digest: str  # of the weights, 8 hexadecimal digits


class Models:
    """The model of a run folder; a new one replaces it whole, a broken one does not.

    Raises:
        DataError: the folder holds no whole model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.error, self.asked = folder, None, False
        self.reloads = self.failures = 0
        self._stamp = self._look()
        self.current = self._load()

    def refresh(self) -> None:
        """Load the folder again if a file of it has changed or `asked` is set."""
        look = self._look()
        # the sums change with every resume point, so they count only where they may mend an error
        count = len(FILES) if self.error is None else len(look)
        if look[:count] == self._stamp[:count] and not self.asked:
            return
        self.asked, self._stamp = False, look
        try:
            loaded = self._load()
        except Exception as error:  # whatever is wrong with it, the old model goes on
            self.failures += 1
            self.error = str(error) or type(error).__name__
            log.error("kept model %s: %s", self.current.digest, self.error)
            return
        if self._look()[:len(FILES)] != look[:len(FILES)]:
            self._stamp = ()  # written while it was read: look again next time
            return
        self.current, self.error = loaded, None
        self.reloads += 1
        log.warning("loaded model %s", loaded.digest)

    def _load(self) -> Loaded:
        recommender = Recommender.from_pretrained(self.folder)
        stars = recommender.predict([], recommender.catalogue.ids)
        if not np.isfinite(stars).all():
            raise DataError(f"{self.folder}: the model predicts {stars[~np.isfinite(stars)][0]}; "
                            "its weights are broken, train again")
        return Loaded(recommender, sha256_of(self.folder / "model.safetensors")[:8])

    def _look(self) -> tuple:
        """What tells whether the files are still the same."""
        return tuple(stamp(self.folder / name) for name in (*FILES, SUMS))


class Worker:
    """One thread that scores, and the requests that wait for it.

    Args:
        size: requests that may wait or be at work; one more is refused.
        patience: seconds after which a request that is still waiting is refused.
    """

    def __init__(self, size: int, patience: float) -> None:
        self.size, self.patience = size, patience
        self.waiting, self._usual = 0, 0.01  # seconds of a job, a running mean
        self._thread = ThreadPoolExecutor(1, "score", torch.set_num_threads, (1,))

    async def run(self, job: Callable[[], dict]) -> dict:
        """The result of the job.

        Raises:
            Refused: the queue is full (429), or the wait was too long (503).
        """
        if self.waiting >= self.size:
            raise Refused(429, f"{self.waiting} requests wait already; try again later",
                          math.ceil(self.waiting * self._usual))
        self.waiting += 1
        latest = time.monotonic() + self.patience
        try:
            return await asyncio.wrap_future(self._thread.submit(self._work, job, latest))
        finally:
            self.waiting -= 1

    def _work(self, job: Callable[[], dict], latest: float) -> dict:
        started = time.monotonic()
        if started > latest:
            raise Refused(503, f"not served within {self.patience:g} seconds; try again later",
                          math.ceil(self.waiting * self._usual))
        try:
            return job()
        finally:
            self._usual += 0.1 * (time.monotonic() - started - self._usual)

    def close(self) -> None:
        """End the thread once its jobs are done."""
        self._thread.shutdown()
