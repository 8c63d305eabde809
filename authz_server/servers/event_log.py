"""What the server says on standard error: one JSON object per event in its life, none per call.

SECURITY: no token, body, argument value or exception message is ever passed in here.
"""

import logging
from typing import Final, Self, TextIO

import structlog

_ONCE_MAX: Final = 100  # distinct events that are said once; what comes after is only counted


class EventLog:
    """A structured log. Used from any thread."""

    def __init__(self, logger: structlog.typing.FilteringBoundLogger) -> None:
        self._logger = logger
        self._said: set[tuple[str, str]] = set()

    @classmethod
    def json(cls, stream: TextIO) -> Self:
        """Return a log that writes JSON lines to `stream`."""
        return cls(
            structlog.wrap_logger(
                structlog.WriteLogger(stream),
                processors=[
                    structlog.processors.add_log_level,
                    structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
                    _head_first,
                    structlog.processors.JSONRenderer(),
                ],
                wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
            )
        )

    def info(self, event: str, **fields: object) -> None:
        """Note what happens in the ordinary course of things."""
        self._logger.info(event, **fields)

    def warning(self, event: str, **fields: object) -> None:
        """Note what an operator should know."""
        self._logger.warning(event, **fields)

    def error(self, event: str, **fields: object) -> None:
        """Note what an operator must look into."""
        self._logger.error(event, **fields)

    def once(self, event: str, *, fault: str) -> None:
        """Note an error the first time it happens in this process.

        A caller may cause it at will, and must not be able to fill the disk.
        """
        key = (event, fault)
        if key not in self._said and len(self._said) < _ONCE_MAX:
            self._said.add(key)
            self._logger.error(event, fault=fault)


def _head_first(
    _logger: object, _method: str, fields: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Put what every line has before what only some have."""
    head = {key: fields.pop(key) for key in ("time", "level", "event")}
    return {**head, **fields}
