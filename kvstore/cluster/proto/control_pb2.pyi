from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Eviction(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EVICTION_NONE: _ClassVar[Eviction]
    EVICTION_SAMPLED_LRU: _ClassVar[Eviction]
    EVICTION_LFU: _ClassVar[Eviction]
    EVICTION_FIFO: _ClassVar[Eviction]
    EVICTION_GDSF: _ClassVar[Eviction]
    EVICTION_ADAPTIVE: _ClassVar[Eviction]

class Consistency(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONSISTENCY_LINEARIZABLE: _ClassVar[Consistency]
    CONSISTENCY_REGULAR: _ClassVar[Consistency]

class Domain(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DOMAIN_UNSPECIFIED: _ClassVar[Domain]
    DOMAIN_CPU: _ClassVar[Domain]
    DOMAIN_VERBS: _ClassVar[Domain]

class ClientState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CLIENT_STATE_UNSPECIFIED: _ClassVar[ClientState]
    CLIENT_STATE_LIVE: _ClassVar[ClientState]
    CLIENT_STATE_STALLED: _ClassVar[ClientState]
    CLIENT_STATE_FENCED: _ClassVar[ClientState]

class Fabric(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FABRIC_LOCAL: _ClassVar[Fabric]
    FABRIC_SHM: _ClassVar[Fabric]
    FABRIC_TCP: _ClassVar[Fabric]
    FABRIC_VERBS: _ClassVar[Fabric]
EVICTION_NONE: Eviction
EVICTION_SAMPLED_LRU: Eviction
EVICTION_LFU: Eviction
EVICTION_FIFO: Eviction
EVICTION_GDSF: Eviction
EVICTION_ADAPTIVE: Eviction
CONSISTENCY_LINEARIZABLE: Consistency
CONSISTENCY_REGULAR: Consistency
DOMAIN_UNSPECIFIED: Domain
DOMAIN_CPU: Domain
DOMAIN_VERBS: Domain
CLIENT_STATE_UNSPECIFIED: ClientState
CLIENT_STATE_LIVE: ClientState
CLIENT_STATE_STALLED: ClientState
CLIENT_STATE_FENCED: ClientState
FABRIC_LOCAL: Fabric
FABRIC_SHM: Fabric
FABRIC_TCP: Fabric
FABRIC_VERBS: Fabric

class DescribeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeDescription(_message.Message):
    __slots__ = ("node_id", "incarnation", "region_bytes", "layout_version", "domain", "eviction", "consistency", "membership_lease_ms", "shm_name", "data_host", "data_port", "cluster_id", "members", "version", "verbs_device", "verbs_gids", "ssd_bytes")
    NODE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    REGION_BYTES_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    EVICTION_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_LEASE_MS_FIELD_NUMBER: _ClassVar[int]
    SHM_NAME_FIELD_NUMBER: _ClassVar[int]
    DATA_HOST_FIELD_NUMBER: _ClassVar[int]
    DATA_PORT_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    VERBS_DEVICE_FIELD_NUMBER: _ClassVar[int]
    VERBS_GIDS_FIELD_NUMBER: _ClassVar[int]
    SSD_BYTES_FIELD_NUMBER: _ClassVar[int]
    node_id: int
    incarnation: int
    region_bytes: int
    layout_version: int
    domain: Domain
    eviction: Eviction
    consistency: Consistency
    membership_lease_ms: int
    shm_name: str
    data_host: str
    data_port: int
    cluster_id: str
    members: _containers.RepeatedScalarFieldContainer[str]
    version: str
    verbs_device: str
    verbs_gids: _containers.RepeatedScalarFieldContainer[bytes]
    ssd_bytes: int
    def __init__(self, node_id: _Optional[int] = ..., incarnation: _Optional[int] = ..., region_bytes: _Optional[int] = ..., layout_version: _Optional[int] = ..., domain: _Optional[_Union[Domain, str]] = ..., eviction: _Optional[_Union[Eviction, str]] = ..., consistency: _Optional[_Union[Consistency, str]] = ..., membership_lease_ms: _Optional[int] = ..., shm_name: _Optional[str] = ..., data_host: _Optional[str] = ..., data_port: _Optional[int] = ..., cluster_id: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ..., version: _Optional[str] = ..., verbs_device: _Optional[str] = ..., verbs_gids: _Optional[_Iterable[bytes]] = ..., ssd_bytes: _Optional[int] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("cluster_id", "members", "peer", "layout_version")
    CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_VERSION_FIELD_NUMBER: _ClassVar[int]
    cluster_id: str
    members: _containers.RepeatedScalarFieldContainer[str]
    peer: str
    layout_version: int
    def __init__(self, cluster_id: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ..., peer: _Optional[str] = ..., layout_version: _Optional[int] = ...) -> None: ...

class Attachment(_message.Message):
    __slots__ = ("node", "registration", "token")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    node: NodeDescription
    registration: int
    token: bytes
    def __init__(self, node: _Optional[_Union[NodeDescription, _Mapping]] = ..., registration: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class VerbsEndpoint(_message.Message):
    __slots__ = ("gid", "lid", "queue_pair", "packet_sequence", "mtu_bytes", "reads_at_once", "rail")
    GID_FIELD_NUMBER: _ClassVar[int]
    LID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_PAIR_FIELD_NUMBER: _ClassVar[int]
    PACKET_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    MTU_BYTES_FIELD_NUMBER: _ClassVar[int]
    READS_AT_ONCE_FIELD_NUMBER: _ClassVar[int]
    RAIL_FIELD_NUMBER: _ClassVar[int]
    gid: bytes
    lid: int
    queue_pair: int
    packet_sequence: int
    mtu_bytes: int
    reads_at_once: int
    rail: int
    def __init__(self, gid: _Optional[bytes] = ..., lid: _Optional[int] = ..., queue_pair: _Optional[int] = ..., packet_sequence: _Optional[int] = ..., mtu_bytes: _Optional[int] = ..., reads_at_once: _Optional[int] = ..., rail: _Optional[int] = ...) -> None: ...

class ConnectVerbsRequest(_message.Message):
    __slots__ = ("registration", "token", "lane", "client")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LANE_FIELD_NUMBER: _ClassVar[int]
    CLIENT_FIELD_NUMBER: _ClassVar[int]
    registration: int
    token: bytes
    lane: int
    client: VerbsEndpoint
    def __init__(self, registration: _Optional[int] = ..., token: _Optional[bytes] = ..., lane: _Optional[int] = ..., client: _Optional[_Union[VerbsEndpoint, _Mapping]] = ...) -> None: ...

class VerbsGrant(_message.Message):
    __slots__ = ("node", "region_address", "region_bytes", "remote_key")
    NODE_FIELD_NUMBER: _ClassVar[int]
    REGION_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REGION_BYTES_FIELD_NUMBER: _ClassVar[int]
    REMOTE_KEY_FIELD_NUMBER: _ClassVar[int]
    node: VerbsEndpoint
    region_address: int
    region_bytes: int
    remote_key: int
    def __init__(self, node: _Optional[_Union[VerbsEndpoint, _Mapping]] = ..., region_address: _Optional[int] = ..., region_bytes: _Optional[int] = ..., remote_key: _Optional[int] = ...) -> None: ...

class MembershipConflict(_message.Message):
    __slots__ = ("node_cluster_id", "node_members", "client_cluster_id", "client_members")
    NODE_CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    NODE_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    CLIENT_CLUSTER_ID_FIELD_NUMBER: _ClassVar[int]
    CLIENT_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    node_cluster_id: str
    node_members: _containers.RepeatedScalarFieldContainer[str]
    client_cluster_id: str
    client_members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, node_cluster_id: _Optional[str] = ..., node_members: _Optional[_Iterable[str]] = ..., client_cluster_id: _Optional[str] = ..., client_members: _Optional[_Iterable[str]] = ...) -> None: ...

class DetachRequest(_message.Message):
    __slots__ = ("registration", "token")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    registration: int
    token: bytes
    def __init__(self, registration: _Optional[int] = ..., token: _Optional[bytes] = ...) -> None: ...

class DetachResponse(_message.Message):
    __slots__ = ("found",)
    FOUND_FIELD_NUMBER: _ClassVar[int]
    found: bool
    def __init__(self, found: bool = ...) -> None: ...

class StatsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class NodeStats(_message.Message):
    __slots__ = ("figures",)
    class FiguresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    figures: _containers.ScalarMap[str, int]
    def __init__(self, figures: _Optional[_Mapping[str, int]] = ...) -> None: ...

class ClientsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ClientRecord(_message.Message):
    __slots__ = ("registration", "fabric", "process_id", "state", "published_epoch", "silent_ms", "peer")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    FABRIC_FIELD_NUMBER: _ClassVar[int]
    PROCESS_ID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_EPOCH_FIELD_NUMBER: _ClassVar[int]
    SILENT_MS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    registration: int
    fabric: Fabric
    process_id: int
    state: ClientState
    published_epoch: int
    silent_ms: int
    peer: str
    def __init__(self, registration: _Optional[int] = ..., fabric: _Optional[_Union[Fabric, str]] = ..., process_id: _Optional[int] = ..., state: _Optional[_Union[ClientState, str]] = ..., published_epoch: _Optional[int] = ..., silent_ms: _Optional[int] = ..., peer: _Optional[str] = ...) -> None: ...

class ClientList(_message.Message):
    __slots__ = ("clients",)
    CLIENTS_FIELD_NUMBER: _ClassVar[int]
    clients: _containers.RepeatedCompositeFieldContainer[ClientRecord]
    def __init__(self, clients: _Optional[_Iterable[_Union[ClientRecord, _Mapping]]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("grace_ms",)
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    def __init__(self, grace_ms: _Optional[int] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("grace_ms",)
    GRACE_MS_FIELD_NUMBER: _ClassVar[int]
    grace_ms: int
    def __init__(self, grace_ms: _Optional[int] = ...) -> None: ...
