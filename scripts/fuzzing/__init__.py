"""What `scripts/fuzz.py` has read: good files of each target, and the call that reads them."""
