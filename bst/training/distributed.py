"""Several processes that train one model: ranks, sums over all processes, turns.

`torchrun` starts the processes; `process_group` joins them. Without it every function works as in
a group of one and communicates nothing, so callers need no second path.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from bst.utils.errors import DataError

PATIENCE = timedelta(hours=6)  # the others wait while the first process prepares the data
KNUTH = 2_654_435_761  # 2^32 / golden ratio: multiples lie far apart modulo 2^32


def rank() -> int:
    """Number of this process, 0 to `size() - 1`; the first one writes and prints."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(device: str) -> Iterator[None]:
    """Join the processes that `torchrun` started with this one; all but the first are silent.

    With the `device` "cuda" each process uses the GPU of its local rank. A group that is already
    there, as in a worker of Ray, is used as it is.

    Raises:
        DataError: there are more processes than GPUs.
    """
    on_gpu = device == "cuda" and torch.cuda.is_available()
    join = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized()
    if join and on_gpu:
        number, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if number >= count:
            raise DataError(f"process {number} of this machine has no GPU, found {count}; "
                            f"expected --nproc-per-node of at most {count}")
        torch.cuda.set_device(number)
    if join:
        _join("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    with contextlib.ExitStack() as stack:
        if rank() > 0:
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        yield
    if join:  # not after an error: the others may be gone, and this would wait for them
        dist.destroy_process_group()


def _join(backend: str) -> None:
    """Join the others through the store of `torchrun`.

    After a restart this store still holds the addresses of the old processes, so on one machine
    each attempt has a prefix. Several machines count the attempts differently; there set
    TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1, which gives each attempt its own store.
    """
    store, number, count = next(dist.rendezvous("env://", timeout=PATIENCE))
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=PATIENCE)


def shard(rows: list) -> list:
    """This process's rows of a batch: every size-th one; none if the batch has too few.

    Rows are in order of length, so the shards are about equally long.
    """
    return rows[rank()::size()]


def chance_seed(seed: int, step: int) -> int:
    """Seed of dropout from (seed, step, rank), so that each shard has its own mask."""
    return seed * 1_000_003 + step + rank() * KNUTH


def add_up(tensor: Tensor) -> Tensor:
    """The sum of `tensor` over all processes, in place; equal bits in each of them."""
    return _reduce(tensor, dist.ReduceOp.SUM)


def maximum(value: int) -> int:
    """The greatest `value` of any process."""
    return int(_reduce(torch.tensor(value), dist.ReduceOp.MAX))


def all_equal(*values: float) -> bool:
    """True when every process gives the same values; NaN counts as 0."""
    both = torch.tensor([values, [-v for v in values]], dtype=torch.float64).nan_to_num(nan=0.0)
    greatest, least = _reduce(both, dist.ReduceOp.MAX)
    return bool((greatest == -least).all())


def add_up_gradients(model: nn.Module, loss: Tensor) -> Tensor:
    """Replace each gradient by its sum over all processes; returns the sum of `loss`.

    DistributedDataParallel would average over processes. Here each has weighted its loss by its
    share of the targets, so the sum is the gradient of the global mean, whatever the shards' sizes.
    """
    if size() == 1:
        return loss
    parameters = list(model.parameters())
    # Parameters unused by all processes keep grad None: weight decay would shrink them.
    used = add_up(torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32))
    gradients = []
    for parameter in itertools.compress(parameters, used.tolist()):
        if parameter.grad is None:  # this process has no row of the batch
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    total = add_up(parameters_to_vector([loss[None], *gradients]))
    vector_to_parameters(total[1:], gradients)
    return total[0]


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The first process runs the block alone; then the others do, and find its files.

    After an error of the first the others run the block too, and meet the same error.
    """
    if rank() > 0:
        wait_for_all()
    try:
        yield
    finally:
        if rank() == 0:
            wait_for_all()


def wait_for_all() -> None:
    """Return once every process has come here."""
    maximum(0)


def _reduce(tensor: Tensor, operation) -> Tensor:
    if size() > 1:
        try:
            dist.all_reduce(tensor, operation)
        except RuntimeError as error:  # what gloo raises when a connection is closed
            raise ConnectionError(
                f"process {rank()} of {size()} lost another one ({str(error).split('. ')[0]}); "
                "the same command goes on from the last resume point"
            ) from error
    return tensor
