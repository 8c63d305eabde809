"""What rules look at: the filter chains of one Envoy, what is asked in them, and where they lead.

All sources that are given belong to one Envoy: routes of one file are those that a listener of
another takes by name.
"""

import ipaddress
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

from authz_server.envoy_config.lint.message import At, Message, Misread

EXT_AUTHZ: Final = "filters.http.ext_authz.v3.ExtAuthz"
NETWORK_EXT_AUTHZ: Final = "filters.network.ext_authz.v3.ExtAuthz"
PER_ROUTE: Final = "filters.http.ext_authz.v3.ExtAuthzPerRoute"
MANAGER: Final = "http_connection_manager.v3.HttpConnectionManager"
TCP_PROXY: Final = "tcp_proxy.v3.TcpProxy"
REDACTED: Final = "[redacted]"  # what a dump shows instead of a value that may be secret
MCP: Final = "filters.http.mcp.v3.Mcp"
DOWNSTREAM_TLS: Final = "tls.v3.DownstreamTlsContext"
UPSTREAM_TLS: Final = "tls.v3.UpstreamTlsContext"
HTTP_OPTIONS: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"

# HTTP filters that take requests somewhere without the router.
_FORWARDING: Final = ("mcp_router.v3.McpRouter", "file_server.v3.FileServer")


@dataclass(frozen=True, slots=True, eq=False)
class Filter:
    """One filter of a chain. `settings` is None where they are not in the sources."""

    entry: Message
    settings: Message | None

    @property
    def name(self) -> str:
        """The name that per-route settings are found by."""
        return self.entry.text("name")

    def is_a(self, *types: str) -> bool:
        """Tell whether its settings are of one of `types`."""
        return self.settings is not None and self.settings.is_a(*types)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A network filter chain. `message` is what is pointed at when something is missing in it."""

    listener: Message | None
    message: Message
    filters: tuple[Filter, ...]

    @property
    def question(self) -> Filter | None:
        """The network filter that asks the PDP."""
        return next((one for one in self.filters if one.is_a(NETWORK_EXT_AUTHZ)), None)

    @property
    def ends_elsewhere(self) -> Filter | None:
        """The last filter where it takes bytes to an upstream and is not HTTP."""
        last = self.filters[-1] if self.filters else None
        if last is None or last.is_a(MANAGER) or not _leads_somewhere(last):
            return None
        return last


@dataclass(frozen=True, slots=True, eq=False)
class HttpChain:
    """HTTP in a network filter chain. `tables` are its route configurations, as far as known."""

    chain: Chain
    manager: Message
    filters: tuple[Filter, ...]
    tables: tuple[Message, ...]
    complete: bool  # every route configuration is in the sources

    @property
    def questions(self) -> list[Filter]:
        """The filters that ask the PDP."""
        return [one for one in self.filters if one.is_a(EXT_AUTHZ)]

    @property
    def actions(self) -> list[Message]:
        """Every `RouteAction` of its routes."""
        return [action for table in self.tables for action in table.all("route.v3.RouteAction")]

    @property
    def only_tunnels(self) -> bool:
        """Whether every route is for CONNECT, which has no body, and a port in its host."""
        routes = [one for table in self.tables for one in table.all("config.route.v3.Route")]
        asked = [one for one in routes if one.has("route")]
        return bool(asked) and all(one.inside("match", "connect_matcher") for one in asked)

    def routed(self) -> "Iterator[Routed]":
        """Yield every route that leads to an upstream."""
        for table in self.tables:
            yield from _routed(self, table)

    @property
    def leads_somewhere(self) -> bool:
        """Whether any request gets to an upstream."""
        terminal = any(one.is_a(*_FORWARDING) for one in self.filters)
        return terminal or not self.complete or bool(self.actions)


@dataclass(frozen=True, slots=True, eq=False)
class Routed:
    """One route of a chain: the messages it is configured by, outermost first."""

    chain: HttpChain
    levels: tuple[Message, ...]  # RouteConfiguration, VirtualHost, Route, maybe ClusterWeight

    @property
    def route(self) -> Message:
        """The innermost."""
        return self.levels[-1]

    def sets(self, name: str) -> bool:
        """Tell whether it has settings for the filter called `name`."""
        return any(name in level.map("typed_per_filter_config") for level in self.levels)

    def extensions(self, name: str) -> dict[str, str] | None:
        """Return the context extensions for the filter called `name`; None where there are none.

        Envoy merges them from the outermost level to the innermost, which wins.
        """
        found: dict[str, str] = {}
        for level in self.levels:
            setting = per_route_setting(level, name)
            checks = setting.message("check_settings") if setting is not None else None
            if checks is not None:
                values = checks.map("context_extensions").items()
                found |= {key: value for key, value in values if isinstance(value, str)}
        return found or None


def per_route_setting(level: Message, name: str) -> Message | None:
    """Return `level`'s settings for the filter called `name`, out of a `FilterConfig` around."""
    setting = level.map("typed_per_filter_config").get(name)
    if isinstance(setting, Message) and setting.is_a("route.v3.FilterConfig"):
        setting = setting.message("config")
    return setting if isinstance(setting, Message) and setting.is_a(PER_ROUTE) else None


