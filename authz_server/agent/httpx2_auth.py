"""Delegation for httpx2 clients: `httpx2.AsyncClient(auth=Httpx2Delegation())`."""

import httpx2

from authz_server.agent.http_flow import DelegationFlow


class Httpx2Delegation(DelegationFlow, httpx2.Auth):
    """`DelegationFlow` as httpx2 takes it, for `Client` and `AsyncClient`."""
