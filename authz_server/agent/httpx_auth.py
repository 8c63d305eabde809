"""Delegation for httpx clients: `httpx.AsyncClient(auth=HttpxDelegation())`."""

import httpx

from authz_server.agent.http_flow import DelegationFlow


class HttpxDelegation(DelegationFlow, httpx.Auth):
    """`DelegationFlow` as httpx takes it, for `Client` and `AsyncClient`."""
