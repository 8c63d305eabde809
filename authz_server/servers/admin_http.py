"""The HTTP port for probes, scrapers and people: `/healthz`, `/readyz`, `/metrics`, `/v1/…`.

It runs in threads of its own, so that a slow scraper never delays a decision, and so that a probe
still gets an answer while the event loop waits for the disk.
"""

import http.server
import json
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final, Protocol

from authz_server.core.request import Headers
from authz_server.servers.addresses import ListenError

_REQUEST_TIMEOUT_S: Final = 5.0  # for one idle or slow connection; probes take milliseconds
_CONNECTIONS_MAX: Final = 32  # two probes and a few scrapers; the rest is closed unanswered
_BACKLOG: Final = 16
API_PREFIX: Final = "/v1/"
API_BODY_BYTES_MAX: Final = 4 * 1024  # a reason in a sentence, and no more is ever sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One answer."""

    status: HTTPStatus
    content_type: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()  # beyond those that every answer has

    @classmethod
    def json(cls, status: HTTPStatus, document: Mapping[str, object]) -> "Page":
        """Return `document` as a JSON page."""
        body = json.dumps(document, indent=1).encode() + b"\n"
        return cls(status=status, content_type="application/json", body=body)

    @classmethod
    def text(cls, status: HTTPStatus, text: str) -> "Page":
        """Return `text` as a page of one line."""
        content_type = "text/plain; charset=utf-8"
        return cls(status=status, content_type=content_type, body=text.encode() + b"\n")


# Path -> what answers GET and HEAD. Called from any thread.
Pages = Mapping[str, Callable[[], Page]]

# Returns what the next TLS handshake uses, or None while there is nothing to serve with.
TlsSource = Callable[[], ssl.SSLContext | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiRequest:
    """One request below `/v1/`. `target` is path and query as sent.

    `client_certificate` is the DER that TLS verified; None without TLS or without one.
    `body` is None when it is not there as it must be: of a known length within the bound.
    """

    method: str
    target: str
    headers: Headers
    body: bytes | None
    client_certificate: bytes | None


class Api(Protocol):
    """What answers below `/v1/`, from any thread. Never raises."""

    def answer(self, request: ApiRequest) -> Page:
        """Return the answer to `request`."""


class AdminServer:
    """Serves pages on one address until closed."""

    def __init__(
        self,
        host: str,
        port: int,
        pages: Pages,
        *,
        api: Api | None = None,
        tls: TlsSource | None = None,
    ) -> None:
        """Listen at once; raises `ListenError`. Port 0 picks a free one (see `port`)."""
        try:
            self._server = _Server(host, port, pages, api, tls)
        except OSError as error:
            raise ListenError(f"cannot listen on http {host}:{port}: {error.strerror}") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="admin-http"
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stop listening; a request in progress is cut off."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(http.server.ThreadingHTTPServer):
    """A threading server with a bounded number of connections."""

    daemon_threads = True
    block_on_close = False  # a client that holds its connection open must not hold up a drain
    request_queue_size = _BACKLOG
    allow_reuse_address = True

    def __init__(
        self, host: str, port: int, pages: Pages, api: Api | None, tls: TlsSource | None
    ) -> None:
        self.pages = pages
        self.api = api
        self._tls = tls
        self._slots = threading.BoundedSemaphore(_CONNECTIONS_MAX)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # HTTPServer.server_bind resolves its own name, which can take seconds without DNS.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: object, client_address: object) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]
            return
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        try:
            secured = self._secured(request)
            if secured is not None:
                super().process_request_thread(secured, client_address)  # type: ignore[arg-type]
        finally:
            self._slots.release()

    def _secured(self, request: object) -> object | None:
        """Return the connection to read from, or None where there is none to be had.

        In the thread of the connection, so that a slow handshake holds up nobody else.
        """
        if self._tls is None:
            return request
        assert isinstance(request, socket.socket)
        request.settimeout(_REQUEST_TIMEOUT_S)
        context = self._tls()
        if context is not None:
            try:
                return context.wrap_socket(request, server_side=True)
            except (OSError, ValueError):  # `ssl.SSLError` is an `OSError`
                pass
        self.shutdown_request(request)
        return None

    def handle_error(self, request: object, client_address: object) -> None:
        """Drop a broken connection without a word: whoever it was knows."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    timeout = _REQUEST_TIMEOUT_S
    server: _Server

    def version_string(self) -> str:
        return "authz-server"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Log nothing: probes come every few seconds."""

    def do_GET(self) -> None:
        if self._is_for_api():
            self._call()
        else:
            self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def _refuse(self) -> None:
        if self._is_for_api():
            self._call()
            return
        self.close_connection = True  # its body, if any, is not read
        self._send(_status_page(HTTPStatus.METHOD_NOT_ALLOWED), allow="GET, HEAD")

    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse  # noqa: N815

    def _is_for_api(self) -> bool:
        return self.server.api is not None and self.path.startswith(API_PREFIX)

    def _call(self) -> None:
        assert self.server.api is not None
        fields: dict[str, tuple[bytes, ...]] = {}
        for name, value in self.headers.items():
            key = name.lower()
            fields[key] = (*fields.get(key, ()), value.encode("latin-1"))
        request = ApiRequest(
            method=self.command,
            target=self.path,
            headers=Headers(fields=fields),
            body=self._body(),
            client_certificate=self._client_certificate(),
        )
        self._send(self.server.api.answer(request))

    def _body(self) -> bytes | None:
        """Return the body; None, and the connection ends, if it is not of a known, small size."""
        lengths = self.headers.get_all("Content-Length", ["0"])
        length = lengths[0] if len(lengths) == 1 else ""
        is_sound = length.isascii() and length.isdigit() and len(length) < 6
        if "Transfer-Encoding" in self.headers or not is_sound or int(length) > API_BODY_BYTES_MAX:
            self.close_connection = True  # what is not read would be the next request
            return None
        body = self.rfile.read(int(length))
        return body if len(body) == int(length) else None

    def _client_certificate(self) -> bytes | None:
        if not isinstance(self.connection, ssl.SSLSocket):
            return None
        return self.connection.getpeercert(binary_form=True)

    def _answer(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body would be read as the next request
        page = self.server.pages.get(self.path.partition("?")[0])
        self._send(page() if page is not None else _status_page(HTTPStatus.NOT_FOUND))

    def _send(self, page: Page, allow: str | None = None) -> None:
        self.send_response(page.status)
        self.send_header("Content-Type", page.content_type)
        self.send_header("Content-Length", str(len(page.body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        for name, value in page.headers:
            self.send_header(name, value)
        if allow is not None:
            self.send_header("Allow", allow)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page.body)


def _status_page(status: HTTPStatus) -> Page:
    return Page.text(status, f"{status.value} {status.phrase}")
