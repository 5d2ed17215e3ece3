"""Where a run of sessions stands, on the server's disk: one file, replaced atomically."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import MetricRecord
from flwr.serverapp.strategy import Result

from flower_edge.gossip._strict_json import is_int
from flower_edge.strategies.archive import CheckpointError
from flower_edge.strategies.session_rounds import SessionRounds

VERSION = 1
LARGEST = 256 * 2**20

Reports = dict[str, dict[str, dict[str, float]]]


@dataclass
class SessionProgress:
    """What a server has to know to go on with a run that it began before it was killed.

    Models are not in it: they are on the boards' disks.

    Attributes
    ----------
    plan : str
        Digest of the plan.
    run : str
        Under this name boards keep their key and their model.
    last : int
        The last round of the last session that is over.
    reports : dict
        What nodes have reported, by round and node.
    evaluations : dict
        Metrics of evaluations, by the name of the field of Flower's ``Result``, and round.
    """

    plan: str
    run: str
    last: int = 0
    reports: Reports = field(default_factory=dict)
    evaluations: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def note(self, rounds: SessionRounds, result: Result) -> None:
        """Take over what nodes have reported, and what evaluations have found."""
        self.reports = rounds.to_json()
        self.evaluations = {
            kind: {str(r): dict(metrics) for r, metrics in getattr(result, kind).items()}
            for kind in ("evaluate_metrics_clientapp", "evaluate_metrics_serverapp")
        }

    def recall(self, rounds: SessionRounds, result: Result) -> None:
        """Give back what `note` took over.

        Raises
        ------
        CheckpointError
            If it is not that.
        """
        try:
            rounds.restore(self.reports)
            for kind, evaluations in self.evaluations.items():
                getattr(result, kind).update(
                    {int(r): MetricRecord(found) for r, found in evaluations.items()}
                )
        except (ValueError, TypeError, AttributeError) as error:
            raise CheckpointError(f"the file does not say where a run of sessions stands: {error}") from error
        result.train_metrics_clientapp.update(rounds.since(1))

    def save(self, path: Path) -> None:
        """Write the file: after a crash at any moment it is the old one or the new one, whole.

        Raises
        ------
        OSError
            If it cannot be written. The file that was there is untouched.
        """
        partial = path.with_name(path.name + ".partial")
        try:
            with partial.open("w") as file:
                json.dump({"version": VERSION, **vars(self)}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise OSError(
                error.errno, f"could not write where the run stands: {error.strerror}", str(path)
            ) from error

    @classmethod
    def load(cls, path: Path, plan: str) -> SessionProgress:
        """Read the file of a run by a plan.

        Raises
        ------
        CheckpointError
            If it is damaged, or the run is one by another plan.
        """
        try:
            if path.stat().st_size > LARGEST:
                raise CheckpointError(f"{path} has more than {LARGEST} bytes, expected no more")
            found = json.loads(path.read_text())
            if found.pop("version") != VERSION:
                raise CheckpointError(f"{path} has another version, expected {VERSION}")
            progress = cls(**found)
        except CheckpointError:
            raise
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
            raise CheckpointError(f"{path} does not say where a run of sessions stands: {error}") from error
        if progress.plan != plan:
            raise CheckpointError(
                f"{path} is of a run by another plan; resume with that plan, or start a new file"
            )
        if not str(progress.run).isalnum() or not is_int(progress.last) or progress.last < 0:
            raise CheckpointError(f"{path} does not say where a run of sessions stands")
        return progress
