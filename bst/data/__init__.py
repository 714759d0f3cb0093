"""From anything raw to a `SequenceStore`, splits and text vectors."""
