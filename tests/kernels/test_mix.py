"""The mix kernel: against float64 numpy, and its promises about bits, aliasing and bad input."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_edge import kernels

pytestmark = pytest.mark.board

F32 = npt.NDArray[np.float32]
ISAS = kernels.available_isas()
SIZES = [0, 1, 7, 15, 31, 33, 97, 1000, 4099]


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def rows(count: int, length: int, seed: int = 0) -> list[F32]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(length, dtype=np.float32) for _ in range(count)]


def assert_is_mix(out: F32, vectors: list[F32], weights: Any) -> None:
    """Relative to the sum of magnitudes, since terms may cancel."""
    stacked = np.stack(vectors).astype(np.float64)
    expected = np.asarray(weights, dtype=np.float64) @ stacked
    magnitude = np.abs(np.asarray(weights, dtype=np.float64)) @ np.abs(stacked)
    assert (np.abs(out - expected) <= 1e-6 * magnitude).all()


def shifted(row: F32, offset: int) -> F32:
    """Copy of a row that begins `offset` bytes after a cache line."""
    buffer = np.zeros(row.nbytes + 128, dtype=np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    view = buffer[start : start + row.nbytes].view(np.float32)
    view[:] = row
    return view


def test_the_extension_is_built() -> None:
    assert "serial" in ISAS, str(kernels.explain())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 64])
def test_equals_numpy(isa: str, count: int) -> None:
    for length in SIZES:
        vectors = rows(count, length, seed=length)
        weights = np.random.default_rng(count).dirichlet(np.ones(count))
        with kernels.use_isa(isa):
            out = kernels.mix(np.full(length, np.nan, np.float32), vectors, weights)
        assert_is_mix(out, vectors, weights)


@settings(deadline=None)
@given(data=st.data())
def test_equals_numpy_at_any_size_offset_and_aliasing(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 20), label="count")
    length = data.draw(st.integers(0, 9000), label="length")
    seed = data.draw(st.integers(0, 2**32 - 1), label="seed")
    given_rows = rows(count, length, seed)
    weights = np.random.default_rng(seed).uniform(-2, 2, count)
    offsets = st.integers(0, 63)
    vectors = [shifted(row, data.draw(offsets, label="offset")) for row in given_rows]
    target = data.draw(st.integers(-1, count - 1), label="out is vector")
    out = shifted(np.zeros(length, np.float32), data.draw(offsets)) if target < 0 else vectors[target]
    for again in (
        data.draw(st.sets(st.integers(0, count - 1), max_size=2), label="out also is") if target >= 0 else ()
    ):
        vectors[again], given_rows[again] = out, given_rows[target]
    with kernels.use_isa(data.draw(st.sampled_from(ISAS), label="isa")):
        assert kernels.mix(out, vectors, weights) is out
    assert_is_mix(out, given_rows, weights)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.usefixtures("_threads")
def test_bits_do_not_depend_on_threads_length_alignment_or_place(isa: str) -> None:
    length = 200_003
    vectors = rows(12, length)
    weights = np.random.default_rng(1).dirichlet(np.ones(12))
    with kernels.use_isa(isa):
        torch.set_num_threads(1)
        once = kernels.mix(np.empty(length, np.float32), vectors, weights)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert kernels.mix(np.empty(length, np.float32), vectors, weights).tobytes() == once.tobytes()
        misaligned = kernels.mix(shifted(once, 7), [shifted(row, 29) for row in vectors], weights)
        assert misaligned.tobytes() == once.tobytes()
        part = slice(777, 5000)
        assert (
            kernels.mix(np.empty(5000 - 777, np.float32), [row[part] for row in vectors], weights).tobytes()
            == once[part].tobytes()
        )
        inplace = vectors[10].copy()
        assert (
            kernels.mix(inplace, [*vectors[:10], inplace, vectors[11]], weights).tobytes() == once.tobytes()
        )


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("offset", [0, 4, 13])
def test_large_results_that_bypass_the_cache_have_the_same_bits(isa: str, offset: int) -> None:
    length = 3_000_001
    vectors = rows(2, length)
    with kernels.use_isa(isa):
        out = kernels.mix(shifted(np.zeros(length, np.float32), offset), vectors, [0.3, 0.7])
        inplace = kernels.mix(vectors[0], vectors, [0.3, 0.7])
    assert out.tobytes() == inplace.tobytes()


def test_tensors_and_arrays_may_be_mixed() -> None:
    vectors = rows(3, 1001)
    expected = kernels.mix(np.empty(1001, np.float32), vectors, [0.5, 0.25, 0.25])
    out = kernels.mix(torch.empty(1001), [torch.from_numpy(vectors[0]), *vectors[1:]], [0.5, 0.25, 0.25])
    assert out.numpy().tobytes() == expected.tobytes()


class _MadeOnAccess(Sequence[F32]):
    """Vectors of 1, 2 and 3 that nobody else keeps."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: Any) -> Any:
        if place >= len(self):
            raise IndexError
        return np.full(100_000, place + 1, np.float32)


