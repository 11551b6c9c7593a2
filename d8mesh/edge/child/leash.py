"""Runs a program of somebody else's and ends it with whoever holds the other end of standard input.

Run as a script, with nothing of d8mesh imported, so that it starts quickly and stays small. A
program such as ``ollama serve`` does not know its parent, and a worker that is killed could not
end it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

#: What is told to end gets so long before it is ended: it may have something to write.
LEASH_END_S = 5.0


def main(command: list[str]) -> int:
    """Run `command` until it ends, or until standard input does; return its exit code."""
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    is_over = threading.Event()
    holder = threading.Thread(target=_hold, args=(program, is_over), daemon=True)
    holder.start()
    code = program.wait()
    if is_over.is_set():  # what it has started ends too
        holder.join()
    return code if code >= 0 else 128 - code


def _hold(program: subprocess.Popen[bytes], is_over: threading.Event) -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 64):
            pass
    is_over.set()
    program.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.wait(LEASH_END_S)
    if sys.platform == "win32":
        program.kill()  # its holder's job object ends the rest
    elif os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)  # also what it has started
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
