"""The graphs of the benchmarks: generated ones, and real ones where there is a folder of them.

Real networks are not part of this repository. ``--topologies FOLDER``, or FLOWER_EDGE_TOPOLOGIES, names a
folder of edge lists in JSON (`flower_edge.gossip.load_graph`), such as the wireless meshes of Freifunk
communities that the meshnet-lab project keeps.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.harness import folder_option

VARIABLE = "FLOWER_EDGE_TOPOLOGIES"


def topologies_option() -> argparse.ArgumentParser:
    """Return the option that names the folder of real networks, which has to be there; none is `None`."""
    return folder_option("--topologies", VARIABLE, _folder, "of real networks")


def _folder(named: str) -> Path | None:
    if named and not Path(named).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder of topologies at {named!r}")
    return Path(named) if named else None


def real_graphs(folder: Path | None, prefix: str = "") -> dict[str, str]:
    """Return the files in a folder whose names begin with `prefix`, by what they are called in a table.

    Without a folder it says on standard error that real networks are left out, and returns none.
    """
    if folder is None:
        print(
            f"generated graphs alone: name a folder of real ones by --topologies or {VARIABLE}",
            file=sys.stderr,
        )
        return {}
    files = sorted(folder.glob(f"{prefix}*.json"))
    if not files:
        raise SystemExit(f"there are no files {prefix}*.json in {str(folder)!r}")
    return {path.stem: str(path) for path in files}
