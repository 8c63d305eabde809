"""Two agents: the assistant hands a narrower job to the research agent, which calls a service."""

import httpx2
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from authz_server.agent import Delegation, DelegationMiddleware, Delegator, Denied, HandOff, PemSvid
from authz_server.agent.httpx2_auth import Httpx2Delegation

DATA = "https://data.demo.example.org"
RESEARCH = "https://research.agents.demo.example.org"
RESEARCH_ID = "spiffe://demo.example.org/agent/research"


def research_agent(http: httpx2.AsyncClient) -> Starlette:
    """Serve tasks. What came with a task goes along with every call made for it."""
    http.auth = Httpx2Delegation()

    async def task(request: Request) -> JSONResponse:
        customer = (await request.json())["customer"]
        try:
            found = await http.get(f"{DATA}/v1/customers/{customer}/invoices")
        except Denied as denied:
            return JSONResponse({"refused": denied.reason})
        return JSONResponse(found.json())

    app = Starlette(routes=[Route("/tasks", task, methods=["POST"])])
    app.add_middleware(DelegationMiddleware)
    return app


async def assistant(http: httpx2.AsyncClient, svid: PemSvid, root: str, customer: str) -> object:
    """Hand on reading at the data API, and nothing else of what `root` grants."""
    hand_off = HandOff(to=RESEARCH_ID, audience=[DATA], scope=["data.read"])
    auth = Httpx2Delegation(Delegator(svid), hand_off, delegation=Delegation(root=root))
    answer = await http.post(f"{RESEARCH}/tasks", json={"customer": customer}, auth=auth)
    return answer.json()
