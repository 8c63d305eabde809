"""The token service of the demonstration: a person's token in, a `Txn-Token` out (RFC 8693).

The person's token says for whom, the X509-SVID of the connection says who will act. What an agent
may ask for is up to a real service's own policy; this one grants what it is asked.
"""

import http.client
import http.server
import json
import secrets
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit

from cryptography import x509

from authz_server.agent.issuer import LIFETIME_S, DevelopmentIssuer
from authz_server.agent.signing import algorithm_for, sign
from authz_server.agent.svid import SigningKey
from authz_server.core import strict_json
from authz_server.core.claims import Claims
from authz_server.core.errors import AuthzError, InvalidValueError, RequestFault
from authz_server.core.jose import CompactJws, verify_signature
from authz_server.core.spiffe import SpiffeId
from authz_server.core.svid import leaf_spiffe_id

GRANT_TYPE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"
TXN_TOKEN: Final = "urn:ietf:params:oauth:token-type:txn_token"  # noqa: S105
ID_TOKEN: Final = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105
_BODY_BYTES_MAX: Final = 16 * 1024
_TIMEOUT_S: Final = 5.0


class ExchangeRefusedError(AuthzError):
    """The exchange was refused. `code` is one of RFC 6749 §5.2."""

    def __init__(self, code: str, why: str) -> None:
        super().__init__(why)
        self.code = code


class SignIn:
    """Where people sign in: says who a person is, and is believed by the exchange."""

    def __init__(self, *, issuer: str, audience: str, key: SigningKey) -> None:
        self.issuer = issuer
        self._audience = audience
        self._key = key

    def person_token(self, subject: str, *, now: int) -> str:
        """Return the token of a person who has just signed in."""
        header = {"alg": algorithm_for(self._key), "typ": "JWT", "kid": "sign-in-1"}
        payload: dict[str, object] = {
            "iss": self.issuer,
            "aud": self._audience,
            "sub": subject,
            "iat": now,
            "exp": now + LIFETIME_S,
            "jti": secrets.token_urlsafe(16),
        }
        return sign(header, payload, self._key)

    def subject_of(self, token: str, *, now: int) -> str:
        """Return whose token it is. Raises `RequestFault` and `ExchangeRefusedError`."""
        jws = CompactJws.parse(token)
        algorithm = algorithm_for(self._key)
        jws.check_header(typ="JWT", key_member="kid", algorithms=frozenset({algorithm}))
        verify_signature(jws, algorithm=algorithm, key=self._key.public_key())
        claims = Claims(jws.payload)
        if (claims.text("iss"), claims.text("aud")) != (self.issuer, self._audience):
            raise ExchangeRefusedError("invalid_grant", "the subject token is not for this service")
        validity = claims.validity(LIFETIME_S)
        if not validity.not_before <= now < validity.expires_at:
            raise ExchangeRefusedError("invalid_grant", "the subject token is not in time")
        return claims.text("sub")


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenExchange:
    """What the endpoint does with one request."""

    issuer: DevelopmentIssuer
    sign_in: SignIn

    def exchange(self, form: Mapping[str, str], actor: SpiffeId, *, now: int) -> dict[str, object]:
        """Return the answer of RFC 8693 §2.2.1 to the request `form` of `actor`.

        Raises `ExchangeRefusedError`.
        """
        if form.get("grant_type") != GRANT_TYPE:
            raise ExchangeRefusedError("unsupported_grant_type", "only token exchange is served")
        if (form.get("subject_token_type"), form.get("requested_token_type")) != (
            ID_TOKEN,
            TXN_TOKEN,
        ):
            raise ExchangeRefusedError(
                "invalid_request", "an ID token is exchanged for a Txn-Token"
            )
        if "actor_token" in form:
            # SECURITY: two answers to who acts are one too many.
            raise ExchangeRefusedError("invalid_request", "the actor is who holds the connection")
        try:
            subject = self.sign_in.subject_of(form.get("subject_token", ""), now=now)
            details = Claims(_details(form.get("request_details", "{}")))
            root = self.issuer.issue_root(
                subject=subject,
                actor=actor,
                scope=form.get("scope", "").split(),
                purpose=details.optional_text("purpose"),
                hops=details.hops(),
                now=now,
            )
        except RequestFault as fault:
            raise ExchangeRefusedError("invalid_grant", fault.detail) from fault
        return {
            "access_token": root,
            "issued_token_type": TXN_TOKEN,
            "token_type": "N_A",  # RFC 8693 §2.2.1: it is not for `Authorization`
            "expires_in": LIFETIME_S,
        }


