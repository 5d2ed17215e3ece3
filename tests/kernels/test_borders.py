"""Kernels read nothing behind their maps: these end where memory ends."""

import ctypes
import mmap
import sys
from random import Random

import pytest
import torch
from torch import Tensor

from flower_edge import kernels
from flower_edge.kernels._chain import conv_backward, conv_forward, norm_backward, norm_forward
from flower_edge.kernels._int8_quantise import QuantisedError
from flower_edge.kernels._int8_shape import conv_shape
from flower_edge.kernels._quantised import ERROR_ZERO, QuantisedTensor
from flower_edge.kernels._range_evonorm_calls import Norm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="mprotect is looked for in Linux's C library")

READABLE = 1 << 21
NO_ACCESS = 0


class Border:
    """Memory that ends before a page that must not be touched; tensors view it as long as they live."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, READABLE + mmap.PAGESIZE)
        begin = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
        if protect(begin + READABLE, mmap.PAGESIZE, NO_ACCESS) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")

    def map(self, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
        """Make a map, channels last, whose last element is the last that can be read."""
        samples, channels, height, width = shape
        count = samples * channels * height * width
        offset = READABLE - count * dtype.itemsize
        flat = torch.frombuffer(self.memory, dtype=dtype, count=count, offset=offset)
        return flat.view(samples, height, width, channels).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def borders() -> tuple[Border, Border]:
    return Border(), Border()


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("isa", kernels.available_isas())
def test_convolutions_of_bytes(isa: str, seed: int, borders: tuple[Border, Border]) -> None:
    random = Random(seed)
    taps, stride = random.choice([1, 2, 3, 5]), random.choice([1, 2, 3])
    inputs, outputs = (random.choice([1, 3, 7, 15, 16, 31, 33, 64]) for _ in range(2))
    x_shape = (random.randint(1, 4), inputs, random.randint(taps, 19), random.randint(taps, 35))
    padding = random.choice([0, taps // 2])
    shape = conv_shape(x_shape, (outputs, inputs, taps, taps), (stride, stride), (padding, padding))
    x, error = borders[0].map(shape.x_shape, torch.uint8), borders[1].map(shape.y_shape, torch.uint8)
    torch.manual_seed(seed)
    x.random_(0, 256)
    error.random_(1, 256)
    weight = torch.randn(shape.weight_shape).contiguous(memory_format=torch.channels_last)
    quantised, errors = QuantisedTensor(x, 0.1, 3), QuantisedTensor(error, 0.1, ERROR_ZERO)

    with kernels.use_isa(isa):
        conv_forward(quantised, weight, None, shape)
        for found in (
            QuantisedError(errors),
            QuantisedError(errors, error, error, 1.0),
        ):
            conv_backward(quantised, found, weight, shape, (True, True))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("isa", kernels.available_isas())
def test_norms_of_bytes(isa: str, seed: int, borders: tuple[Border, Border]) -> None:
    random = Random(seed)
    channels = random.choice([2, 3, 7, 8, 15, 16, 31, 32, 33, 64, 97])
    groups = random.choice([d for d in range(1, channels) if channels % d == 0])
    shape = (random.randint(1, 3), channels, random.randint(1, 19), random.randint(1, 19))
    x, grad = borders[0].map(shape, torch.uint8), borders[1].map(shape, torch.float32)
    torch.manual_seed(seed)
    x.random_(0, 256)
    grad.normal_()
    norm = Norm(torch.rand(channels) + 0.5, torch.zeros(channels), torch.rand(channels), groups, 1e-5)

    with kernels.use_isa(isa):
        made = norm_forward(QuantisedTensor(x, 0.1, 3), norm)
        for errors in ((8, 5), (16, 5), None):
            norm_backward(grad, made.x, made.extremes, norm, errors)
