"""The pool of memory: a block is lent to one tensor at a time, whatever holds on to that tensor."""

import gc
import os
import threading
from collections.abc import Iterator
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge.kernels import _dispatch
from flower_edge.kernels._workspace import Workspace, workspace

pytestmark = [
    pytest.mark.board,
    pytest.mark.skipif(_dispatch.extension is None, reason="there is no extension, which has the pool"),
]

# Bytes from which on memory is kept, as cext/workspace/workspace.h has them.
SMALLEST = 1 << 18
LENGTH = SMALLEST // 4


@pytest.fixture
def pool() -> Iterator[Workspace]:
    """Give the pool without a free block; tensors of other tests may still live."""
    gc.collect()
    limit = workspace().limit
    workspace().release()
    yield workspace()
    workspace().limit = limit


def lend(pool: Workspace, length: int = LENGTH) -> torch.Tensor:
    return pool.empty((length,), (1,))


def overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.data_ptr() < b.data_ptr() + b.nbytes and b.data_ptr() < a.data_ptr() + a.nbytes


def test_a_block_comes_back_when_its_tensor_dies(pool: Workspace) -> None:
    tensor = lend(pool)
    address = tensor.data_ptr()
    assert not overlap(tensor, lend(pool))
    del tensor
    gc.collect()
    again = [lend(pool), lend(pool)]
    assert address in {tensor.data_ptr() for tensor in again}
    assert not overlap(*again)


