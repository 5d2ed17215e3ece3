"""The import graph of docs/architecture.md, and what a board can do without."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

ALLOWED = {
    "flower_edge/kernels": {"flower_edge.kernels", "flower_edge._kernels", "numpy", "torch"},
    "flower_edge/training": {"flower_edge.training", "flower_edge.kernels", "numpy", "torch"},
    "flower_edge/gossip": {
        *{"flower_edge.gossip", "flower_edge.kernels", "flower_edge._extras"},
        *{"numpy", "torch", "networkx", "scipy", "cvxpy"},
    },
    "flower_edge/energy": {"flower_edge.energy"},
    "flower_edge/peer": {
        *{"flower_edge.peer", "flower_edge.gossip", "flower_edge._files"},
        *{"cryptography", "grpc", "numpy"},
    },
    "flower_edge/report": {
        *{"flower_edge.report", "flower_edge.gossip", "flower_edge._extras"},
        *{"numpy", "matplotlib", "networkx"},
    },
    "flower_edge/cli": {
        *{"flower_edge.cli", "flower_edge.energy", "flower_edge.gossip", "flower_edge.kernels"},
        *{"flower_edge.peer", "flower_edge.report", "flower_edge.training"},
        *{
            "flower_edge._extras",
            "flower_edge._files",
            "click",
            "networkx",
            "numpy",
            "rich",
            "torch",
            "typer",
        },
    },
    "clients": {"flower_edge", "flwr", "numpy", "torch"},
    "strategies": {"flower_edge", "flwr", "numpy"},
}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module)
            modules |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "flower_edge"}
    return modules


@pytest.mark.parametrize("folder", ALLOWED)
def test_imports_go_one_way(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files

    for path in files:
        for module in imported_modules(path) - {"flower_edge"}:
            if module.partition(".")[0] in sys.stdlib_module_names:
                continue
            permitted = any(module == prefix or module.startswith(prefix + ".") for prefix in ALLOWED[folder])
            assert permitted, f"{path.relative_to(ROOT)} imports {module}, which {folder} may not"


def test_nothing_unpickles() -> None:
    for path in [
        *(ROOT / "flower_edge").rglob("*.py"),
        *ROOT.glob("strategies/*.py"),
        *ROOT.glob("clients/*.py"),
    ]:
        assert not {"pickle", "dill", "cloudpickle"} & imported_modules(path), path
        assert "allow_pickle=True" not in path.read_text(), path


NO_TORCH = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(f"{name} is blocked: this node has no torch")

sys.meta_path.insert(0, Refuse())
"""


def without_torch(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", NO_TORCH + script], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_torch_is_blocked_indeed() -> None:
    done = without_torch("import torch")

    assert done.returncode == 1
    assert "this node has no torch" in done.stderr


def test_a_node_without_torch_mixes() -> None:
    """With the compiled kernel where there is one, with its slow twin, and from bytes as they arrive."""
    done = without_torch("""
import numpy as np
import flower_edge, flower_edge.energy, flower_edge.gossip, flower_edge.kernels
from flower_edge.gossip import DPSGD, Layout
from flower_edge.kernels import explain, mix, mix_reference

model = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "bias": np.ones(2, np.float32)}
layout = Layout.of(model)
mine, carried = layout.flatten(model)
arrived = [np.frombuffer((factor * mine).tobytes(), np.float32) for factor in (2, 5)]
mixed = DPSGD(0).mix(mine, {0: 0.5, 3: 0.25, 7: 0.25}, {3: arrived[0], 7: arrived[1]})
np.testing.assert_allclose(mixed, 2.25 * mine, rtol=1e-6)
slow = mix_reference(np.empty_like(mine), [mine, *arrived], [0.5, 0.25, 0.25])
np.testing.assert_allclose(mixed, slow, rtol=1e-6)
np.testing.assert_allclose(layout.unflatten(mixed, carried)["weight"], 2.25 * model["weight"], rtol=1e-6)
assert explain().threads == 1
assert "torch" in explain().threads_reason
assert "torch" not in sys.modules
""")

    assert done.returncode == 0, done.stderr


def test_what_needs_torch_says_so_on_a_node_without() -> None:
    done = without_torch("import flower_edge.training")

    assert done.returncode == 1
    assert "torch is blocked" in done.stderr


@pytest.mark.parametrize(
    ("module", "spared"),
    [
        ("flower_edge", {"numpy", "torch", "flwr"}),
        ("flower_edge.energy", {"numpy", "torch", "flwr"}),
        ("flower_edge.kernels", {"torch", "flwr"}),
        ("flower_edge.gossip", {"torch", "flwr", "scipy", "networkx", "cvxpy"}),
        ("flower_edge.cli", {"torch", "flwr", "scipy", "networkx", "cvxpy", "matplotlib"}),
        ("flower_edge.training", {"flwr", "scipy", "networkx"}),
    ],
)
def test_imports_are_lazy(module: str, spared: set[str]) -> None:
    script = f"import sys, {module}; print(*sorted({spared!r} & set(sys.modules)))"

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


def test_a_board_needs_no_solver(tmp_path: Path) -> None:
    """Loading a plan and mixing works where no solver, networkx, scipy, matplotlib or flwr is installed."""
    script = """
import sys
for module in ("networkx", "scipy", "cvxpy", "matplotlib", "sklearn", "flwr"):
    sys.modules[module] = None
import numpy as np
from flower_edge.gossip import DPSGD, GossipPlan
plan = GossipPlan.from_json(open(sys.argv[1]).read())
row = plan.row(0, 1)
model = np.ones(5, np.float32)
mixed = DPSGD(0).mix(model, row, {j: 2 * model for j in row if j != 0})
np.testing.assert_allclose(mixed, row[0] + 2 * (1 - row[0]), rtol=1e-6)
try:
    from flower_edge.gossip import load_graph
    load_graph("ring:4")
except ImportError as error:
    assert "flower_edge[topology]" in str(error), error
else:
    raise AssertionError("networkx is blocked, so this has to fail")
"""
    from flower_edge.gossip import full_graph_plan, load_graph

    plan = tmp_path / "plan.json"
    plan.write_text(full_graph_plan(load_graph("ring:5")).to_json())

    done = subprocess.run(
        [sys.executable, "-c", script, str(plan)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr


def test_links_need_neither_torch_nor_flower() -> None:
    script = """
import sys
for module in ("torch", "flwr", "networkx", "scipy", "cvxpy"):
    sys.modules[module] = None
import flower_edge.peer
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
