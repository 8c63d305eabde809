"""Function arguments compiled once, however many rules give the same ones."""

from dataclasses import dataclass, field

from authz_server.policy.functions import Function, Plan, compile_constants
from authz_server.policy.limits import PATTERN_CHARS_MAX
from authz_server.policy.patterns import TextMap, TextTest


@dataclass(slots=True)
class Compiled:
    """Compiled function arguments, shared by every rule that gives the same ones."""

    functions: dict[tuple[str, tuple[str, ...]], TextTest | TextMap] = field(default_factory=dict)

    def function(self, function: Function, constants: tuple[str, ...]) -> TextTest | TextMap:
        """Return `function` for these constants. Raises `InvalidValueError`."""
        key = (function.name, constants)
        if key not in self.functions:
            self.functions[key] = compile_constants(function, constants)
        return self.functions[key]

    def check(self, function: Function, constants: tuple[str, ...]) -> None:
        """Raise `InvalidValueError` if `function` does not take these constants."""
        if self.plan(function, constants) is None:
            self.function(function, constants)

    def plan(self, function: Function, constants: tuple[str, ...]) -> Plan | None:
        """Return the form that needs no call, if there is one. Raises `InvalidValueError`."""
        if function.plan is None or len(constants[0]) > PATTERN_CHARS_MAX:
            return None
        return function.plan(constants)
