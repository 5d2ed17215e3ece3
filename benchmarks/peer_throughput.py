"""Bytes a second between boards: a round of a session beside bare gRPC streams that carry the same bytes.

``python -m benchmarks.peer_throughput [--quick]``

Eight processes on a ring, a model of a million fp32 elements, mutual TLS on loopback. In a round of the
session every node sends its model to two neighbours, checks and receives theirs, agrees with each that the
link counts, and mixes. In a bare round the same processes send the same bytes in chunks of the same size
over ``grpc.aio`` streams with the same certificates, and throw away what they receive. Both in turn, in the
same processes; no training, and no state on disk.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from benchmarks import harness
from benchmarks.peers.together import together
from examples.simulation import free_ports
from flower_edge.gossip import full_graph_plan, load_graph
from flower_edge.peer import Identity, Member, PeerSession, PeerSettings, rows_of
from flower_edge.peer.frames import CHUNK_BYTES
from flower_edge.peer.identity import server_name

NODES, ELEMENTS, REPEATS = 8, 1_000_000, 7
SERVICE, METHOD = "bare.Bare", "Carry"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def main(bench: harness.Benchmark) -> None:
    """Let eight processes do both in turn, and compare the slowest node's times."""
    rounds, repeats = (10, 3) if bench.quick else (20, REPEATS)
    with tempfile.TemporaryDirectory() as folder:
        for node in range(NODES):
            Identity.temporary().save(Path(folder, f"{node}.key"), Path(folder, f"{node}.crt"))
        config = {"folder": folder, "ports": free_ports(2 * NODES), "rounds": rounds, "repeats": repeats}
        command = [sys.executable, "-m", "benchmarks.peer_throughput", "--node"]
        said = together([[*command, json.dumps({**config, "node": n})] for n in range(NODES)])
    megabytes = 2 * 2 * 4 * ELEMENTS * (rounds - 1) / 1e6
    shares = []
    for repeat in range(repeats):
        bare, session = (max(node[kind][repeat] for node in said) for kind in ("bare", "session"))
        shares.append(bare / session)
        bench.row(
            repeat=repeat + 1,
            bare_megabytes_a_second=megabytes / bare,
            session_megabytes_a_second=megabytes / session,
            share=shares[-1],
        )
    bench.at_least(
        "throughput of exchange and mix as a share of bare gRPC mutual-TLS streams, 8 processes, 4 MB models",
        float(np.median(shares)),
        0.6,
    )


# -------------------------------------------------------------------- one node


def run_node(config: dict[str, Any]) -> None:
    """Do all repetitions as one node, and print the seconds that all rounds but the first took."""
    node, folder = config["node"], Path(config["folder"])
    identities = [
        (Path(folder, f"{n}.key").read_bytes(), Path(folder, f"{n}.crt").read_bytes()) for n in range(NODES)
    ]
    seconds: dict[str, list[float]] = {"bare": [], "session": []}
    for repeat in range(config["repeats"]):
        ports = config["ports"]
        seconds["bare"].append(asyncio.run(bare(node, identities, ports[:NODES], config["rounds"])))
        seconds["session"].append(session(node, identities, ports[NODES:], config["rounds"], repeat))
    print("found", json.dumps(seconds))


def session(
    node: int, identities: Sequence[tuple[bytes, bytes]], ports: Sequence[int], rounds: int, repeat: int
) -> float:
    """Return the seconds of the rounds of a session."""
    plan = full_graph_plan(load_graph(f"ring:{NODES}"))
    times: list[float] = []
    PeerSession(
        node,
        rows_of(plan, node),
        [Member(n, f"127.0.0.1:{ports[n]}", identities[n][1]) for n in range(NODES)],
        np.full(ELEMENTS, node, np.float32),
        lambda model, round_: (model, {}),
        run=f"throughput {repeat}",
        listen=f"127.0.0.1:{ports[node]}",
        identity=Identity(*identities[node]),
        settings=PeerSettings(redial_interval=0.1),
    ).run(rounds, on_round=lambda _: times.append(time.perf_counter()))
    return times[-1] - times[0]


async def bare(
    node: int, identities: Sequence[tuple[bytes, bytes]], ports: Sequence[int], rounds: int
) -> float:
    """Return the seconds of as many rounds over streams that carry nothing else."""
    neighbours = sorted({(node - 1) % NODES, (node + 1) % NODES})
    waiting: dict[int, asyncio.Future[Any]] = {
        n: asyncio.get_running_loop().create_future() for n in neighbours if n < node
    }
    done = asyncio.Event()

    async def serve(_: object, context: Any) -> None:
        waiting[int(await context.read())].set_result(context)
        await done.wait()

    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_served(identities, node, ports, waiting, serve))
        dialling = [_dialled(identities, node, n, ports) for n in neighbours if n > node]
        streams = [await stack.enter_async_context(link) for link in dialling]
        streams += [await future for future in waiting.values()]
        times: list[float] = []
        for _ in range(rounds):
            await asyncio.gather(*(carry(stream) for stream in streams))
            times.append(time.perf_counter())
        done.set()
        await asyncio.sleep(0.5)
    return times[-1] - times[0]


async def carry(stream: Any) -> None:
    """Send a model's bytes over a stream while as many are received."""

    async def send() -> None:
        for offset in range(0, 4 * ELEMENTS, CHUNK_BYTES):
            await stream.write(MODEL[offset : offset + CHUNK_BYTES])

    async def receive() -> None:
        left = 4 * ELEMENTS
        while left:
            left -= len(await stream.read())

    await asyncio.gather(send(), receive())


MODEL = bytes(4 * ELEMENTS)


@asynccontextmanager
async def _served(
    identities: Sequence[tuple[bytes, bytes]],
    node: int,
    ports: Sequence[int],
    waiting: dict[int, Any],
    serve: Any,
) -> AsyncIterator[None]:
    server = grpc.aio.server(options=UNLIMITED)
    handler = grpc.stream_stream_rpc_method_handler(serve)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    pins = b"".join(identities[n][1] for n in waiting) or identities[node][1]
    credentials = grpc.ssl_server_credentials([identities[node]], pins, require_client_auth=True)
    server.add_secure_port(f"127.0.0.1:{ports[node]}", credentials)
    await server.start()
    try:
        yield
    finally:
        await server.stop(0)


@asynccontextmanager
async def _dialled(
    identities: Sequence[tuple[bytes, bytes]], node: int, other: int, ports: Sequence[int]
) -> AsyncIterator[Any]:
    name = ("grpc.ssl_target_name_override", server_name(identities[other][1]))
    credentials = grpc.ssl_channel_credentials(identities[other][1], *identities[node])
    address = f"127.0.0.1:{ports[other]}"
    options = [*UNLIMITED, name, ("grpc.max_reconnect_backoff_ms", 200)]
    async with grpc.aio.secure_channel(address, credentials, options=options) as channel:
        call = channel.stream_stream(f"/{SERVICE}/{METHOD}")(wait_for_ready=True)
        await call.write(str(node).encode())
        yield call
        call.cancel()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--node"]:
        run_node(json.loads(sys.argv[2]))
    else:
        harness.run("peer_throughput", __doc__, main)
