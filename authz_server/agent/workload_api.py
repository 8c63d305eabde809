"""The agent's own SVID from the SPIFFE Workload API, by way of py-spiffe.

Needs the extra `agent`. py-spiffe keeps a thread and a stream open and follows every rotation.
While the API is silent or refuses, it asks again, and the last SVID serves on until it expires. It
closes a source for good after an error it takes for final, such as the SVID picked being gone; a
closed one is opened anew here.
"""

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from authz_server.agent.svid import Svid
from authz_server.core.errors import InvalidValueError
from authz_server.core.spiffe import SpiffeId

if TYPE_CHECKING:
    from spiffe import X509Source

_FIRST_UPDATE_S: Final = 10.0  # an agent that is up answers in milliseconds
_REOPEN_S: Final = 1.0  # while it is down, callers fail fast instead of queueing up behind it


class WorkloadApiSvid:
    """The X509-SVID that the Workload API gives this process. Thread-safe.

    `socket` is `unix:///path`; None takes `SPIFFE_ENDPOINT_SOCKET`. `spiffe_id` picks one where the
    process has several; by default the first, as the specification has it. Blocks for the first
    update at first use, so an asyncio program calls `svid` once before it serves.
    """

    def __init__(
        self,
        socket: str | None = None,
        *,
        spiffe_id: SpiffeId | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._socket = socket
        self._spiffe_id = spiffe_id
        self._clock = clock
        self._source: X509Source | None = None
        self._not_before = clock()
        self._lock = threading.Lock()

    def svid(self) -> Svid:
        """Return the SVID as it is now. Raises `InvalidValueError` when there is none."""
        with self._lock:
            source = self._open()
            try:
                given = source.get_x509_context().default_svid
            except Exception as error:
                # SECURITY: nothing is kept beside the source: what it gave up is not used on.
                self._discard()
                raise InvalidValueError("Workload API has no SVID for this process") from error
        return _svid(given)

    def close(self) -> None:
        """End the stream; `svid` opens another."""
        with self._lock:
            self._discard()

    def _open(self) -> "X509Source":
        from spiffe import X509Source

        if self._source is None:
            if self._clock() < self._not_before:
                raise InvalidValueError("Workload API did not answer a moment ago")
            self._not_before = self._clock() + _REOPEN_S
            try:
                self._source = X509Source(
                    socket_path=self._socket,
                    timeout_in_seconds=_FIRST_UPDATE_S,
                    svid_picker=self._pick,
                )
            except Exception as error:
                raise InvalidValueError("Workload API cannot be reached") from error
        return self._source

    def _pick(self, svids: list[Any]) -> Any:
        if self._spiffe_id is None:
            return svids[0]
        return next(svid for svid in svids if str(svid.spiffe_id) == str(self._spiffe_id))

    def _discard(self) -> None:
        source, self._source = self._source, None
        if source is not None:
            source.close()


def _svid(given: Any) -> Svid:
    from cryptography.hazmat.primitives import serialization

    pem = serialization.Encoding.PEM
    key = given.private_key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    # Parsed anew under our own rules: py-spiffe's are laxer.
    return Svid.parse(b"".join(c.public_bytes(pem) for c in given.cert_chain), key)
