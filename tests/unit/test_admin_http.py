"""The probe port answers what it knows, refuses the rest, and is not tied up by slow clients."""

import http.client
import json
import socket
from collections.abc import Iterator
from http import HTTPStatus

import pytest

from authz_server.servers import admin_http
from authz_server.servers.addresses import ListenError
from authz_server.servers.admin_http import AdminServer, Page


def ready() -> Page:
    return Page.json(HTTPStatus.SERVICE_UNAVAILABLE, {"ready": False})


@pytest.fixture
def server() -> Iterator[AdminServer]:
    server = AdminServer("127.0.0.1", 0, {"/readyz": ready})
    server.start()
    yield server
    server.close()


@pytest.fixture
def client(server: AdminServer) -> Iterator[http.client.HTTPConnection]:
    client = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    yield client
    client.close()


def test_a_page_is_served_with_its_status(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/readyz?verbose")
    response = client.getresponse()
    assert response.status == 503
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert json.load(response) == {"ready": False}


def test_head_has_the_length_but_no_body(client: http.client.HTTPConnection) -> None:
    client.request("HEAD", "/readyz")
    response = client.getresponse()
    assert int(response.headers["Content-Length"]) > 0
    assert response.read() == b""
    client.request("GET", "/readyz")  # the same connection still works
    assert client.getresponse().status == 503


def test_an_unknown_path_is_not_found(client: http.client.HTTPConnection) -> None:
    client.request("GET", "/../etc/passwd")
    assert client.getresponse().status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
def test_other_methods_are_refused(client: http.client.HTTPConnection, method: str) -> None:
    client.request(method, "/readyz", body=b"x")
    response = client.getresponse()
    assert response.status == 405
    assert response.headers["Allow"] == "GET, HEAD"
    assert response.headers["Connection"] == "close"


def test_a_body_is_never_read_as_the_next_request(server: AdminServer) -> None:
    smuggled = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
        raw.sendall(
            b"GET /readyz HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(smuggled)
            + smuggled
        )
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.count(b"HTTP/1.1 ") == 1


def test_connections_are_bounded_and_slots_come_back(server: AdminServer) -> None:
    held = []
    for _ in range(admin_http._CONNECTIONS_MAX):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
        connection.request("GET", "/readyz")
        connection.getresponse().read()
        held.append(connection)
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as one_more:
        assert one_more.recv(1) == b""  # closed without an answer
    for connection in held:
        connection.close()
    while True:  # a slot is free as soon as a thread has noticed
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as raw:
            raw.sendall(b"HEAD /readyz HTTP/1.0\r\n\r\n")
            try:
                if raw.recv(1):
                    break
            except ConnectionResetError:
                continue


def test_an_address_in_use_is_one_clear_line(server: AdminServer) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on http 127\.0\.0\.1:\d+: Address"):
        AdminServer("127.0.0.1", server.port, {})
