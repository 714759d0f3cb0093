"""The works of `scripts/benchmark.py`, and what they share.

prep, train, score, text and scale have `Args` and `run(args) -> rows`; `load` holds the clients of
`scripts/load_test.py`.
"""
