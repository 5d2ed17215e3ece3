"""Matrix products inside kernels, where torch's operators cannot be called: by the MKL in torch."""

from types import ModuleType

from flower_edge.kernels._libtorch import address_of

# None until torch has been looked at.
_connected: bool | None = None


def connect(extension: ModuleType) -> bool:
    """Hand MKL's ``sgemm_`` to the extension, once.

    Parameters
    ----------
    extension : module
        ``flower_edge._kernels``.

    Returns
    -------
    bool
        Whether there is one. Another BLAS than MKL may start threads inside torch's, so it is not asked.
    """
    global _connected
    if _connected is None:
        _connected = _hand_over(extension)
    return _connected


def _hand_over(extension: ModuleType) -> bool:
    import torch

    if not torch.backends.mkl.is_available():  # type: ignore[no-untyped-call]
        return False
    try:
        extension.set_sgemm(address_of("sgemm_"))
    except (OSError, AttributeError):
        return False
    return True
