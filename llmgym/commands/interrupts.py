"""What Ctrl-C does while a command works."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any


class CtrlC:
    """What Ctrl-C does while a run works, as a number: how many of them are only noted before one interrupts.

    0 while evaluating. 1 while training, where `asked` is looked at after each step. Without limit while files are
    being completed, which takes seconds.
    """

    def __init__(self) -> None:
        self.asked, self.patience = 0, 0.0
        self._main = threading.current_thread() is threading.main_thread()  # signals go to no other thread

    def __enter__(self) -> CtrlC:
        if self._main:
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._main:
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, number: int, frame: Any) -> None:
        self.asked += 1
        if self.asked > self.patience:
            raise KeyboardInterrupt
        if self.patience == 1:  # os.write, for the signal may have come in the middle of a print
            os.write(2, b"\nstopping after this step (Ctrl-C again: at once)\n")
