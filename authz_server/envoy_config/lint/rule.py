"""What a rule is, and the few forms that most of them have."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeVar

from authz_server.envoy_config.lint.configuration import Configuration
from authz_server.envoy_config.lint.message import At, Message

T = TypeVar("T")


class Severity(StrEnum):
    """What a finding means."""

    # A request gets past the check, or is judged by what it is not; or callers can be forged.
    ERROR = "error"
    WARNING = "warning"  # no way past by itself; a guard that is missing, or something not judged


ERROR: Final = Severity.ERROR
WARNING: Final = Severity.WARNING

Judge = Callable[[Configuration], Iterable[At]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One unsafe setting: what it is, why it matters (a sentence), what to write instead.

    `judge` yields each place where it stands.
    """

    id: str
    severity: Severity
    title: str
    why: str
    fix: str
    judge: Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One rule that is broken at one place."""

    rule: Rule
    at: At

    @property
    def message(self) -> str:
        """The rule's title, and what is to be said of this place."""
        return f"{self.rule.title}: {self.at.note}" if self.at.note else self.rule.title


Check = Callable[[T], Iterable[At]]


def each(select: Callable[[Configuration], Iterable[T]], check: Check[T]) -> Judge:
    """Return a judge that applies `check` to all that `select` finds."""

    def judge(configuration: Configuration) -> Iterator[At]:
        for one in select(configuration):
            yield from check(one)

    return judge


def is_true(name: str) -> Check[Message]:
    """Find a flag that is set to true."""
    return lambda message: [message.at(name)] if message.flag(name) else []


def is_not_true(name: str) -> Check[Message]:
    """Find a flag that is false or not set."""
    return lambda message: [] if message.flag(name) else [message.at(name)]


def is_set(name: str) -> Check[Message]:
    """Find a field that is set, to whatever value."""
    return lambda message: [message.at(name)] if message.has(name) else []


def is_unset(name: str) -> Check[Message]:
    """Find a message in which a field is not set."""
    return lambda message: [] if message.has(name) else [message.at()]


def is_one_of(name: str, *values: str) -> Check[Message]:
    """Find a text or enumeration that has one of `values`; an empty one stands for "not set"."""
    return lambda message: [message.at(name)] if message.text(name) in values else []


def is_zero(name: str) -> Check[Message]:
    """Find a number or duration that is set to zero."""
    return lambda message: [message.at(name)] if message.number(name) == 0 else []


def exceeds(name: str, most: float) -> Check[Message]:
    """Find a number or duration that is larger than `most`."""

    def check(message: Message) -> list[At]:
        value = message.number(name)
        return [message.at(name, f"{value:g}")] if value is not None and value > most else []

    return check
