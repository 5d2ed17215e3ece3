"""What both ends of gRPC are told."""

from typing import Any

from flower_edge.peer.frames import LARGEST_FRAME
from flower_edge.peer.settings import PeerSettings

SERVICE, METHOD = "flower_edge.Peer", "Link"
PATH = f"/{SERVICE}/{METHOD}"


def options(settings: PeerSettings) -> list[tuple[str, Any]]:
    """Return gRPC's channel arguments.

    A message that is larger than any frame is refused by gRPC before memory is taken for it.
    """
    return [
        ("grpc.max_receive_message_length", LARGEST_FRAME),
        ("grpc.max_send_message_length", LARGEST_FRAME),
        ("grpc.max_concurrent_streams", 1),
        ("grpc.max_metadata_size", 8192),
        ("grpc.keepalive_time_ms", round(1000 * settings.keepalive_interval)),
        ("grpc.keepalive_timeout_ms", round(1000 * settings.keepalive_timeout)),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", round(500 * settings.keepalive_interval)),
        ("grpc.initial_reconnect_backoff_ms", round(1000 * settings.redial_interval)),
        ("grpc.min_reconnect_backoff_ms", round(1000 * settings.redial_interval)),
        ("grpc.max_reconnect_backoff_ms", round(1000 * settings.redial_interval)),
        # Links go straight to the neighbour, and two sessions of a process share none.
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.so_reuseport", 0),
    ]
