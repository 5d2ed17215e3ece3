"""Compiled kernels behind a typed Python face, each with a slow twin in numpy.

The extension ``flower_edge._kernels`` chooses the best version for this CPU at run time and runs in torch's
thread pool. Where it is missing the slow twins run instead; :func:`explain` says what runs and why.
"""

from flower_edge.kernels._dispatch import Explanation, available_isas, explain, use_isa
from flower_edge.kernels._mix import mix, mix_reference

__all__ = ["Explanation", "available_isas", "explain", "mix", "mix_reference", "use_isa"]
