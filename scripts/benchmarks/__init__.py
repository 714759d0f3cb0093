"""One module a work of `scripts/benchmark.py`: `Args` and `run(args) -> rows`."""