@pytest.mark.parametrize("isa", ISAS)
def test_vectors_that_nobody_else_keeps_are_kept(isa: str) -> None:
    for mixed in (kernels.mix, kernels.mix_reference):
        out = np.zeros(100_000, np.float32)
        with kernels.use_isa(isa):
            mixed(out, _MadeOnAccess(), [1.0, 10.0, 100.0])
        assert (out == 321.0).all()


def test_nan_and_infinity_propagate() -> None:
    first = np.array([np.nan, np.inf, np.inf, 1.0], np.float32)
    second = np.array([1.0, 1.0, -np.inf, 1.0], np.float32)
    for isa in ISAS:
        with kernels.use_isa(isa):
            out = kernels.mix(np.empty(4, np.float32), [first, second], [0.5, 0.5])
        np.testing.assert_array_equal(out, np.array([np.nan, np.inf, np.nan, 1.0], np.float32))
    np.testing.assert_array_equal(kernels.mix_reference(out.copy(), [first, second], [0.5, 0.5]), out)


def test_weight_zero_does_not_hide_a_nan() -> None:
    out = kernels.mix(np.empty(1, np.float32), [*rows(1, 1), np.array([np.nan], np.float32)], [1.0, 0.0])
    assert np.isnan(out).all()


def test_reference_is_exact_to_one_rounding() -> None:
    vectors = rows(5, 70_001)
    weights = np.array([0.1, 0.2, 0.3, 0.2, 0.2], np.float32)
    expected = sum(w * v.astype(np.float64) for w, v in zip(weights.astype(np.float64), vectors, strict=True))
    out = kernels.mix_reference(vectors[3], vectors, weights)
    np.testing.assert_array_equal(out, np.asarray(expected).astype(np.float32))


def test_autograd_learns_of_the_write() -> None:
    saved = torch.ones(4)
    parameter = torch.ones(4, requires_grad=True)
    loss = (parameter * saved).sum()
    kernels.mix(saved, [saved], [2.0])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_of_inference_mode_are_fine() -> None:
    with torch.inference_mode():
        out = torch.ones(4)
    assert kernels.mix(out, [out], [2.0]).tolist() == [2.0] * 4


zeros = np.zeros(8, np.float32)


