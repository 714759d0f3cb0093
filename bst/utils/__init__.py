"""Files, locks, and errors: what every room uses."""
