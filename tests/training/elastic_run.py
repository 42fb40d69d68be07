"""What torchrun starts in test_elastic: a tiny run whose second process is killed, each time in a planned place.

    elastic_run.py FOLDER PLAN ORDER

FOLDER: of the run. PLAN: for each start of the second process where it is killed: "meeting", or the number of its loss.
ORDER: see `disturbed_run`. Each process notes in FOLDER how often torchrun says that it was started again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from disturbed_run import run

from regard.training import processes

SECOND = "1"


def main() -> int:
    folder, plan, order = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
    notes = folder / f"restarts-{os.environ['RANK']}"
    with notes.open("a", encoding="utf-8") as file:
        file.write(os.environ["TORCHELASTIC_RESTART_COUNT"] + "\n")
    starts = len(notes.read_text(encoding="utf-8").splitlines())
    if os.environ["RANK"] == SECOND and starts <= len(plan):
        if plan[starts - 1] == "meeting":
            processes._await = end  # its question is in the store then
        else:
            order["signals"] = ["objective", plan[starts - 1], [signal.SIGKILL]]
    return run({**order, "folder": str(folder), "disturbed": int(SECOND)})


def end(*values: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    raise SystemExit(main())
