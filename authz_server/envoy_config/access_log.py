"""The access log of an enforcement point: who asked, what was decided, one JSON object a line.

Never the query, the body or a token: they may name people and hold secrets.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from envoy_data_plane.envoy.config.accesslog.v3 import AccessLog
from envoy_data_plane.envoy.config.core.v3 import SubstitutionFormatString
from envoy_data_plane.envoy.extensions.access_loggers.file.v3 import FileAccessLog
from envoy_data_plane.envoy.extensions.access_loggers.stream.v3 import StdoutAccessLog
from envoy_data_plane.google.protobuf import Struct

from authz_server.envoy_config import ext_authz
from authz_server.envoy_config.enforcement_point import EnforcementPoint
from authz_server.envoy_config.messages import packed

_CONNECTION: Final[Mapping[str, str]] = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "listener": "%DOWNSTREAM_LOCAL_ADDRESS%",
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "response_flags": "%RESPONSE_FLAGS%",
    "upstream": "%UPSTREAM_HOST%",
    "duration_ms": "%DURATION%",
}
_REQUEST: Final[Mapping[str, str]] = {
    "method": "%REQ(:METHOD)%",
    "host": "%REQ(:AUTHORITY)%",
    "path": "%PATH(NQ)%",
    "status": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
}
# `mode` tells a denial that was carried out from one that a bundle in shadow mode let pass.
_DECISION: Final = (
    "decision_id", "verdict", "mode", "reason", "bundle", "revision", "subject", "rules",
)  # fmt: skip


def access_log(point: EnforcementPoint) -> AccessLog:
    """Return the log of `point`, to its file or to standard output."""
    asking = ext_authz.NETWORK_FILTER if point.is_raw else ext_authz.HTTP_FILTER
    fields = dict(_CONNECTION) if point.is_raw else {**_CONNECTION, **_REQUEST}
    fields |= {name: f"%DYNAMIC_METADATA({asking}:{name})%" for name in _DECISION}
    return _log(fields, point.access_log)


def outbound_access_log(path: Path | None) -> AccessLog:
    """Return the log of requests that leave, to the file at `path` or to standard output."""
    return _log({**_CONNECTION, **_REQUEST}, path)


def _log(fields: Mapping[str, str], path: Path | None) -> AccessLog:
    line = SubstitutionFormatString(json_format=Struct.from_dict(dict(fields)))
    if path is None:
        return AccessLog(
            name="envoy.access_loggers.stdout",
            typed_config=packed(StdoutAccessLog(log_format=line)),
        )
    return AccessLog(
        name="envoy.access_loggers.file",
        typed_config=packed(FileAccessLog(path=str(path), log_format=line)),
    )
