"""Training that knows named arrays, for a session that knows one vector."""

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any, TypeAlias
from zipfile import BadZipFile

import numpy as np

from flower_edge.gossip.codec import Arrays, Carried, Layout, Vector
from flower_edge.peer.report import Metrics
from flower_edge.peer.state import StateError

TrainNamed: TypeAlias = Callable[[dict[str, Any], int], tuple[Arrays, Metrics]]


class NamedModel:
    """A model's arrays as one vector, and the arrays that gossip does not mix.

    Parameters
    ----------
    arrays : mapping of str to ndarray or Tensor
        Where training starts, for example a ``state_dict``.
    train : callable
        ``(arrays, round) -> (arrays, metrics)``: the local steps. It gets copies, of the kind that `arrays`
        are: numpy arrays or torch tensors.

    Attributes
    ----------
    vector : ndarray of float32, shape (d,)
        The mixed arrays at the start.
    layout : Layout
        Where they lie in it.
    """

    def __init__(self, arrays: Arrays, train: TrainNamed) -> None:
        self.layout = Layout.of(arrays)
        self.vector, self._carried = self.layout.flatten(arrays)
        self._train = train
        numpy_alone = all(isinstance(array, np.ndarray | np.generic) for array in arrays.values())
        self._unflatten: Callable[[Vector, Mapping[str, Any]], dict[str, Any]] = (
            self.layout.unflatten if numpy_alone else self.layout.unflatten_torch
        )

    def train(self, vector: Vector, round: int) -> tuple[Vector, Metrics]:
        """Train, as a `PeerSession` wants it."""
        trained, metrics = self._train(self.arrays(vector), round)
        vector, self._carried = self.layout.flatten(trained)
        return vector, metrics

    def arrays(self, vector: Vector) -> dict[str, Any]:
        """Return the named arrays of a vector, with what is not mixed as it was after the last training."""
        carried = {name: array.copy() for name, array in self._carried.items()}
        return self._unflatten(vector.copy(), carried)

    def extra(self) -> bytes:
        """Return the arrays that are not mixed, for a session's state."""
        file = BytesIO()
        # Numbered, because names of arrays are no file names.
        numbered: dict[str, Any] = {str(n): array for n, array in enumerate(self._carried.values())}
        np.savez(file, **numbered)
        return file.getvalue()

    def restore(self, extra: bytes) -> None:
        """Take over what `extra` returned.

        Raises
        ------
        flower_edge.peer.StateError
            If it belongs to another model.
        """
        try:
            with np.load(BytesIO(extra), allow_pickle=False) as archive:
                found: Carried = {name: archive[str(number)] for number, name in enumerate(self._carried)}
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise StateError(f"cannot read the arrays that are not mixed: {error}") from error
        for name, array in self._carried.items():
            if (found[name].shape, found[name].dtype) != (array.shape, array.dtype):
                raise StateError(
                    f"array {name!r} is {found[name].dtype} {found[name].shape} in the state, "
                    f"expected {array.dtype} {array.shape}"
                )
        self._carried = found
