"""Lets targets read changes of good inputs: ``python tests/fuzz/fuzz.py [--seconds S] [TARGET …]``.

With atheris (``pip install atheris``), libFuzzer looks for inputs that reach new code, and keeps them in
``--corpus FOLDER``; without it, changes are random. An input that gets past its reader's promise is printed,
and the exit status is not 0. Memory is bounded: by libFuzzer's limits, or by what Python has taken."""

import argparse
import random
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

MOST_BYTES = 32 * 2**20
"""That reading an input of at most a frame's size may take at once."""

INTERESTING = [0, 1, 2, 3, 7, 8, 15, 16, 0x7F, 0x80, 0xFE, 0xFF]


class TooMuchMemoryError(AssertionError):
    """Reading an input took more memory than it may."""


def inputs(seeds: tuple[bytes, ...], draw: random.Random) -> Iterator[bytes]:
    """Yield the seeds, and then changes of them for ever."""
    yield from seeds
    kept = list(seeds)
    while True:
        data = draw.choice(kept)
        for _ in range(draw.choice([1, 1, 2, 4, 16])):
            data = changed(data, draw.choice(kept), draw)
        # Some changes are kept, so that others can be made to them.
        if draw.random() < 0.05 and len(data) < 4096:
            kept[len(seeds) :] = [*kept[len(seeds) :], data][-50:]
        yield data


def changed(data: bytes, other: bytes, draw: random.Random) -> bytes:
    """Return bytes with one change."""
    where, length = draw.randrange(len(data) + 1), draw.choice([1, 2, 4, 8, draw.randrange(1, 64)])
    before, after = data[:where], data[where:]
    match draw.randrange(7):
        case 0 if after:
            return before + bytes([after[0] ^ 1 << draw.randrange(8)]) + after[1:]
        case 1:
            return before + draw.choice([b"\0", b"\xff"]) * length + after[length:]
        case 2:
            return before + bytes([draw.choice(INTERESTING)]) + after[1:]
        case 3:
            return before + draw.randbytes(length) + draw.choice([after, after[length:]])
        case 4:
            return before + after[length:]
        case 5:
            return before + other[draw.randrange(len(other) + 1) :]
        case _:
            return before


def attack(name: str, *, cases: int = sys.maxsize, seconds: float = float("inf"), seed: int = 0) -> int:
    """Let a target read so many inputs, or for so long; return how many it read.

    What gets past the target is raised again, with the input."""
    from fuzz_targets import TARGETS

    target, draw = TARGETS[name], random.Random(f"{name} {seed}")
    deadline = time.monotonic() + seconds
    read = 0
    tracing = tracemalloc.is_tracing()
    tracemalloc.start()
    try:
        for data in islice(inputs(target.seeds, draw), cases):
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            try:
                target.read(data)
                read += 1
                taken = tracemalloc.get_traced_memory()[1] - before
                if taken > MOST_BYTES:
                    raise TooMuchMemoryError(f"{taken} bytes, expected at most {MOST_BYTES}")
            except Exception as error:
                error.add_note(f"target {name!r} read {data!r}")
                raise
            if time.monotonic() > deadline:
                break
    finally:
        if not tracing:
            tracemalloc.stop()
    return read


def attack_with_atheris(name: str, seconds: float, corpus: Path) -> None:
    """Let libFuzzer look for inputs, in this process, which ends with it."""
    import atheris

    with atheris.instrument_imports(include=["flower_edge", "fuzz_targets"]):
        from fuzz_targets import TARGETS
    folder = corpus / name.replace(", ", "-").replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(TARGETS[name].seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    options = [f"-max_total_time={max(1, round(seconds))}", "-rss_limit_mb=2048", "-malloc_limit_mb=64"]
    options += ["-max_len=4096", "-timeout=10", "-print_final_stats=1", f"-artifact_prefix={folder}/"]

    def read(data: bytes) -> None:
        TARGETS[name].read(data)

    atheris.Setup([sys.argv[0], *options, str(folder)], read)
    atheris.Fuzz()


def main() -> int:
    """Attack the targets one after the other, each in a process of its own; return the exit status."""
    from fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description="Let what reads bytes from others read bad ones.")
    parser.add_argument("targets", nargs="*", default=list(TARGETS), help=", ".join(TARGETS))
    parser.add_argument("--seconds", type=float, default=10.0, help="for each target (default: 10)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the random changes, where there is no atheris"
    )
    parser.add_argument("--corpus", type=Path, help="where atheris keeps inputs that reach new code")
    named = parser.parse_args()
    if unknown := sorted(set(named.targets) - TARGETS.keys()):
        parser.error(f"there is no target {unknown[0]!r}")
    failed = []
    for name in named.targets:
        if named.corpus is None:
            print(f"{name}: {attack(name, seconds=named.seconds, seed=named.seed)} inputs", flush=True)
        else:
            command = [sys.executable, __file__, "--atheris", name, str(named.seconds), str(named.corpus)]
            if subprocess.run(command, check=False).returncode:
                failed.append(name)
    for name in failed:
        print(f"{name}: see above", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--atheris"]:
        attack_with_atheris(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
    else:
        sys.exit(main())