@dataclass(eq=False)
class Configuration:
    """Everything of one Envoy that was found in the sources."""

    bootstraps: Sequence[Message] = ()
    listeners: Sequence[Message] = ()
    managers: Sequence[Message] = ()  # those that stand in no listener
    clusters: Mapping[str, Message] = field(default_factory=dict)
    tables: Mapping[str, Message] = field(default_factory=dict)  # by name, outside of listeners
    extensions: Mapping[str, Message] = field(default_factory=dict)  # discovered filter settings
    secrets: Sequence[Message] = ()
    misread: Sequence[Misread] = ()

    @cached_property
    def chains(self) -> list[Chain]:
        """Every network filter chain."""
        found = []
        for listener in self.listeners:
            default = listener.message("default_filter_chain")
            chains = [*listener.messages("filter_chains"), *([default] if default else [])]
            found += [Chain(listener, one, self._filters(one, "filters")) for one in chains]
        return found

    @cached_property
    def datagrams(self) -> list[Chain]:
        """Every UDP proxy, as a chain of that one filter."""
        return [
            Chain(listener, one.settings, (one,))
            for listener in self.listeners
            for one in self._filters(listener, "listener_filters")
            if one.settings is not None and one.settings.is_a("udp_proxy.v3.UdpProxyConfig")
        ]

    @cached_property
    def http(self) -> list[HttpChain]:
        """Every HTTP filter chain."""
        found = [
            self._http(chain, one.settings)
            for chain in self.chains
            for one in chain.filters
            if one.settings is not None and one.settings.is_a(MANAGER)
        ]
        for listener in self.listeners:
            api = listener.inside("api_listener", "api_listener")
            if api is not None and api.is_a(MANAGER):
                found.append(self._http(Chain(listener, api, ()), api))
        return found + [self._http(Chain(None, one, ()), one) for one in self.managers]

    @cached_property
    def guarded(self) -> list[HttpChain]:
        """The HTTP filter chains in which a PDP is asked."""
        return [chain for chain in self.http if chain.questions]

    @cached_property
    def guarded_tcp(self) -> list[Chain]:
        """The network filter chains in which a PDP is asked before bytes go to an upstream."""
        return [chain for chain in self.chains if chain.question and chain.ends_elsewhere]

    @cached_property
    def asking(self) -> "list[Chain | HttpChain]":
        """Every chain, of either kind, in which a PDP is asked."""
        return [*self.guarded, *self.guarded_tcp]

    @cached_property
    def routed(self) -> list[Routed]:
        """Every route of a guarded chain that leads to an upstream."""
        return [routed for chain in self.guarded for routed in chain.routed()]

    @cached_property
    def levels(self) -> list[Message]:
        """Every message that configures routes of a guarded chain, each once."""
        tables = [table for chain in self.guarded for table in chain.tables]
        if not self.listeners and not self.managers:
            tables += self.tables.values()  # a file of routes alone: what takes them asks, we hope
        levels = ("RouteConfiguration", "VirtualHost", "Route", "WeightedCluster.ClusterWeight")
        kinds = tuple(f"config.route.v3.{level}" for level in levels)
        return unique(level for table in tables for level in table.all(*kinds))

    @cached_property
    def per_route(self) -> list[Message]:
        """Every per-route setting of ext_authz, each once."""
        return unique(
            setting
            for level in self.levels
            for value in level.map("typed_per_filter_config").values()
            if isinstance(value, Message)
            for setting in value.all(PER_ROUTE)
        )

    @cached_property
    def questions(self) -> list[Message]:
        """The settings of every HTTP filter that asks a PDP."""
        found = (one.settings for chain in self.guarded for one in chain.questions)
        return unique(one for one in found if one is not None)

    @cached_property
    def network_questions(self) -> list[Message]:
        """The settings of every network filter that asks a PDP."""
        found = (chain.question.settings for chain in self.chains if chain.question)
        return unique(one for one in found if one is not None)

    @cached_property
    def services(self) -> list[Message]:
        """Every `GrpcService` that a PDP is asked through."""
        holders = [*self.questions, *self.network_questions]
        holders += [one for route in self.per_route for one in route.messages("check_settings")]
        found = (one.message("grpc_service") for one in holders)
        return unique(one for one in found if one is not None)

    @cached_property
    def pdp_clusters(self) -> list[Message]:
        """The clusters that lead to a PDP, as far as they are in the sources."""
        names = (one.message("envoy_grpc") for one in self.services)
        found = (self.clusters.get(one.text("cluster_name")) for one in names if one is not None)
        return unique(one for one in found if one is not None)

    def _filters(self, message: Message, name: str) -> tuple[Filter, ...]:
        return tuple(Filter(entry, self._settings(entry)) for entry in message.messages(name))

    def _settings(self, entry: Message) -> Message | None:
        discovery = entry.message("config_discovery")
        if discovery is None:
            return entry.message("typed_config")
        return self.extensions.get(entry.text("name")) or discovery.message("default_config")

    def _http(self, chain: Chain, manager: Message) -> HttpChain:
        tables = list(manager.messages("route_config"))
        wanted = [one.text("route_config_name") for one in manager.messages("rds")]
        scoped = manager.message("scoped_routes")
        if scoped is not None:
            tables += scoped.all("config.route.v3.RouteConfiguration")
            scopes = list(scoped.all("config.route.v3.ScopedRouteConfiguration"))
            wanted += [name for one in scopes if (name := one.text("route_configuration_name"))]
        known = [self.tables[name] for name in wanted if name in self.tables]
        complete = len(known) == len(wanted) and not (scoped and scoped.has("scoped_rds"))
        filters = self._filters(manager, "http_filters")
        return HttpChain(chain, manager, filters, (*tables, *known), complete)

    def targets(self, chain: Chain | HttpChain) -> set[str]:
        """Return the names of the clusters that `chain` sends to."""
        if isinstance(chain, HttpChain):
            actions = chain.actions
        else:
            actions = [one.settings for one in chain.filters if one.settings is not None]
        names = {inner.text("cluster") for one in actions for inner in one.walk()}
        for one in actions:
            names |= {weight.text("name") for weight in one.all("WeightedCluster.ClusterWeight")}
        return names - {""}

    def destinations(self, names: Iterable[str]) -> set[str]:
        """Return what `names` lead to: the addresses behind them, and the names themselves."""
        found = set()
        for name in names:
            found.add(name)
            if name in self.clusters:
                found |= set(endpoints(self.clusters[name]))
        return found


