"""Key sets of issuers from their addresses: asked again in time, and never more than once a minute.

A request never waits for an issuer. One that names an unknown key is denied at once, and has the
key set asked for again as soon as the minute is over: a caller may repeat itself, and no flood of
invented key ids can make this server a burden to an issuer.
"""

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from authz_server.core.errors import InvalidValueError
from authz_server.core.snapshot import Snapshot
from authz_server.core.trust import Issuer, TrustMaterial, VerificationKey
from authz_server.identity.backoff import Backoff
from authz_server.identity.issuer_keys import keys_for
from authz_server.identity.jwks_request import (
    KeySetAddress,
    KeySetUnreachableError,
    fetch_key_set,
)
from authz_server.identity.live_bundles import Clock
from authz_server.settings.model import IssuerSettings

_STOP_TIMEOUT_S: Final = 2.0
_NO_KEYS: Final[Mapping[str, VerificationKey]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often an issuer is asked. Only tests have another than the default.

    `refresh_s` is the wait after an answer. `apart_s` lies between any two requests, whatever the
    reason, once there was an answer; before the first one a failure is tried again sooner, with
    waits that grow up to `apart_s`, which no request can shorten.
    """

    refresh_s: float = 300.0
    apart_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Heard:
    """The last key set that was usable."""

    keys: Mapping[str, VerificationKey]
    at: datetime


class IssuerFeed:
    """The issuers whose keys have an address, each followed in a thread of its own. Thread-safe.

    An input of every snapshot. `changed` is called after each change, `report` with what an
    operator should know; both from the threads.
    """

    def __init__(
        self,
        issuers: Iterable[IssuerSettings],
        *,
        clock: Clock,
        changed: Callable[[], None],
        report: Callable[[str], None],
        pace: Pace | None = None,
    ) -> None:
        self._followers = {
            given.issuer: _Follower(given, clock, changed, report, pace or Pace())
            for given in issuers
            if given.jwks_url is not None
        }

    def start(self) -> None:
        """Begin to follow every issuer."""
        for follower in self._followers.values():
            follower.thread.start()

    def stop(self) -> None:
        """Stop, and wait for it a moment."""
        for follower in self._followers.values():
            follower.stop()

    def wait_for_first(self, timeout_s: float) -> None:
        """Return once every issuer was asked once, whatever it said, or after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        for follower in self._followers.values():
            follower.asked.wait(max(0.0, deadline - time.monotonic()))

    def key_missing(self, issuer: str) -> None:
        """Have `issuer` asked again, when its minute is over. Returns at once."""
        follower = self._followers.get(issuer)
        if follower is not None:
            follower.want()

    @property
    def requests(self) -> int:
        """How many requests were made, of all issuers."""
        return sum(follower.requests for follower in self._followers.values())

    @property
    def without_keys(self) -> int:
        """How many issuers have no keys now, because theirs were never heard or are too old."""
        return sum(follower.keys is None for follower in self._followers.values())

    def apply(self, snapshot: Snapshot) -> Snapshot:
        """Return `snapshot` with the present keys of every issuer, under a new trust revision."""
        if not self._followers:
            return snapshot
        issuers: dict[str, Issuer] = dict(snapshot.trust.issuers)
        for name, follower in self._followers.items():
            issuers[name] = replace(issuers[name], keys=follower.keys or _NO_KEYS)
        trust = TrustMaterial(
            revision=_revision(snapshot.trust.revision, [issuers[n] for n in self._followers]),
            bundles=snapshot.trust.bundles,
            issuers=MappingProxyType(issuers),
            good_until=snapshot.trust.good_until,
        )
        rest = snapshot.revision.partition(".")[2]
        return replace(snapshot, trust=trust, revision=f"{trust.revision[:16]}.{rest}")


class _Follower:
    """Follows one issuer. The one thread makes every request, so there is never more than one."""

    def __init__(
        self,
        given: IssuerSettings,
        clock: Clock,
        changed: Callable[[], None],
        report: Callable[[str], None],
        pace: Pace,
    ) -> None:
        assert given.jwks_url is not None, "an issuer with a file is not followed"
        self._given = given
        self._address = KeySetAddress(url=given.jwks_url, ca_file=given.jwks_ca_file)
        self._max_stale = timedelta(seconds=given.jwks_max_stale_s)
        self._clock = clock
        self._changed = changed
        self._report = report
        self._pace = pace
        self._first_waits = Backoff(longest_s=pace.apart_s)
        self._heard: _Heard | None = None
        self._fault = ""
        self._condition = threading.Condition()
        self._wanted = False
        self._stopping = False
        self._serves = False  # whether snapshots were last told of keys
        self.requests = 0
        self.asked = threading.Event()
        name = f"issuer {given.issuer}"
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    @property
    def keys(self) -> Mapping[str, VerificationKey] | None:
        """The keys, or None before the first and after `jwks_max_stale_s` without an answer."""
        heard = self._heard
        if heard is None or self._clock() >= heard.at + self._max_stale:
            return None
        return heard.keys

    def want(self) -> None:
        """Ask again as soon as may be."""
        if not self._wanted:  # a flood of unknown keys takes no lock
            with self._condition:
                self._wanted = True
                self._condition.notify()

    def stop(self) -> None:
        with self._condition:
            self._stopping = True
            self._condition.notify()
        if self.thread.is_alive():
            self.thread.join(_STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping:
            started = time.monotonic()
            self._wanted = False
            try:
                self._ask()
            except (KeySetUnreachableError, InvalidValueError) as error:
                self._failed(str(error))
            # A defect must not end the thread: the issuer's keys would end with it, unexplained.
            except Exception as error:  # noqa: BLE001
                self._failed(f"internal error `{type(error).__name__}`")
            self.asked.set()
            self._end_if_too_old()
            self._wait(started)

    def _ask(self) -> None:
        self.requests += 1
        keys = keys_for(fetch_key_set(self._address), self._given.algorithms)
        before, self._heard = self._heard, _Heard(keys=keys, at=self._clock())
        if self._fault:
            self._fault = ""
            self._report(f"the keys of `{self._given.issuer}` are read again")
        if not self._serves or before is None or _digest(before.keys) != _digest(keys):
            self._serves = True
            self._changed()

    def _failed(self, fault: str) -> None:
        if fault != self._fault:
            self._fault = fault
            self._report(f"the keys of `{self._given.issuer}` are not renewed: {fault}")

    def _wait(self, started: float) -> None:
        """Return when it is time to ask again, or to stop."""
        apart_s = self._first_waits.next_s() if self._heard is None else self._pace.apart_s
        refresh_s = min(self._pace.refresh_s, self._max_stale.total_seconds() / 2)
        wait_s = apart_s if self._heard is None or self._fault else max(refresh_s, apart_s)
        with self._condition:
            while not self._stopping:
                left_s = started + (apart_s if self._wanted else wait_s) - time.monotonic()
                if left_s <= 0:
                    return
                self._condition.wait(self._no_later_than_end(left_s))
                self._end_if_too_old()

    def _end_if_too_old(self) -> None:
        if self._serves and self.keys is None:
            self._serves = False
            self._report(f"the keys of `{self._given.issuer}` are too old")
            self._changed()

    def _no_later_than_end(self, wait_s: float) -> float:
        heard = self._heard
        if heard is None:
            return wait_s
        left_s = (heard.at + self._max_stale - self._clock()).total_seconds()
        return min(wait_s, left_s) if left_s > 0 else wait_s


def _revision(before: str, issuers: Iterable[Issuer]) -> str:
    parts = [before, *(repr((issuer.issuer, _digest(issuer.keys))) for issuer in issuers)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _digest(keys: Mapping[str, VerificationKey]) -> str:
    """Return a digest that equal keys have in whatever order they came."""
    parts = []
    for kid, key in sorted(keys.items()):
        der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        parts.append((kid, hashlib.sha256(der).hexdigest()))
    return hashlib.sha256(repr(parts).encode()).hexdigest()