def _details(text: str) -> dict[str, strict_json.JsonValue]:
    try:
        value = strict_json.loads(text.encode(), depth_max=4, members_max=16)
    except InvalidValueError as error:
        raise ExchangeRefusedError("invalid_request", "`request_details` is not JSON") from error
    if not isinstance(value, dict):
        raise ExchangeRefusedError("invalid_request", "`request_details` is not an object")
    return value


@contextmanager
def serving(
    exchange: TokenExchange, host: str, svid: Path, clock: Callable[[], int]
) -> Iterator[str]:
    """Serve `exchange` on `host` with the SVID in directory `svid`; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = _TIMEOUT_S

        def do_POST(self) -> None:
            try:
                status, answer = HTTPStatus.OK, self._exchanged()
            except ExchangeRefusedError as refused:
                status = HTTPStatus.BAD_REQUEST
                answer = {"error": refused.code, "error_description": str(refused)}
            body = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            self.wfile.write(body)

        def _exchanged(self) -> dict[str, object]:
            length = self.headers.get("Content-Length", "")
            if not length.isdecimal() or int(length) > _BODY_BYTES_MAX:
                raise ExchangeRefusedError("invalid_request", "the request is too long")
            pairs = parse_qsl(self.rfile.read(int(length)).decode("ascii", "replace"))
            form = dict(pairs)
            if len(form) != len(pairs):  # RFC 6749 §3.2
                raise ExchangeRefusedError("invalid_request", "a parameter is given twice")
            return exchange.exchange(form, _peer(self.connection), now=clock())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Log nothing: a request holds tokens."""

    with http.server.ThreadingHTTPServer((host, 0), Handler) as server:
        server.daemon_threads = True
        context = _context(svid, ssl.PROTOCOL_TLS_SERVER)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), name="sts")
        thread.start()
        try:
            yield f"https://{host}:{server.server_port}/token"
        finally:
            server.shutdown()
            thread.join()


def ask(url: str, svid: Path, form: Mapping[str, str], *, service: SpiffeId) -> str:
    """Return the `Txn-Token` for whoever proves itself with the SVID in directory `svid`.

    `service` is who must answer. Raises `ExchangeRefusedError`.
    """
    address = urlsplit(url)
    connection = http.client.HTTPSConnection(
        address.netloc, timeout=_TIMEOUT_S, context=_context(svid, ssl.PROTOCOL_TLS_CLIENT)
    )
    try:
        connection.connect()
        if _peer(connection.sock) != service:
            raise ExchangeRefusedError("invalid_request", "the peer is not the token service")
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        connection.request("POST", address.path, urlencode(form), headers)
        answer = json.loads(connection.getresponse().read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ExchangeRefusedError("invalid_request", f"no answer: {error}") from error
    finally:
        connection.close()
    if "access_token" not in answer:
        raise ExchangeRefusedError(answer["error"], answer["error_description"])
    return str(answer["access_token"])


def _context(svid: Path, protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # SECURITY: an SVID has no host name to compare; both sides compare the SPIFFE ID instead.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(svid / "bundle.pem")
    context.load_cert_chain(svid / "svid.pem", svid / "svid.key.pem")
    return context


def _peer(connection: object) -> SpiffeId:
    """Return who is at the other end. Raises `ExchangeRefusedError`."""
    der = None
    if isinstance(connection, ssl.SSLSocket):
        der = connection.getpeercert(binary_form=True)
    try:
        return leaf_spiffe_id(x509.load_der_x509_certificate(der or b""))
    except (InvalidValueError, ValueError) as error:
        raise ExchangeRefusedError("invalid_client", "the peer has no X509-SVID") from error
