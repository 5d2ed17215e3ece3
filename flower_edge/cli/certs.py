"""``flower-edge certs``: keys and certificates of nodes."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from flower_edge.cli.screen import output, say
from flower_edge.peer.identity import Identity, fingerprint, read_pem

certs = typer.Typer(
    name="certs",
    no_args_is_help=True,
    help="Keys and certificates by which nodes recognise each other.",
)

_NAME = "a file name without folders"


@certs.command("make")
def make(
    names: Annotated[list[str], Argument(metavar="NAME…", show_default=False)],
    folder: Annotated[Path, Option("--folder", "-f", help="Where the files are written.")] = Path("."),
) -> None:
    """Make a key and a certificate that it signs itself for each node: NAME.key and NAME.crt.

    The key is for its node alone and leaves it never; make it there. The certificate, and the fingerprint
    that is printed, are for its neighbours.
    """
    for name in names:
        if not name or Path(name).name != name:
            raise ValueError(f"received the name {name!r}, expected {_NAME}")
    for name in names:
        identity = Identity.temporary()
        identity.save(folder / f"{name}.key", folder / f"{name}.crt")
        say(output(), f"{identity.fingerprint}  {folder / name}.crt")


@certs.command("show")
def show(files: Annotated[list[Path], Argument(metavar="FILE…", show_default=False)]) -> None:
    """Print the fingerprints of certificates, those of your own authority included."""
    for file in files:
        say(output(), f"{fingerprint(read_pem(file))}  {file}")