def test_bytes_are_lent_from_the_same_blocks(pool: Workspace) -> None:
    tensor = pool.empty_bytes((3, SMALLEST), (1, 3))
    address = tensor.data_ptr()
    assert (tensor.dtype, tensor.stride(), address % 64) == (torch.uint8, (1, 3), 0)
    tensor.fill_(7)
    other = pool.empty_bytes((3, SMALLEST), (1, 3))
    assert not overlap(tensor, other)
    del tensor
    gc.collect()
    assert pool.empty((3 * SMALLEST // 4,), (1,)).data_ptr() == address
    assert pool.empty_bytes((5,), (1,)).shape == (5,)


@pytest.mark.parametrize(
    "hold",
    [
        lambda tensor: tensor[5:7],
        lambda tensor: tensor.detach().view(2, -1).t(),
        lambda tensor: tensor.numpy()[3:],
        lambda tensor: tensor.untyped_storage(),
        lambda tensor: torch.from_numpy(tensor.numpy()),
        lambda tensor: torch.nn.Parameter(tensor),
        lambda tensor: (torch.ones(1, requires_grad=True) * tensor).sum(),
    ],
    ids=["view", "views of views", "array", "storage", "tensor over array", "parameter", "graph"],
)
def test_whatever_holds_a_tensor_holds_its_block(pool: Workspace, hold: object) -> None:
    tensor = lend(pool)
    address = tensor.data_ptr()
    held = hold(tensor)  # type: ignore[operator]
    del tensor
    gc.collect()
    others = [lend(pool) for _ in range(3)]
    assert address not in {other.data_ptr() for other in others}
    del held
    gc.collect()
    assert lend(pool).data_ptr() == address


def test_a_gradient_keeps_its_block(pool: Workspace) -> None:

    class Copy(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, x: torch.Tensor) -> torch.Tensor:
            return lend(pool, x.numel()).copy_(x)

        @staticmethod
        def backward(ctx: object, grad: torch.Tensor) -> torch.Tensor:
            return lend(pool, grad.numel()).copy_(grad)

    x = torch.ones(LENGTH, requires_grad=True)
    (Copy.apply(x) ** 2).sum().backward()
    for _ in range(4):
        lend(pool).fill_(-1.0)
    assert x.grad is not None
    assert (x.grad == 2).all()


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1))
def test_tensors_that_live_never_share_memory(seed: int) -> None:
    random = Random(seed)
    pool = workspace()
    pool.limit = 8 * SMALLEST
    alive: list[tuple[torch.Tensor, float]] = []
    for step in range(30):
        if alive and random.random() < 0.5:
            tensor, value = alive.pop(random.randrange(len(alive)))
            assert (tensor == value).all()
        else:
            length = random.choice([LENGTH, LENGTH + 1, LENGTH * 5 // 4, LENGTH * 2, 7])
            alive.append((lend(pool, length).fill_(step), float(step)))
    for tensor, value in alive:
        assert (tensor == value).all()


def test_a_much_larger_block_is_not_wasted(pool: Workspace) -> None:
    large = lend(pool, 4 * LENGTH)
    address = large.data_ptr()
    del large
    small = lend(pool, 2 * LENGTH)
    assert small.data_ptr() != address
    assert lend(pool, 3 * LENGTH + LENGTH // 2).data_ptr() == address


def test_the_limit_bounds_what_is_kept(pool: Workspace) -> None:
    pool.limit = 3 * SMALLEST
    tensors = [lend(pool) for _ in range(6)]
    del tensors
    assert 2 * SMALLEST < pool.release() <= 3 * SMALLEST
    assert pool.release() == 0


def test_a_lower_limit_frees_what_waits(pool: Workspace) -> None:
    tensors = [lend(pool) for _ in range(6)]
    del tensors
    pool.limit = 0
    assert pool.release() == 0
    with pytest.raises(ValueError, match="the limit is -1 bytes, expected 0 or more"):
        pool.limit = -1
    assert pool.limit == 0


def test_it_is_aligned_and_of_the_shape_and_strides_wanted(pool: Workspace) -> None:
    for length in (LENGTH, LENGTH + 3, 7):
        assert lend(pool, length).data_ptr() % 64 == 0
    tensor = pool.empty((2, 64, 64, 65), (64 * 64 * 65, 1, 64 * 65, 64))
    assert tensor.is_contiguous(memory_format=torch.channels_last)
    assert not tensor._is_view()
    assert not tensor.requires_grad


def test_threads_never_share_a_block(pool: Workspace) -> None:
    wrong: list[int] = []

    def work(number: int) -> None:
        for _ in range(200):
            tensor = lend(pool)
            tensor[::4096] = number
            if not (tensor[::4096] == number).all():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_forked_child_has_memory_of_its_own(pool: Workspace) -> None:
    tensor = lend(pool).fill_(1.0)
    freed = lend(pool).fill_(2.0)
    del freed
    child = os.fork()
    if child == 0:
        other = lend(pool)
        # Short: torch's threads have not come along.
        other[:5] = 3.0
        right = not overlap(tensor, other) and bool((tensor[:5] == 1).all())
        tensor[:5] = 4.0
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (tensor == 1).all()


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((4, 4), (5, 1)),
        ((4, 4), (1, 1)),
        ((4, 4), (4, -1)),
        ((2, 2, 2), (3, 3, 1)),
        ((2, 4), (4, 4)),
        ((4, 1), (2, 1)),
        ((4,), (0,)),
        ((2, 3), (1,)),
        ((-1,), (1,)),
        ((2**40, 2**40), (2**40, 1)),
        ((1,) * 65, (1,) * 65),
    ],
)
def test_what_does_not_fill_memory_is_refused(
    pool: Workspace, shape: tuple[int, ...], strides: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="shape"):
        pool.empty(shape, strides)


@settings(deadline=None)
@given(data=st.data())
def test_any_order_of_dimensions_is_lent(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 5), max_size=6))
    order = data.draw(st.permutations(range(len(sizes))))
    strides, length = [1] * len(sizes), 1
    for dimension in order:
        strides[dimension] = length
        length *= max(1, sizes[dimension])
    tensor = workspace().empty(tuple(sizes), tuple(strides))
    assert tuple(tensor.shape) == tuple(sizes)
    tensor.fill_(1.0)
    assert tensor.sum() == tensor.numel()
    if tensor.numel() > 1:
        assert tensor.stride() == torch.empty_strided(sizes, strides).stride()


def test_a_capsule_that_nobody_takes_gives_its_block_back(pool: Workspace) -> None:
    assert _dispatch.extension is not None
    capsule = _dispatch.extension.workspace_lend(4, (LENGTH,), (1,))
    assert pool.release() == 0
    del capsule
    assert pool.release() >= SMALLEST


def test_more_than_memory_holds_is_refused(pool: Workspace) -> None:
    with pytest.raises(MemoryError):
        pool.empty((2**50,), (1,))


def test_without_the_extension_memory_is_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dispatch, "extension", None)
    pool = Workspace()
    floats, cells = pool.empty((LENGTH, 2), (1, LENGTH)), pool.empty_bytes((3, LENGTH), (1, 3))
    assert (floats.dtype, floats.stride()) == (torch.float32, (1, LENGTH))
    assert (cells.dtype, cells.stride()) == (torch.uint8, (1, 3))
    pool.limit = 0
    assert (pool.limit, pool.release()) == (0, 0)
