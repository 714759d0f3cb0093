"""Frozen dataclasses of arrays and plain values <-> safetensors bytes. Reading executes no code."""

import json
import typing
from dataclasses import fields, is_dataclass

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor


def pack(value) -> bytes:
    """The dataclass `value` as safetensors: arrays as tensors, the rest as JSON in the metadata.

    Fields may be arrays, tensors, JSON values, None, or dataclasses and tuples of them.
    """
    tensors: dict[str, Tensor] = {}
    plain = _take(value, "", tensors)
    return save(tensors, metadata={"plain": json.dumps(plain)})


def unpack(cls, content: bytes):
    """The dataclass of class `cls` that `pack` wrote, bit by bit.

    Raises:
        ValueError: the bytes are damaged or of another class.
    """
    try:
        tensors = load(content)
        header = json.loads(content[8:8 + int.from_bytes(content[:8], "little")])
        return _give(cls, json.loads(header["__metadata__"]["plain"]), "", tensors)
    except (SafetensorError, LookupError, TypeError, AttributeError, ValueError,
            RecursionError) as error:
        line = (str(error).splitlines() or [""])[0]
        raise ValueError(f"not a {cls.__name__} ({type(error).__name__}: {line})") from error


def _take(value, name: str, tensors: dict[str, Tensor]):
    """What of `value` is JSON; its arrays go into `tensors` under dotted names."""
    if is_dataclass(value):
        return {f.name: _take(getattr(value, f.name), f"{name}.{f.name}", tensors)
                for f in fields(value)}
    if isinstance(value, tuple) and any(is_dataclass(v) for v in value):
        return [_take(v, f"{name}.{k}", tensors) for k, v in enumerate(value)]
    if isinstance(value, Tensor | np.ndarray):
        tensor = value if isinstance(value, Tensor) else torch.from_numpy(value)
        tensors[name] = tensor.detach().cpu().contiguous()
        return None
    return value


def _give(kind, plain, name: str, tensors: dict[str, Tensor]):
    """The value of type `kind` that `_take` took apart."""
    options = typing.get_args(kind)
    if type(None) in options:
        if plain is None and not any(n.startswith(f"{name}.") for n in tensors):
            return None
        return _give(next(o for o in options if o is not type(None)), plain, name, tensors)
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: _give(hints[f.name], plain[f.name], f"{name}.{f.name}", tensors)
                       for f in fields(kind)})
    if kind is Tensor:
        return tensors[name]
    if kind is np.ndarray:
        return tensors[name].numpy()
    if typing.get_origin(kind) is tuple:
        return tuple(_give(options[0], v, f"{name}.{k}", tensors) for k, v in enumerate(plain))
    return plain
