"""Rules on TCP: one check for each connection, at its first byte."""

from collections.abc import Iterator
from typing import Final

from authz_server.core.request import NODE_LABEL
from authz_server.envoy_config.lint.configuration import TCP_PROXY, Chain, Configuration
from authz_server.envoy_config.lint.message import At, Free, Message
from authz_server.envoy_config.lint.rule import (
    ERROR,
    WARNING,
    Rule,
    each,
    is_not_true,
    is_zero,
)

_LABELS_KEY: Final = "bootstrap_metadata_labels_key"


def _proxies(configuration: Configuration) -> list[Message]:
    return [
        one.settings
        for chain in configuration.guarded_tcp
        for one in chain.filters
        if one.settings is not None and one.settings.is_a(TCP_PROXY)
    ]


def _questions(configuration: Configuration) -> list[Message]:
    return configuration.network_questions


def _connects_first(proxy: Message) -> Iterator[At]:
    if proxy.text("upstream_connect_mode") != "ON_DOWNSTREAM_DATA":
        yield proxy.at("upstream_connect_mode")


def _early(proxy: Message) -> Iterator[At]:
    if proxy.number("max_early_data_bytes"):
        yield proxy.at("max_early_data_bytes")


def _no_age(proxy: Message) -> Iterator[At]:
    if not proxy.number("max_downstream_connection_duration"):
        yield proxy.at("max_downstream_connection_duration")


def _chosen_by_name(configuration: Configuration) -> Iterator[At]:
    for chain in configuration.guarded_tcp:
        yield from _sni_filters(chain)


def _sni_filters(chain: Chain) -> Iterator[At]:
    for one in chain.filters:
        if one.is_a("sni_cluster.v3.SniCluster", "sni_dynamic_forward_proxy.v3.FilterConfig"):
            yield one.entry.at(note=f"`{one.name}`")


def _untold(configuration: Configuration) -> Iterator[At]:
    """Find a listener whose labels the node lacks, and labels that do not arrive as they are."""
    if not configuration.bootstraps:
        return  # only there it can be seen
    for question in configuration.network_questions:
        name = question.text(_LABELS_KEY)
        found = [label for one in configuration.bootstraps for label in _labels(one, name)]
        if not found:
            yield question.at(_LABELS_KEY)
        yield from (at for at, is_text in found if not is_text)


def _labels(bootstrap: Message, name: str) -> Iterator[tuple[At, bool]]:
    """Yield the labels that the node's metadata have under `name`, and whether each is text."""
    node = bootstrap.message("node")
    metadata = node.fields.get("metadata") if node is not None else None
    if node is None or not isinstance(metadata, Free) or not isinstance(metadata.raw.value, dict):
        return
    labels = metadata.raw.value.get(name)
    if labels is None or not isinstance(labels.value, dict):
        return
    path = (*node.at("metadata").path, name)
    for key, raw in labels.value.items():
        if key == NODE_LABEL:
            continue  # which Envoy asks, not what stands behind it
        yield At(node.source, (*path, key), raw.at, f"`{key}`"), isinstance(raw.value, str)


RULES: Final = (
    Rule(
        id="EA601",
        severity=ERROR,
        title="the upstream is connected before the verdict",
        why="A server that speaks first (MySQL, SMTP) has sent its greeting, and has a connection, "
        "before anybody was asked.",
        fix="`upstream_connect_mode: ON_DOWNSTREAM_DATA` and `max_early_data_bytes: 0`",
        judge=each(_proxies, _connects_first),
    ),
    Rule(
        id="EA602",
        severity=WARNING,
        title="first bytes are taken in before the verdict",
        why="They wait in memory for a connection that may be denied, for every client that "
        "connects.",
        fix="`max_early_data_bytes: 0`",
        judge=each(_proxies, _early),
    ),
    Rule(
        id="EA603",
        severity=WARNING,
        title="a connection may live for ever",
        why="It is checked once: a revocation is not noticed until it ends.",
        fix="`max_downstream_connection_duration: 900s`",
        judge=each(_proxies, _no_age),
    ),
    Rule(
        id="EA604",
        severity=WARNING,
        title="an idle connection is never ended",
        why="Clients that open many and say nothing take what others need.",
        fix="`idle_timeout: 300s`",
        judge=each(_proxies, is_zero("idle_timeout")),
    ),
    Rule(
        id="EA605",
        severity=WARNING,
        title="a denied client sees a broken connection, not a denial",
        why="Without the TLS alert it takes the denial for a fault of the network and tries again.",
        fix="`send_tls_alert_on_denial: true`",
        judge=each(_questions, is_not_true("send_tls_alert_on_denial")),
    ),
    Rule(
        id="EA606",
        severity=WARNING,
        title="a client chooses the upstream by its TLS server name",
        why="It gets anywhere that the name leads to, unless rules are written on `r.env.sni`.",
        fix="one filter chain for each server name, each with its own `cluster`",
        judge=_chosen_by_name,
    ),
    Rule(
        id="EA607",
        severity=WARNING,
        title="the PDP is not told what stands behind a TCP listener",
        why="This filter has no context extensions. Without labels under a key of its own in the "
        "node's metadata the bundle `default` judges; labels that are not text arrive empty, and "
        "deny.",
        fix="`bootstrap_metadata_labels_key: authz.<listener>`, and under that key in the node's "
        "metadata `bundle`, `resource` and so on, as text",
        judge=_untold,
    ),
)
