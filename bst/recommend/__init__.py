"""From a history and the catalogue to a top N, an explanation, a program, a Hub folder."""
