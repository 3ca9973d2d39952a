"""A parent for a process that JAX may abort."""

import os
import signal
import sys
from types import FrameType

ADVICE = ". The run goes on from its last checkpoint with --resume"


def supervise() -> None:
    """Go on in a child process; this one waits for it, hands it its signals and ends as it does.

    JAX aborts a process whose coordinator has died, from a thread of its own, where no Python code
    can say a word. The parent says it. Call this before JAX is imported.
    """
    child = os.fork()
    if child == 0:
        os.setsid()  # a Ctrl-C in the terminal reaches the parent alone, which hands it on, once
        return

    def hand_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, hand_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        name = signal.Signals(-code).name
        print(
            f"othink-jax: {name} has ended this process: another one of the run has died, or"
            f" memory has run out{ADVICE}",
            file=sys.stderr,
        )
        code = 1
    sys.stderr.flush()
    os._exit(code)
