"""A client of a node that shares nothing with ours but the control plane and the written layout.

It speaks verbs through pyverbs (Debian's python3-pyverbs) and finds keys by the numbers of
tests/layout/layout_table.txt, without the index: it reads every bucket.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kvstore.cluster.control import ControlClient
from kvstore.node.description import VerbsEndpoint

# Debian's own folder, behind those of this environment.
sys.path.append("/usr/lib/python3/dist-packages")
from pyverbs import enums
from pyverbs.addr import GID, AHAttr, GlobalRoute
from pyverbs.cq import CQ
from pyverbs.device import Context
from pyverbs.mr import MR
from pyverbs.pd import PD
from pyverbs.pyverbs_error import PyverbsError  # noqa: F401
from pyverbs.qp import QP, QPAttr, QPCap, QPInitAttr
from pyverbs.wr import SGE, SendWR

TABLE: Final = Path(__file__).resolve().parents[2] / "layout" / "layout_table.txt"
BUFFER_BYTES: Final = 256 << 10
TIMEOUT_S: Final = 30.0


class Layout:
    """The numbers of the table."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}
        self.places: dict[str, tuple[int, int]] = {}
        for line in TABLE.read_text().splitlines():
            words = line.split()
            if not words or words[0].startswith("#"):
                continue
            if words[0] in ("bits", "at"):
                self.places[words[1]] = (int(words[2]), int(words[3]))
            else:
                self.numbers[words[0]] = int(words[1], 0)

    def bits(self, name: str, word: int) -> int:
        """A field of a word."""
        shift, width = self.places[name]
        return word >> shift & (1 << width) - 1

    def at(self, name: str, structure: bytes) -> int:
        """A field of a structure."""
        offset, width = self.places[name]
        return int.from_bytes(structure[offset : offset + width], "little")


