"""Notes what a training process is doing, in a mapped file that outlives it: benchmarks/kills.py reads it after a kill.

Python imports a module of this name when it starts, so that the command under test is `python -m regard train` itself.
A thread looks at the main thread's stack every few milliseconds and changes nothing of it.
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import time
from types import FrameType

SECONDS_BETWEEN_LOOKS = 0.002
NOTE_BYTES = 8192


def stack(frame: FrameType | None) -> str:
    """Functions from the innermost outwards, as "file:function"; of an update, which of its batches it is at."""
    names = []
    while frame is not None:
        code = frame.f_code
        number = f"#{frame.f_locals['index']}" if code.co_name == "_attempt" and "index" in frame.f_locals else ""
        names.append(f"{os.path.basename(code.co_filename)}:{code.co_name}{number}")
        frame = frame.f_back
    return " ".join(names)


def look(path: str) -> None:
    main = threading.main_thread().ident
    with open(path, "w+b") as file:
        file.truncate(NOTE_BYTES)
        note = mmap.mmap(file.fileno(), NOTE_BYTES)
    while True:
        text = stack(sys._current_frames().get(main)).encode()[: NOTE_BYTES - 1]
        note[: len(text) + 1] = text + b"\0"
        time.sleep(SECONDS_BETWEEN_LOOKS)


if path := os.environ.pop("REGARD_KILL_PROBE", ""):  # taken out: processes that this one starts are not watched
    threading.Thread(target=look, args=(path,), daemon=True).start()
