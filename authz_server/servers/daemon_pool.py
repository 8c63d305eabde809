"""A few threads for calls that may hang for ever, and must not keep the process from ending.

`ThreadPoolExecutor` waits for its threads when the interpreter ends, whatever they wait for.
"""

import asyncio
import queue
import threading
from collections.abc import Callable
from functools import partial
from typing import Generic, TypeVar

_T = TypeVar("_T")


class DaemonPool(Generic[_T]):
    """Runs functions one after the other in each of its threads. Used from one event loop."""

    def __init__(self, threads: int, *, name: str) -> None:
        self._asked: queue.SimpleQueue[tuple[Callable[[], _T], asyncio.Future[_T]]]
        self._asked = queue.SimpleQueue()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True).start()

    def run(self, call: Callable[[], _T]) -> asyncio.Future[_T]:
        """Return what `call` returns or raises. One that is cancelled in time is not begun."""
        future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
        self._asked.put((call, future))
        return future

    def _work(self) -> None:
        while True:
            call, future = self._asked.get()
            if future.cancelled():
                continue
            try:
                result = call()
            except Exception as error:  # noqa: BLE001  # raised where it is awaited
                _tell(future, partial(future.set_exception, error))
            else:
                _tell(future, partial(future.set_result, result))


def _tell(future: asyncio.Future[_T], settle: Callable[[], None]) -> None:
    def in_loop() -> None:
        if not future.done():  # whoever waited has given up
            settle()

    try:
        future.get_loop().call_soon_threadsafe(in_loop)
    except RuntimeError:
        return  # the loop has ended, and with it everybody who waited
