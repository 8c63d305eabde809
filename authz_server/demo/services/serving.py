"""Serve an application on a Unix socket that only its Envoy, and nobody on the network, reaches."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from authz_server.demo.services.journal import Journal
from authz_server.demo.svids_of_agent import keep_identity


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The command line every service takes.

    `svid` is the directory with the service's own `svid.pem`, `svid.key.pem` and `bundle.pem`, and
    `directory` the service directory (`mesh_client.ServiceDirectory`), for those that call others.
    With `agent`, the socket of a SPIRE agent, the service itself keeps the former fresh.
    """

    socket: Path
    journal: Path
    svid: Path
    directory: Path
    agent: Path | None


def run(application: Callable[[Arguments], ASGIApp]) -> None:
    """Serve the application built from the command line until SIGTERM."""
    arguments = parse_arguments()
    uvicorn.run(
        Journal(application(arguments), arguments.journal),
        uds=str(arguments.socket),
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=2,
    )


def parse_arguments() -> Arguments:
    """Return the command line; with a SPIRE agent in it, once the SVID is there."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("socket", "journal", "svid", "directory"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--agent", type=Path)
    arguments = Arguments(**vars(parser.parse_args()))
    if arguments.agent is not None:
        keep_identity(arguments.agent, arguments.svid)
    return arguments
