"""Files, locks, errors and packing: what every room uses."""