class PlainClient:
    """One queue pair to a node. Not for use after an access that was refused."""

    def __init__(self, address: str, device: str, members: tuple[str, ...] = ()) -> None:
        self.layout = Layout()
        with ControlClient(address) as control:
            admitted = control.attach(
                cluster_id="", members=members or (address,), peer="plain", timeout_s=TIMEOUT_S
            )
            self._context = Context(name=device)
            self._domain = PD(self._context)
            self._queue = CQ(self._context, 16)
            self._memory = MR(self._domain, BUFFER_BYTES, enums.IBV_ACCESS_LOCAL_WRITE)
            capacity = QPCap(max_send_wr=8, max_recv_wr=1, max_send_sge=1, max_recv_sge=1)
            initial = QPInitAttr(
                qp_type=enums.IBV_QPT_RC, scq=self._queue, rcq=self._queue, cap=capacity
            )
            self._pair = QP(self._domain, initial)
            self._pair.to_init(QPAttr(port_num=1))
            index = self._gid_index()
            mine = VerbsEndpoint(
                gid=self._gid(index),
                lid=0,
                queue_pair=self._pair.qp_num,
                packet_sequence=77,
                mtu_bytes=1024,
                reads_at_once=4,
            )
            self.admission = (admitted.registration, admitted.token)
            grant = control.connect_verbs(
                admitted.registration, admitted.token, 0, mine, timeout_s=TIMEOUT_S
            )
        self.base, self.key = grant.region_address, grant.remote_key
        self.region_bytes = grant.region_bytes
        self._connect(grant.node, index)

    def _gid(self, index: int) -> bytes:
        text = self._context.query_gid(1, index).gid.replace(":", "")
        return bytes.fromhex(text)

    def _gid_index(self) -> int:
        for index in range(16):
            if self._gid(index)[:12] == bytes(10) + b"\xff\xff":
                return index
        raise AssertionError("the device has no address of IPv4")

    def _connect(self, node: VerbsEndpoint, gid_index: int) -> None:
        attributes = QPAttr(port_num=1)
        attributes.path_mtu = enums.IBV_MTU_1024
        attributes.dest_qp_num = node.queue_pair
        attributes.rq_psn = node.packet_sequence
        attributes.max_dest_rd_atomic = 1
        attributes.min_rnr_timer = 12
        text = ":".join(node.gid.hex()[at : at + 4] for at in range(0, 32, 4))
        route = GlobalRoute(dgid=GID(text), sgid_index=gid_index)
        attributes.ah_attr = AHAttr(port_num=1, is_global=1, gr=route)
        self._pair.to_rtr(attributes)
        attributes.sq_psn = 77
        attributes.timeout, attributes.retry_cnt, attributes.rnr_retry = 16, 6, 6
        attributes.max_rd_atomic = min(4, node.reads_at_once)
        self._pair.to_rts(attributes)

    def connect_again(self, address: str) -> None:
        """Ask the node for another queue pair of the same admission."""
        mine = VerbsEndpoint(
            gid=self._gid(self._gid_index()),
            lid=0,
            queue_pair=self._pair.qp_num,
            packet_sequence=78,
            mtu_bytes=1024,
            reads_at_once=4,
        )
        with ControlClient(address) as control:
            control.connect_verbs(*self.admission, 1, mine, timeout_s=TIMEOUT_S)

    def post(self, opcode: Any, address: int, length: int, key: int, add: int = 0) -> int:
        """Post one request, wait, and return the status of its completion."""
        piece = SGE(self._memory.buf, length, self._memory.lkey)
        request = SendWR(opcode=opcode, num_sge=1, sg=[piece], send_flags=enums.IBV_SEND_SIGNALED)
        if opcode == enums.IBV_WR_ATOMIC_FETCH_AND_ADD:
            request.set_wr_atomic(key, address, add, 0)
        else:
            request.set_wr_rdma(key, address)
        self._pair.post_send(request)
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            count, completions = self._queue.poll(1)
            if count > 0:
                return int(completions[0].status)
        raise AssertionError("the request never completed")

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes of the region."""
        status = self.post(enums.IBV_WR_RDMA_READ, self.base + offset, length, self.key)
        assert status == enums.IBV_WC_SUCCESS
        return ctypes.string_at(self._memory.buf, length)

    def superblock(self) -> dict[str, int]:
        """Its fields by their names."""
        block = self.read(
            self.layout.numbers["superblock_offset"], self.layout.numbers["superblock_bytes"]
        )
        names = [name for name in self.layout.places if name.startswith("superblock.")]
        return {name.partition(".")[2]: self.layout.at(name, block) for name in names}

    def subtables(self, superblock: dict[str, int]) -> set[int]:
        """The offsets of all subtables of the index."""
        layout = self.layout
        depth = int.from_bytes(self.read(layout.numbers["global_depth_offset"], 8), "little")
        directory = self.read(superblock["directory_offset"], 8 << depth)
        words = [directory[at : at + 8] for at in range(0, len(directory), 8)]
        addresses = {
            layout.bits("directory_entry.address", int.from_bytes(word, "little")) for word in words
        }
        return {address * layout.numbers["unit_bytes"] for address in addresses}

    def objects(self) -> Iterator[tuple[bytes, bytes]]:
        """Key and stored bytes of everything that a live slot leads to."""
        numbers, layout = self.layout.numbers, self.layout
        for subtable in self.subtables(self.superblock()):
            buckets = self.read(subtable, numbers["subtable_bucket_bytes"])
            used = numbers["groups_per_subtable"] * numbers["group_bytes"]
            for at in range(0, used, 8):
                word = int.from_bytes(buckets[at : at + 8], "little")
                is_header = at % numbers["bucket_bytes"] == 0
                tentative = layout.bits("slot.tentative", word) and not layout.bits(
                    "slot.frozen", word
                )
                if is_header or layout.bits("slot.address", word) == 0 or tentative:
                    continue
                yield self._object(word)

    def _object(self, slot: int) -> tuple[bytes, bytes]:
        numbers, layout = self.layout.numbers, self.layout
        offset = layout.bits("slot.address", slot) * numbers["unit_bytes"]
        header = self.read(offset, numbers["object_header_bytes"])
        own = layout.bits(
            "object_header.address", layout.at("object_header.address_generation", header)
        )
        assert own * numbers["unit_bytes"] == offset
        key_bytes = layout.at("object_header.key_bytes", header)
        value_bytes = layout.at("object_header.value_bytes", header)
        value_at = numbers["object_header_bytes"] + key_bytes
        if layout.bits("slot.size_class", slot) > numbers["linear_classes"]:
            unit = numbers["unit_bytes"]
            value_at = (value_at + unit - 1) // unit * unit
        data = self.read(offset, value_at + value_bytes)
        start = numbers["object_header_bytes"]
        return data[start : start + key_bytes], data[value_at:]
