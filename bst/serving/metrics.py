"""Numbers for Prometheus. Each worker counts its own; whichever is asked adds all of them up.

The workers share them through files in the folder that the environment variable
PROMETHEUS_MULTIPROC_DIR named when this module was imported. Without it a process is alone.
"""

import os
import time
from functools import partial
from pathlib import Path

from prometheus_client import (
    REGISTRY,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector

STATM = Path("/proc/self/statm")  # Linux; the second number is the resident pages
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
SHARED = "PROMETHEUS_MULTIPROC_DIR" in os.environ
_used = 0.0  # CPU seconds that are counted already
disable_created_metrics()
Sum = partial(Gauge, multiprocess_mode="livesum")  # over the workers that live

REQUESTS = Counter("bst_requests", "Answers.", ["path", "status"])
SECONDS = Histogram("bst_request_seconds", "Time to an answer.", ["path"], buckets=BUCKETS)
CACHED = Counter("bst_cached_answers", "Answers that came from the cache.")
CACHE_BYTES = Sum("bst_cache_bytes", "Size of the caches.")
WAITING = Sum("bst_queue_requests", "Requests that wait or are at work.")
QUEUE_SIZE = Sum("bst_queue_size", "Requests that may wait.")
MODEL = Gauge("bst_model_info", "1: this model is served.", ["digest"], multiprocess_mode="livemax")
RELOADS = Counter("bst_model_reloads", "Models loaded since the start, by all workers.")
FAILURES = Counter("bst_model_reload_failures", "Models that could not be loaded, by all workers.")
# what the library itself says of a process that is alone
CPU = Counter("process_cpu_seconds", "CPU time of all workers.", registry=None)
START = Gauge("process_start_time_seconds", "When a worker started.", registry=None,
              multiprocess_mode="liveall")
MEMORY = Gauge("process_resident_memory_bytes", "Memory of a worker; what workers share counts for "
               "each.", registry=None, multiprocess_mode="liveall")


def update() -> None:
    """Note what this process has used; to be called now and then."""
    global _used
    used, _used = _used, time.process_time()
    CPU.inc(_used - used)
    if STATM.exists():
        MEMORY.set(int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))


def text() -> bytes:
    """All numbers in the text format, version 0.0.4."""
    update()
    registry = CollectorRegistry() if SHARED else REGISTRY
    if SHARED:
        MultiProcessCollector(registry)
    return generate_latest(registry)
