"""The data API: invoices and customer records over plain HTTP, with no check of its own."""

from typing import Final

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from authz_server.demo.services.serving import Arguments, run

_INVOICES: Final = {
    "C-17": [
        {"invoice": "2026-0419", "amount": "1240.00", "currency": "EUR", "status": "overdue"},
        {"invoice": "2026-0388", "amount": "310.50", "currency": "EUR", "status": "paid"},
    ],
    "C-18": [{"invoice": "2026-0402", "amount": "87.00", "currency": "EUR", "status": "paid"}],
}


async def _invoices(request: Request) -> JSONResponse:
    customer = request.path_params["customer"]
    if customer not in _INVOICES:
        return JSONResponse({"error": "no such customer"}, status_code=404)
    return JSONResponse({"customer": customer, "invoices": _INVOICES[customer]})


async def _delete_customer(request: Request) -> JSONResponse:
    return JSONResponse({"customer": request.path_params["customer"], "deleted": True})


async def _payroll(_request: Request) -> JSONResponse:
    return JSONResponse({"salaries": "what no support case needs"})


def application(_arguments: Arguments) -> ASGIApp:
    """Return the API's application."""
    return Starlette(
        routes=[
            Route("/v1/customers/{customer}/invoices", _invoices, methods=["GET"]),
            Route("/v1/customers/{customer}", _delete_customer, methods=["DELETE"]),
            Route("/v1/payroll", _payroll, methods=["GET"]),
        ]
    )


if __name__ == "__main__":
    run(application)
