"""Runs where a wheel has just been installed: `python wheel_runs.py` fails if its kernels do not work."""

import numpy as np

from flower_edge.kernels import explain, mix

explanation = explain()
assert explanation.cpu, explanation.reason
vectors = [np.full(1003, value, np.float32) for value in (1.0, 2.0, 4.0)]
mixed = mix(np.empty(1003, np.float32), vectors, [0.5, 0.25, 0.25])
np.testing.assert_array_equal(mixed, np.full(1003, 2.0, np.float32))
print(explanation)
