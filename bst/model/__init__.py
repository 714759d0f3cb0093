"""Features, batches and the network."""
