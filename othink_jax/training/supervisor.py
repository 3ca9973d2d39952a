"""A parent process that reports it when JAX aborts its child."""

import os
import signal
import sys
from types import FrameType

ADVICE = ". The run goes on from its last checkpoint with --resume"


def supervise() -> None:
    """Return in a child process; the parent forwards signals to it and exits with its exit code.

    JAX aborts a process whose coordinator has died. It does so from a thread of its own, where no
    Python code can print a message, so the parent prints it. Call this before JAX is imported.
    """
    child = os.fork()
    if child == 0:
        os.setsid()  # Ctrl-C in the terminal reaches only the parent, which forwards it once
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
