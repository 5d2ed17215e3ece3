"""Memory of a node's process, and what importing flower_edge costs.

``python -m benchmarks.memory [--quick]``

Each row is a fresh process; its peak of resident memory is the kernel's (VmHWM), measured. Nodes that relay
and mix import no torch. Training is of ResNet-20 and MobileNetV2 (width 0.5) on batches of 16 images of
32×32, three steps of SGD with momentum, one thread. An import's time is CPU time, which other processes
hardly disturb, after torch, numpy and flwr are there; the median of three processes.
"""

import json
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.harness import Benchmark, run

MIB = 2**20

ROOT = Path(__file__).parent.parent

MODEL_FLOATS = 2_000_000
"""Of the models that the mixing node holds: its own and three that arrived; 32 MB in all."""

MIX = f"""
import numpy
from flower_edge.gossip import DPSGD
models = [numpy.ones({MODEL_FLOATS}, numpy.float32) for _ in range(4)]
DPSGD(0).mix(models[0], dict.fromkeys(range(4), 0.25), dict(enumerate(models[1:], 1)), out=models[0])
"""

NODES = {
    "Python alone": "",
    "numpy": "import numpy",
    "a node that relays: flower_edge.gossip": "import flower_edge.gossip",
    "a node that relays: flower_edge.peer": "import flower_edge.peer",
    f"a node that mixes 4 models of {4 * MODEL_FLOATS // 10**6} MB": MIX,
    "torch": "import torch",
    "flower_edge.training": "import flower_edge.training",
    "a ClientApp: flower_edge.clients": "import flower_edge.clients",
}

NETWORKS = {
    "ResNet-20": "from benchmarks.networks import resnet20\nmodel = resnet20(10)",
    "MobileNetV2": "from benchmarks.networks import mobilenet_v2\nmodel = mobilenet_v2(10, width=0.5)",
}

MEANS = "GradientFilter(2, where=all_but_stem, fallback='never', basis='walsh')"

METHODS = {
    "exact": "",
    "frozen norm": "prepare_(model, FrozenNorm())",
    "filter, Fourier": "prepare_(model, GradientFilter(where=all_but_stem, fallback='never'))",
    "filter, 2×2 means": f"prepare_(model, {MEANS})",
    "filter, 2×2 means + lean + frozen norm": f"prepare_(model, {MEANS}, LeanActivations(), FrozenNorm())",
    "8 bits": "prepare_(model, Int8Training(fallback='never'))",
    "Range-EvoNorm": "replace_batchnorm_(model)",
    "8 bits + Range-EvoNorm": "prepare_(replace_batchnorm_(model), Int8Training(fallback='never'))",
    "8 bits from layer to layer + Range-EvoNorm": (
        "prepare_(replace_batchnorm_(model), Int8Training(fallback='never', chain=True))"
    ),
    "pruned gradients": "prepare_(model, SignFeedback(fallback='never'))",
    "pruned gradients, sign feedback": "prepare_(model, SignFeedback(feedback='sign', fallback='never'))",
    "elastic, half of the backward time": "ELASTIC",
}

TRAIN = """
import torch
torch.set_num_threads(1)
torch.manual_seed(0)
{network}
from flower_edge.training import *
from flower_edge.training import ElasticTrainer, Time
from torch.nn.functional import cross_entropy
model = model.to(memory_format=torch.channels_last).train()
{prepare}
optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
batch = torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last), torch.randint(10, (16,))
trainer = ElasticTrainer(model, optimizer, cross_entropy, Time(0.5)) if {elastic} else None
for _ in range(3):
    if trainer is not None:
        trainer.select(batch)
    optimizer.zero_grad()
    cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()
"""

PEAK = """
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(int(line.split()[1]) * 1024)
"""

# What flower_edge adds to a process that has the libraries anyway.
IMPORTS = (
    "flower_edge",
    "flower_edge.kernels",
    "flower_edge.gossip",
    "flower_edge.training",
    "flower_edge.clients",
)

SECONDS = """
import importlib, json, sys, time
import numpy, torch
import flwr.app, flwr.clientapp
begin = time.process_time()
importlib.import_module({module!r})
print(json.dumps(time.process_time() - begin))
"""


def _output(script: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )
    if done.returncode:
        raise RuntimeError(f"a process of this benchmark failed: {done.stderr.strip()[-500:]}")
    return done.stdout


def peak_bytes(script: str) -> int:
    """Run a script in a fresh process; return its peak of resident memory."""
    return int(_output(script + PEAK))


def training(network: str, method: str) -> str:
    """Return a script that trains a network with a method."""
    elastic = METHODS[method] == "ELASTIC"
    prepare = "" if elastic else METHODS[method]
    return TRAIN.format(network=NETWORKS[network], prepare=prepare, elastic=elastic)


def import_seconds(module: str, repeats: int) -> float:
    """Measure the CPU time that importing a module takes, after the libraries that it needs."""
    return median(json.loads(_output(SECONDS.format(module=module))) for _ in range(repeats))


def main(bench: Benchmark) -> None:
    """Measure all processes."""

    def add(process: str, bytes_: int | None, seconds: float | None = None) -> None:
        bench.row(
            process=process,
            peak_mib_measured=None if bytes_ is None else bytes_ / MIB,
            import_ms_measured=None if seconds is None else 1e3 * seconds,
        )

    peaks: dict[str, int] = {}
    for name, script in NODES.items():
        peaks[name] = peak_bytes(script)
        add(name, peaks[name])
    for network in NETWORKS:
        for method in list(METHODS)[: 2 if bench.quick else None]:
            name = f"{network}, {method}"
            peaks[name] = peak_bytes(training(network, method))
            add(name, peaks[name])
    for module in IMPORTS[: 1 if bench.quick else None]:
        seconds = import_seconds(module, 1 if bench.quick else 3)
        add(f"import {module}", None, seconds)
        if module == "flower_edge":
            bench.at_most("import flower_edge, beyond torch: CPU seconds, measured", seconds, 0.3)
    mixing = next(name for name in peaks if "mixes" in name)
    bench.at_most(
        "a node that mixes: share of the memory of importing torch", peaks[mixing] / peaks["torch"], 0.5
    )


if __name__ == "__main__":
    run("memory", __doc__, main)
