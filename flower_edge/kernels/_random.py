"""The random numbers of kernels, in plain torch: a function of a seed and of a place alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_WORD = (1 << 32) - 1


def random_words(counters: "torch.Tensor", seed: int) -> "torch.Tensor":
    """Draw 32 random bits for each counter: two rounds of multiplications and shifts.

    Parameters
    ----------
    counters : torch.Tensor
        int64; 32 bits of each count.
    seed : int
        64 bits count.

    Returns
    -------
    torch.Tensor
        int64, ``0 <= word < 2**32``, of the shape of `counters`.
    """
    mixed = _mixed(seed)
    bits = (counters & _WORD) ^ (mixed & _WORD)
    bits = bits ^ (bits >> 16)
    bits = _product(bits, 0x21F0AAAD)
    bits = bits ^ (bits >> 15)
    bits = _product(bits + (mixed >> 32), 0xD35A2D97)
    return bits ^ (bits >> 15)


def _product(bits: "torch.Tensor", factor: int) -> "torch.Tensor":
    """Multiply words modulo 2**32 without leaving the positive int64."""
    bits = bits & _WORD
    low, high = bits & 0xFFFF, bits >> 16
    return (low * factor + (((high * factor) & 0xFFFF) << 16)) & _WORD


def _mixed(seed: int) -> int:
    """Mix a seed, so that seeds that follow each other have little in common."""
    word = (1 << 64) - 1
    seed = (seed + 0x9E3779B97F4A7C15) & word
    seed = ((seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9) & word
    seed = ((seed ^ (seed >> 27)) * 0x94D049BB133111EB) & word
    return seed ^ (seed >> 31)