def unique(messages: Iterable[Message]) -> list[Message]:
    """Return `messages` without those that stand in it twice."""
    return list({id(one): one for one in messages}.values())


def endpoints(cluster: Message) -> Iterator[str]:
    """Yield every address of a cluster, as `host:port` or path."""
    assignment = cluster.message("load_assignment")
    for address in assignment.all("core.v3.Endpoint", "endpoint.v3.Endpoint") if assignment else ():
        yield from (text for text, _ in addresses(address.messages("address")))


def addresses(messages: Iterable[Message]) -> Iterator[tuple[str, At]]:
    """Yield each of some `Address` as text, and where it stands."""
    for message in messages:
        socket, pipe = message.message("socket_address"), message.message("pipe")
        if socket is not None:
            port = socket.number("port_value")
            yield f"{socket.text('address')}:{int(port or 0)}", socket.at("address")
        elif pipe is not None:
            yield pipe.text("path"), pipe.at("path")


def is_local(address: str) -> bool:
    """Tell whether an address, as `addresses` writes it, can be reached from this machine alone."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return True  # a Unix socket
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def listens_locally(listener: Message) -> bool:
    """Tell whether no other machine can connect to a listener."""
    if listener.flag("bind_to_port") is False:
        return False  # another listener hands over connections, from wherever they come
    extra = (one.message("address") for one in listener.messages("additional_addresses"))
    all_addresses = [*listener.messages("address"), *(one for one in extra if one is not None)]
    return all(is_local(address) for address, _ in addresses(all_addresses))


def _leads_somewhere(last: Filter) -> bool:
    if last.settings is None or not last.settings.known:
        return True
    harmless = ("direct_response.v3.Config", "echo.v3.Echo", "reverse_tunnel.v3.ReverseTunnel")
    return not last.is_a(*harmless)


def _routed(chain: HttpChain, table: Message) -> Iterator[Routed]:
    for host in table.messages("virtual_hosts"):
        for route in host.all("config.route.v3.Route"):
            action = route.message("route")
            if action is None:
                continue
            weights = list(action.all("WeightedCluster.ClusterWeight"))
            own = [one for one in weights if one.has("typed_per_filter_config")]
            yield from (Routed(chain, (table, host, route, one)) for one in own)
            if len(own) < len(weights) or not own:
                yield Routed(chain, (table, host, route))
