"""Starts a node of p2pfl without torchvision and ray: ``python -m benchmarks.peers.p2pfl_start JSON``.

p2pfl imports torchvision, of which it needs one function, to download MNIST. It asks for a release below
0.18, and so for a torch below 2.3. Where it finds ray it starts it in every process, once it is imported.
"""

import json
import sys
import types

import lightning  # noqa: F401  before the next lines: it uses torchvision if it finds one

for name in ("torchvision", "torchvision.datasets"):
    sys.modules[name] = types.ModuleType(name)

if __name__ == "__main__":
    from p2pfl.settings import Settings

    Settings.general.DISABLE_RAY = True
    from benchmarks.peers.p2pfl_node import main

    main(json.loads(sys.argv[1]))
