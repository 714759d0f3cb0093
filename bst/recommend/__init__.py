"""From a history and the catalogue to a top-N list and its reasons."""
