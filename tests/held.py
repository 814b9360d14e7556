"""A process of its own that stops at a known point and waits there, so that a signal finds it there
however slow or busy the machine is.

child = start(WHERE)  # code that calls hold()
until_held(child)     # now it waits
go_on(child)          # or child.send_signal(...)
"""

import os
import subprocess
import sys

BEGIN = """
import signal, sys
# The shell of a background job has it ignored, and a child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
pipe = sys.stdout
def hold():
    print("held", file=pipe, flush=True)
    sys.stdin.readline()
"""
COMMAND = """
from mechforget.cli import main
main()
"""


def start(code: str, *words: object) -> subprocess.Popen:
    """Python with this code, which may call hold(); words are its sys.argv[1:]."""
    return subprocess.Popen(
        [sys.executable, "-c", BEGIN + code, *map(str, words)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": "."},
    )


def until_held(child: subprocess.Popen) -> None:
    """Returns when it waits in hold(); what it printed before is dropped."""
    for line in child.stdout:
        if line == "held\n":
            return
    raise AssertionError(f"it ended before it was held: {child.communicate()[1]}")


def go_on(child: subprocess.Popen) -> None:
    child.stdin.write("\n")
    child.stdin.flush()
