"""A Behavior Sequence Transformer that predicts ratings; `bst.BST` is the model on data frames."""


def __getattr__(name: str) -> object:
    if name == "BST":  # on demand: torch takes a second
        from bst.estimator import BST

        return BST
    raise AttributeError(f"module 'bst' has no attribute {name!r}")
