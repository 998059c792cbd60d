"""The messages by which queue pairs are connected, and the plain data that they carry."""

from __future__ import annotations

from kvstore.cluster.proto import control_pb2
from kvstore.node.description import VerbsEndpoint, VerbsGrant


def endpoint_message(endpoint: VerbsEndpoint) -> control_pb2.VerbsEndpoint:
    """An endpoint as it travels."""
    return control_pb2.VerbsEndpoint(
        gid=endpoint.gid,
        lid=endpoint.lid,
        queue_pair=endpoint.queue_pair,
        packet_sequence=endpoint.packet_sequence,
        mtu_bytes=endpoint.mtu_bytes,
        reads_at_once=endpoint.reads_at_once,
        rail=endpoint.rail,
    )


def endpoint_from(message: control_pb2.VerbsEndpoint) -> VerbsEndpoint:
    """An endpoint that has come. Its figures are checked where they are used."""
    return VerbsEndpoint(
        gid=message.gid,
        lid=message.lid,
        queue_pair=message.queue_pair,
        packet_sequence=message.packet_sequence,
        mtu_bytes=message.mtu_bytes,
        reads_at_once=message.reads_at_once,
        rail=message.rail,
    )


def grant_message(grant: VerbsGrant) -> control_pb2.VerbsGrant:
    """A grant as it travels."""
    return control_pb2.VerbsGrant(
        node=endpoint_message(grant.node),
        region_address=grant.region_address,
        region_bytes=grant.region_bytes,
        remote_key=grant.remote_key,
    )


def grant_from(message: control_pb2.VerbsGrant) -> VerbsGrant:
    """A grant that has come."""
    return VerbsGrant(
        node=endpoint_from(message.node),
        region_address=message.region_address,
        region_bytes=message.region_bytes,
        remote_key=message.remote_key,
    )
