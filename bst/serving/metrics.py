"""Numbers for Prometheus. Each worker counts its own; whichever is asked adds all of them up.

They share files in the folder that PROMETHEUS_MULTIPROC_DIR named when this module was imported.
"""

import os
import struct
import time
from contextlib import suppress

import prometheus_client as prometheus
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.multiprocess import MultiProcessCollector

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
SHARED = "PROMETHEUS_MULTIPROC_DIR" in os.environ
SUM, EACH = {"multiprocess_mode": "livesum"}, {"multiprocess_mode": "liveall"}
prometheus.disable_created_metrics()

REQUESTS = Counter("bst_requests", "Answers.", ["path", "status"])
SECONDS = Histogram("bst_request_seconds", "Time to an answer.", ["path"], buckets=BUCKETS)
HITS = Counter("bst_cached_answers", "Answers that came from the cache.")
CACHE_BYTES = Gauge("bst_cache_bytes", "Size of the caches.", **SUM)
WAITING = Gauge("bst_queue_requests", "Requests that wait or are at work.", **SUM)
QUEUE_SIZE = Gauge("bst_queue_size", "Requests that may wait.", **SUM)
MODEL = Gauge("bst_model_info", "1: this model is served.", ["digest"], multiprocess_mode="livemax")
RELOADS = Counter("bst_model_reloads", "Models loaded since the start, by all workers.")
FAILURES = Counter("bst_model_reload_failures", "Models that could not be loaded, by all workers.")
# What the library says of a process that is alone, here of each worker: CPU time, memory, start.
PROCESS = {found.samples[0].name: Gauge(found.samples[0].name, found.documentation, registry=None,
                                        **EACH) for found in prometheus.PROCESS_COLLECTOR.collect()}


def update() -> None:
    """Note what this process has used; to be called now and then."""
    for found in prometheus.PROCESS_COLLECTOR.collect():
        PROCESS[found.samples[0].name].set(found.samples[0].value)


def text() -> bytes:
    """All numbers in the text format, version 0.0.4."""
    registry = prometheus.REGISTRY
    if SHARED:
        MultiProcessCollector(registry := prometheus.CollectorRegistry())
    for _ in range(200):
        with suppress(struct.error):  # a worker that starts has made its file, but not filled it
            return prometheus.generate_latest(registry)
        time.sleep(0.005)
    return prometheus.generate_latest(registry)
