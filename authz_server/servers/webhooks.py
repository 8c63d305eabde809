"""Telling people that an approval waits: signed messages, sent again until they are taken.

The headers and the signature are those of Standard Webhooks: HMAC-SHA256 over
`<webhook-id>.<webhook-timestamp>.<body>`, so that a receiver can verify with an existing library,
refuses what is old, and tells repetitions by the id.

SECURITY: addresses are the operator's, and a redirect is not followed: what is behind it is not.
"""

import base64
import hashlib
import hmac
import json
import threading
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from authz_server.core.errors import ConfigurationError, LedgerError
from authz_server.identity.file_content import FileContent
from authz_server.ledger.approval_document import approval_json
from authz_server.ledger.notifications import Message, Notifications

EVENT_TYPE: Final = "approval.pending"
POLL_S: Final = 1.0  # a person needs minutes; the two queries take a millisecond
POST_TIMEOUT_S: Final = 5.0
SECRET_BYTES_MIN: Final = 24  # the least that Standard Webhooks recommends
_SECRET_BYTES_MAX: Final = 4096
_JOIN_S: Final = 2 * POST_TIMEOUT_S
# What a receiver needs to show the question; nobody's answer is in it yet.
_MEMBERS: Final = (
    "id", "status", "approver_group", "subject", "principal", "actors", "purpose", "action",
    "resource", "args_sha256", "bundle", "owner", "requested_at", "expires_at",
)  # fmt: skip

# Told after each attempt: whether it was taken, and what failed; from the thread of the sender.
WebhookObserver = Callable[[str | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Receiver:
    """One address, and the file with the key that its messages are signed with."""

    url: str
    secret_file: Path

    @property
    def target(self) -> str:
        """The name of this receiver in the queue; a digest, because an address may be secret."""
        return hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def secret(self) -> bytes:
        """Return the key now in the file. Raises `ConfigurationError`."""
        file = FileContent.read(self.secret_file, bytes_max=_SECRET_BYTES_MAX)
        secret = file.data.strip()
        if len(secret) < SECRET_BYTES_MIN:
            raise ConfigurationError([file.fault(f"must hold {SECRET_BYTES_MIN} bytes or more")])
        return secret


class Webhooks:
    """Sends what is queued, in a thread of its own, until it is stopped."""

    def __init__(self, url: str, receivers: Sequence[Receiver], observe: WebhookObserver) -> None:
        """`url` is that of the ledger with the approvals. Raises `ConfigurationError`."""
        for receiver in receivers:
            receiver.secret()
        self._url = url
        self._receivers: Mapping[str, Receiver] = {one.target: one for one in receivers}
        self._observe = observe
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._work, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End; what is not sent stays queued."""
        self._stopping.set()
        self._thread.join(_JOIN_S)

    def _work(self) -> None:
        queue: Notifications | None = None
        while not self._stopping.wait(POLL_S):
            try:
                queue = queue or Notifications.open(self._url)
                self._send_due(queue)
            except LedgerError as error:
                self._observe(str(error))

    def _send_due(self, queue: Notifications) -> None:
        targets = tuple(self._receivers)
        if queue.is_idle(targets, datetime.now(UTC)):
            return
        queue.enqueue(targets, datetime.now(UTC))
        while not self._stopping.is_set():
            message = queue.claim(targets, datetime.now(UTC))
            if message is None:
                return
            failure = self._post(self._receivers[message.target], message)
            if failure is None:
                queue.done(message, datetime.now(UTC))
            self._observe(failure)

    def _post(self, receiver: Receiver, message: Message) -> str | None:
        """Send `message`; return why it was not taken, or None. Any 2xx answer takes it."""
        try:
            headers, body = signed_message(message, receiver.secret(), datetime.now(UTC))
            request = urllib.request.Request(  # noqa: S310  # the scheme is the configuration's
                receiver.url, data=body, headers=headers, method="POST"
            )
            with self._opener.open(request, timeout=POST_TIMEOUT_S):
                return None
        except (OSError, ValueError, ConfigurationError) as error:
            # SECURITY: no message of an exception: it may quote the address, which may be secret.
            return f"a receiver did not take a message: {type(error).__name__}"


def signed_message(message: Message, secret: bytes, now: datetime) -> tuple[dict[str, str], bytes]:
    """Return headers and body of `message` as sent at `now`."""
    document = approval_json(message.approval)
    data = {name: document[name] for name in _MEMBERS}
    body = json.dumps({"type": EVENT_TYPE, "data": data}, separators=(",", ":")).encode()
    timestamp = str(int(now.timestamp()))
    return {
        "content-type": "application/json",
        "user-agent": "authz-server",
        "webhook-id": message.id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{signature(secret, message.id, timestamp, body)}",
    }, body


def signature(secret: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """Return the base64 signature of one message."""
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    return base64.b64encode(hmac.digest(secret, signed, "sha256")).decode()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for what it is here: a message that was not taken."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Never follow."""
