"""A Behavior Sequence Transformer that predicts how a person will rate a film."""
