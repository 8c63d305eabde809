"""The outbound end: a local port where mutual TLS and delegation are done for a plain client.

A database driver knows nothing of SPIFFE or of delegation headers. It connects to a loopback port
or a Unix socket; Envoy proves this workload's SVID to the Envoy in front of the database and, where
that one asks for a tunnel, sends the CONNECT with the delegation that the agent has left in two
files. Who may use the port acts as this workload, so that it is never bound to a network.

The files are `current/txn-token` and `current/delegation-chain` in a directory that Envoy watches,
without a line end; `agent.tunnel_files` writes them. Envoy 1.40 reads them again when an entry of
the directory itself is replaced, and asks with the new text from the next connection on. An empty
file is a header that is not sent; a text that is no header value opens no tunnel (observed).
"""

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Final

from envoy_data_plane.envoy.config.cluster.v3 import Cluster
from envoy_data_plane.envoy.config.core.v3 import (
    HeaderValue,
    HeaderValueOption,
    HeaderValueOptionHeaderAppendAction,
    TrafficDirection,
    TypedExtensionConfig,
)
from envoy_data_plane.envoy.config.listener.v3 import Filter, FilterChain, Listener
from envoy_data_plane.envoy.extensions.filters.network.tcp_proxy.v3 import (
    TcpProxy,
    TcpProxyTunnelingConfig,
)
from envoy_data_plane.envoy.extensions.formatter.file_content.v3 import FileContent

from authz_server.core.delegation import CHAIN_HEADER, ROOT_HEADER
from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId
from authz_server.envoy_config import tls
from authz_server.envoy_config.addresses import bound
from authz_server.envoy_config.clusters import http2, peer_cluster
from authz_server.envoy_config.enforcement_point import (
    Address,
    SvidFiles,
    SvidFromAgent,
    check_name,
    is_destination,
    is_host,
)
from authz_server.envoy_config.messages import packed

DELEGATION_HEADERS: Final = (ROOT_HEADER, CHAIN_HEADER)
CURRENT: Final = "current"  # the entry of the directory that is replaced

_IDLE_MAX: Final = timedelta(minutes=5)
_CONNECTION_MAX: Final = timedelta(minutes=15)  # as at the other end
_BUFFER_BYTES_MAX: Final = 1024 * 1024
# What Envoy's format strings read as it stands: no `%`, no bracket, and `:` divides two paths.
_PLAIN_PATH: Final = re.compile(r"/[A-Za-z0-9._/-]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpOutbound:
    """A way to one TCP workload behind another Envoy, for the plain clients of one workload.

    `listen` is on this machine. `upstream` is the address of the other Envoy, which must prove
    `peer`; `svid` is what this one proves. `tunnel` is the destination (`host:port`) to CONNECT to;
    without it the connection is passed on raw, under the TLS server name `server_name`.
    `delegation` is the directory with the files of the chain, for tunnels.
    """

    name: str
    listen: Address
    upstream: Address
    peer: SpiffeId
    svid: SvidFiles | SvidFromAgent
    server_name: str | None = None
    tunnel: str | None = None
    delegation: Path | None = None

    def __post_init__(self) -> None:
        check_name(self.name)
        if not self.listen.is_local:
            # SECURITY: it lends out this workload's identity, and its subject's authority.
            raise InvalidValueError(
                f"outbound `{self.name}` listens at `{self.listen}`, which is not on this machine"
            )
        if self.server_name is not None and not is_host(self.server_name):
            raise InvalidValueError(
                f"outbound `{self.name}`: `{self.server_name}` is not one lower-case server name"
            )
        if self.tunnel is not None and not is_destination(self.tunnel):
            raise InvalidValueError(
                f"outbound `{self.name}`: tunnel `{self.tunnel}` is not one lower-case `host:port`"
            )
        if self.delegation is not None:
            self._check_delegation(self.delegation)

    def _check_delegation(self, directory: Path) -> None:
        if self.tunnel is None:
            raise InvalidValueError(
                f"outbound `{self.name}`: a raw connection carries no delegation; name a `tunnel`"
            )
        if not _PLAIN_PATH.fullmatch(str(directory)):
            raise InvalidValueError(
                f"outbound `{self.name}`: `{directory}` is not an absolute path of plain characters"
            )

    @property
    def agents(self) -> frozenset[Path]:
        """The agents that it takes SVIDs from; one at most."""
        return frozenset({self.svid.agent} if isinstance(self.svid, SvidFromAgent) else ())


def listener(way: TcpOutbound) -> Listener:
    """Return the local listener of `way`."""
    settings = TcpProxy(
        stat_prefix=way.name,
        cluster=_cluster_name(way),
        idle_timeout=_IDLE_MAX,
        max_downstream_connection_duration=_CONNECTION_MAX,
        tunneling_config=_tunneling(way.tunnel, way.delegation) if way.tunnel else None,
    )
    proxy = Filter(name="envoy.filters.network.tcp_proxy", typed_config=packed(settings))
    return Listener(
        name=way.name,
        address=bound(way.listen),
        # For people and for `envoy lint`: nobody is asked here, the other end asks.
        traffic_direction=TrafficDirection.OUTBOUND,
        per_connection_buffer_limit_bytes=_BUFFER_BYTES_MAX,
        filter_chains=[FilterChain(filters=[proxy])],
    )


def cluster(way: TcpOutbound) -> Cluster:
    """Return the cluster of the other Envoy: HTTP/2 for tunnels, else as the client speaks."""
    alpn = ["h2"] if way.tunnel else []
    socket = tls.peer_socket(way.peer, way.svid, alpn=alpn, server_name=way.server_name)
    options = http2() if way.tunnel else {}
    return peer_cluster(_cluster_name(way), way.upstream, socket=socket, options=options)


def _cluster_name(way: TcpOutbound) -> str:
    return f"{way.name}_peer"


def _tunneling(destination: str, delegation: Path | None) -> TcpProxyTunnelingConfig:
    if delegation is None:
        return TcpProxyTunnelingConfig(hostname=destination)
    return TcpProxyTunnelingConfig(
        hostname=destination,
        headers_to_add=[_from_file(name, delegation) for name in DELEGATION_HEADERS],
        formatters=[
            TypedExtensionConfig(
                name="envoy.formatter.file_content", typed_config=packed(FileContent())
            )
        ],
    )


def _from_file(header: str, directory: Path) -> HeaderValueOption:
    # SECURITY: the directory is watched as well: without it a file that is replaced, as every
    # careful writer does, is never read again, and the old grant goes on.
    value = f"%FILE_CONTENT({directory / CURRENT / header}:{directory})%"
    return HeaderValueOption(
        header=HeaderValue(key=header, value=value),
        append_action=HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
