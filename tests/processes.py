"""Processes that tests start and end."""

import signal


def heed_ctrl_c() -> None:
    """Undo, in a new process, that a shell's background jobs ignore SIGINT and hand that down."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
