"""Who was refused, and why: counted, and named in the log."""

from collections import Counter
from logging import getLogger

log = getLogger("flower_edge.peer")

ALL_NAMED = 20
"""So many refusals for one reason are each named; of more, every `ALL_NAMED`-th: nobody is to fill a disk."""


class Refusals:
    """Counts by reason.

    Attributes
    ----------
    counts : Counter of str
    """

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def add(self, reason: str, who: str, detail: str = "") -> None:
        """Count a refusal and name it in the log.

        Parameters
        ----------
        reason : str
            One of few.
        who : str
            A node, a fingerprint, an address: what is known.
        detail : str, optional
            What was received and what was expected.
        """
        self.counts[reason] += 1
        count = self.counts[reason]
        if count <= ALL_NAMED or count % ALL_NAMED == 0:
            log.warning("refused %s: %s%s (number %d)", who, reason, detail and f" ({detail})", count)
