"""Ctrl-C while C++ threads run that can only be asked to stop.

Python's own handler raises KeyboardInterrupt wherever the main thread happens to be, also in the
code that waits for those threads. If Python then ends before they do, C++ aborts the process
("exception not rethrown") and may dump its memory. So Ctrl-C is a request here, and raised
afterwards.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def postponed(request: Callable[[], None]) -> Iterator[None]:
    """In the block Ctrl-C calls `request`; what it did before, it does when the block has ended.

    Outside of the main thread Python delivers no signals, and where Ctrl-C is ignored (nohup) it
    stays so: nothing is changed then.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or not callable(before):
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []

    def handle(number: int, frame: FrameType | None) -> None:
        pending.append((number, frame))
        request()

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pending:
        before(*pending[0])