@pytest.mark.parametrize(
    ("out", "vectors", "weights", "error", "match"),
    [
        (zeros, [], [], ValueError, "vectors is empty"),
        (zeros, [zeros], [0.5, 0.5], ValueError, r"weights is \[0.5, 0.5\], expected 1 numbers"),
        (zeros, [zeros], [[1.0]], TypeError, r"weights\[0\] is \[1.0\], expected a number"),
        (zeros, [zeros], np.ones((1, 1)), TypeError, r"weights\[0\] is \[1.0\], expected a number"),
        (zeros, [zeros], np.array(1.0), ValueError, r"expected 1 numbers"),
        (zeros, [zeros], 1.0, ValueError, r"weights is 1.0, expected 1 numbers"),
        (zeros, [zeros], [float("nan")], ValueError, r"weights\[0\] is nan"),
        (zeros, [zeros, zeros], [1.0, float("-inf")], ValueError, r"weights\[1\] is -inf"),
        (zeros, [zeros], [1e39], ValueError, r"weights\[0\] is 1e\+39.*finite in float32"),
        (zeros, [zeros[:7]], [1.0], ValueError, r"vectors\[0\] has 7 elements, expected 8"),
        (
            zeros,
            [zeros.astype(np.float64)],
            [1.0],
            TypeError,
            r"vectors\[0\] has dtype float64, expected float32",
        ),
        (zeros, [zeros.astype(">f4")], [1.0], TypeError, r"dtype >f4"),
        (zeros.astype(np.float16), [zeros], [1.0], TypeError, "out has dtype float16"),
        (zeros.reshape(2, 4), [zeros], [1.0], ValueError, r"out has shape \(2, 4\)"),
        (
            zeros,
            [np.zeros(16, np.float32)[::2]],
            [1.0],
            ValueError,
            r"strides \(8,\), expected one contiguous",
        ),
        (zeros, [[0.0] * 8], [1.0], TypeError, r"vectors\[0\] is a list"),
        (zeros, [torch.zeros(8, dtype=torch.float64)], [1.0], TypeError, "torch.float64 tensor on cpu"),
        (zeros, [torch.zeros(8, device="meta")], [1.0], TypeError, "tensor on meta"),
        (zeros, [torch.zeros(8).to_sparse()], [1.0], TypeError, "layout torch.sparse_coo"),
        (zeros, [torch.zeros(16)[::2]], [1.0], ValueError, r"strides \(2,\)"),
        (zeros, [torch._neg_view(torch.ones(8))], [1.0], ValueError, "pending negation"),
        (
            torch.zeros(8, requires_grad=True),
            [zeros],
            [1.0],
            ValueError,
            r"out requires gradients.*out.detach\(\)",
        ),
        (zeros[1:], [zeros[:-1]], [1.0], ValueError, r"vectors\[0\] overlaps out partly, -4 bytes apart"),
        (zeros[:-1], [zeros[1:]], [1.0], ValueError, r"overlaps out partly, 4 bytes apart"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    out: Any, vectors: Any, weights: Any, error: type[Exception], match: str
) -> None:
    for function in (kernels.mix, kernels.mix_reference):
        with pytest.raises(error, match=match):
            function(out, vectors, weights)
    assert not zeros.any()


def test_read_only_out_is_refused() -> None:
    out = np.zeros(4, np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out is a read-only array"):
        kernels.mix(out, [zeros[:4]], [1.0])


def test_a_wrong_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'sse9'.*serial"), kernels.use_isa("sse9"):
        pass


def test_use_isa_nests_and_ends() -> None:
    best = kernels.explain().versions["mix"]
    with kernels.use_isa(ISAS[-1]), kernels.use_isa("serial"):
        assert kernels.explain().versions["mix"] == "serial"
        assert "use_isa('serial')" in str(kernels.explain()) or best == "serial"
    assert kernels.explain().versions["mix"] == best


@pytest.mark.usefixtures("_threads")
def test_explain_follows_torch_threads() -> None:
    torch.set_num_threads(2)
    assert "2 (torch's pool" in str(kernels.explain())


def python(code: str, isa: str = "") -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"FLOWER_EDGE_ISA": isa}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )


def test_the_environment_overrides() -> None:
    for number, isa in enumerate(ISAS, 1):
        done = python("from flower_edge import kernels; print(kernels.explain())", isa)
        best = [plainer for plainer in ISAS[:number] if plainer in ("serial", "avx2", "avx512", "neon")][-1]
        assert re.search(rf"^mix +{best}$", done.stdout, re.M), done.stderr
        assert f"FLOWER_EDGE_ISA={isa} is in force" in done.stdout


@pytest.mark.parametrize("isa", ["sse9", "neon" if "avx2" in ISAS else "avx2", "AVX2"])
def test_a_wrong_environment_is_refused(isa: str) -> None:
    done = python("import flower_edge.kernels", isa)
    assert done.returncode != 0
    assert "ValueError: FLOWER_EDGE_ISA: " in done.stderr
    assert f"'{isa}'" in done.stderr
    assert "this CPU offers serial" in done.stderr


def test_without_torch_it_runs_in_one_thread_and_says_so() -> None:
    done = python(
        "import sys; sys.modules['torch'] = None\n"
        "import numpy as np; from flower_edge import kernels\n"
        "a = np.ones(100000, np.float32); kernels.mix(a, [a, a], [1.0, 2.0]); assert (a == 3).all()\n"
        "print(kernels.explain())"
    )
    assert "1 (the calling one alone, since torch is not imported" in done.stdout, done.stderr


def test_with_an_old_torch_it_runs_in_one_thread_and_says_so() -> None:
    done = python(
        "import sys, types, math\n"
        "old = types.ModuleType('torch'); old.__version__ = '2.9.1'; old.get_num_threads = lambda: 4\n"
        "old.Tensor = type('Tensor', (), {})\n"
        # None opens this process itself, which has no such symbol.
        "old._C = types.SimpleNamespace(__file__=None)\n"
        "sys.modules['torch'] = old\n"
        "import numpy as np; from flower_edge import kernels\n"
        "a = np.ones(100000, np.float32); kernels.mix(a, [a, a], [1.0, 2.0]); assert (a == 3).all()\n"
        "print(kernels.explain())"
    )
    assert "1 (the calling one alone, since torch 2.9.1 has no torch_parallel_for" in done.stdout, done.stderr


FALL_BACK = """
import sys; sys.modules["flower_edge._kernels"] = None
import numpy as np
from flower_edge import kernels
rng = np.random.default_rng(0)
vectors = [rng.standard_normal(4099, dtype=np.float32) for _ in range(9)]
kernels.mix(vectors[8], vectors, np.arange(9) / 36)
sys.stdout.write(vectors[8].tobytes().hex() + "\\n" + str(kernels.explain()))
"""


def test_without_the_extension_the_twin_runs_and_says_so() -> None:
    done = python(FALL_BACK)
    blob, _, explanation = done.stdout.partition("\n")
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal(4099, dtype=np.float32) for _ in range(9)]
    assert_is_mix(np.frombuffer(bytes.fromhex(blob), np.float32), vectors, np.arange(9) / 36)
    assert re.search(r"^mix +numpy$", explanation, re.M)
    assert "flower_edge._kernels cannot be imported" in explanation


def test_without_the_extension_an_override_is_refused() -> None:
    done = python(FALL_BACK, isa="serial")
    assert done.returncode != 0
    assert "ValueError: FLOWER_EDGE_ISA=serial asks for a compiled version, but" in done.stderr
