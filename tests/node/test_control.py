"""The control plane over real sockets: admission, membership, tokens, TLS."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from kvstore import errors
from kvstore.cluster.control import Attachment, ControlClient
from kvstore.cluster.tls import TlsConfig
from kvstore.node.description import VerbsEndpoint
from tests.support.certificates import Certificate
from tests.support.nodes import NodeProcess, start_node

TOKEN = "a-token-of-the-tests"


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def control(node: NodeProcess) -> Iterator[ControlClient]:
    with ControlClient(node.address) as client:
        yield client


def _attach(control: ControlClient, *members: str, cluster_id: str = "") -> Attachment:
    return control.attach(cluster_id=cluster_id, members=members, peer="a test", timeout_s=5)


def test_attach_gives_what_the_data_path_needs(node: NodeProcess, control: ControlClient) -> None:
    attachment = _attach(control, node.address)
    assert attachment.registration > 0
    assert len(attachment.token) == 16
    assert any(attachment.token)
    assert (attachment.tcp_host, attachment.tcp_port) == ("127.0.0.1", node.data_port)
    assert attachment.shm_name == node.shm
    assert attachment.members == (node.address,)
    assert attachment.cluster_id
    assert attachment.domain == "cpu"
    assert attachment.verbs_gids == ()


def test_queue_pairs_are_refused_where_there_is_no_device(
    node: NodeProcess, control: ControlClient
) -> None:
    attachment = _attach(control, node.address)
    mine = VerbsEndpoint(
        gid=bytes(16), lid=0, queue_pair=1, packet_sequence=0, mtu_bytes=1024, reads_at_once=1
    )
    with pytest.raises(errors.AttachRefused, match="no RDMA device"):
        control.connect_verbs(attachment.registration, attachment.token, 0, mine)
    with pytest.raises(errors.ConfigurationError, match="16 bytes"):
        control.connect_verbs(attachment.registration, b"short", 0, mine)
    assert attachment.consistency == "linearizable"
    assert attachment.token.hex() not in repr(attachment)
    assert str(attachment.token) not in repr(attachment)


def test_attachments_differ(node: NodeProcess, control: ControlClient) -> None:
    one, other = _attach(control, node.address), _attach(control, node.address)
    assert one.registration != other.registration
    assert one.token != other.token


def test_clients_lists_attachments_until_they_detach(
    node: NodeProcess, control: ControlClient
) -> None:
    attachment = _attach(control, node.address)
    listed = {record.registration: record for record in control.clients()}
    assert listed[attachment.registration].peer.startswith("a test ")
    assert control.stats()["clients_total"] == 1
    assert control.detach(attachment.registration, bytes(16)) is False
    assert control.detach(attachment.registration, b"short") is False
    assert control.detach(attachment.registration + 1000, attachment.token) is False
    assert control.detach(attachment.registration, attachment.token) is True
    assert control.detach(attachment.registration, attachment.token) is False


def test_member_order_does_not_matter(control: ControlClient) -> None:
    one, other = _attach(control, "b:1", "a:1"), _attach(control, "a:1", "b:1")
    assert one.members == other.members == ("a:1", "b:1")


def test_another_member_list_is_refused_with_both_lists(control: ControlClient) -> None:
    _attach(control, "a:1", "b:1")
    with pytest.raises(errors.MembershipMismatch) as refused:
        _attach(control, "c:1", "a:1")
    for member in ("a:1, b:1", "a:1, c:1"):
        assert member in str(refused.value)
    assert control.stats()["clients_total"] == 1


def test_another_cluster_id_is_refused(control: ControlClient) -> None:
    _attach(control, "a:1", cluster_id="ours")
    assert _attach(control, "a:1").cluster_id == "ours"
    with pytest.raises(errors.MembershipMismatch):
        _attach(control, "a:1", cluster_id="theirs")


def test_attach_without_members_is_refused(control: ControlClient) -> None:
    with pytest.raises(errors.ConfigurationError, match="at least one member"):
        _attach(control)


def test_another_layout_is_refused(control: ControlClient) -> None:
    with pytest.raises(errors.LayoutMismatch):
        control.attach(cluster_id="", members=["a:1"], peer="", timeout_s=5, layout_version=1 << 20)


def test_drain_refuses_new_attachments(node: NodeProcess, control: ControlClient) -> None:
    control.drain()
    with pytest.raises(errors.NodeUnreachable, match="drain"):
        _attach(control, node.address)
    assert control.stats()["capacity_bytes"] > 0


def test_nobody_there_is_unreachable_in_bounded_time() -> None:
    with ControlClient("127.0.0.1:1") as control, pytest.raises(errors.NodeUnreachable):
        control.describe(timeout_s=3)


def test_stopped_node_costs_one_time_out(node: NodeProcess, control: ControlClient) -> None:
    node.pause()
    try:
        with pytest.raises(errors.NodeUnreachable, match=r"within 0\.5 s"):
            control.describe(timeout_s=0.5)
    finally:
        node.resume()
    assert control.describe().region_bytes > 0


def test_closed_client_says_so(control: ControlClient) -> None:
    control.close()
    with pytest.raises(errors.StoreClosed):
        control.describe()


@pytest.mark.parametrize("address", ["", "host", "host:", ":7400", "host:0", "host:99999"])
def test_bad_address(address: str) -> None:
    with pytest.raises(errors.ConfigurationError):
        ControlClient(address)


@pytest.mark.parametrize("presented", [None, "wrong", TOKEN[:-1], TOKEN + "x"])
def test_wrong_token_is_refused_and_counted(token_file: Path, presented: str | None) -> None:
    with start_node("16MiB", f"--token-file={token_file}") as node:
        with ControlClient(node.address, token=presented) as control:
            for call in (control.describe, control.stats, control.clients, control.drain):
                with pytest.raises(errors.AuthenticationFailed):
                    call()
            with pytest.raises(errors.AuthenticationFailed):
                _attach(control, node.address)
            with pytest.raises(errors.AuthenticationFailed):
                control.detach(1, bytes(16))
        with ControlClient(node.address, token=TOKEN) as control:
            assert control.stats()["clients_total"] == 0
            assert _attach(control, node.address).registration > 0
        assert TOKEN not in node.log()
        # A probe needs no secret.
        with grpc.insecure_channel(node.address) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            assert stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status == 1


def test_tls(certificate: Certificate, token_file: Path) -> None:
    trusting = TlsConfig(ca_file=str(certificate.certificate))
    with start_node("16MiB", *certificate.node_options, f"--token-file={token_file}") as node:
        with ControlClient(node.address, token=TOKEN, tls=trusting) as control:
            assert _attach(control, node.address).registration > 0
        with (
            ControlClient(node.address, token="wrong", tls=trusting) as control,
            pytest.raises(errors.AuthenticationFailed),
        ):
            control.describe()
        # Neither clear text nor an authority that did not sign gets through.
        for tls in (None, TlsConfig()):
            with (
                ControlClient(node.address, token=TOKEN, tls=tls) as control,
                pytest.raises(errors.NodeUnreachable, match="TLS"),
            ):
                control.describe(timeout_s=3)


def test_tls_checks_the_name(certificate: Certificate) -> None:
    with start_node("16MiB", *certificate.node_options) as node:
        for name, accepted in (("localhost", True), ("elsewhere", False)):
            tls = TlsConfig(ca_file=str(certificate.certificate), server_name=name)
            with ControlClient(node.address, tls=tls) as control:
                if accepted:
                    assert control.describe().region_bytes > 0
                else:
                    with pytest.raises(errors.NodeUnreachable):
                        control.describe(timeout_s=3)


def test_tls_against_clear_text_says_so(node: NodeProcess, certificate: Certificate) -> None:
    tls = TlsConfig(ca_file=str(certificate.certificate))
    with (
        ControlClient(node.address, tls=tls) as control,
        pytest.raises(errors.NodeUnreachable, match="TLS"),
    ):
        control.describe(timeout_s=3)


@pytest.mark.parametrize("content", [None, b"no certificate"])
def test_bad_ca_file(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(errors.ConfigurationError, match="CA file"):
        ControlClient("127.0.0.1:1", tls=TlsConfig(ca_file=str(path)))


def test_forked_children_call_in_bounded_time(node: NodeProcess) -> None:
    """Whatever their parent did with gRPC, they get answers and the same typed errors."""
    program = f"""
import os
from kvstore import errors
from kvstore.cluster.control import ControlClient
client = ControlClient({node.address!r})
client.attach(cluster_id="", members=["a:1"], peer="parent")
for _ in range(6):
    client.describe()
    child = os.fork()
    if child == 0:
        try:
            client.attach(cluster_id="", members=["b:1"], peer="child", timeout_s=20)
        except errors.MembershipMismatch as error:
            os._exit(0 if error.theirs == ("a:1",) and client.describe().node_id else 3)
        os._exit(2)
    _, status = os.waitpid(child, 0)
    assert status == 0, os.waitstatus_to_exitcode(status)
client.describe()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], timeout=150, check=False, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr
