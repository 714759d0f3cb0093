"""The loop, the run folder and several processes."""
