"""A child and all that it starts, which end as one.

On POSIX a session and process group of its own; on Windows a job object, which the system
ends with its last handle. What leaves the group on purpose (a daemon that calls `setsid`) is
beyond it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from typing import Any, Final

#: How long Windows' own command may take to end a tree of processes.
TASKKILL_S: Final = 5.0

if sys.platform == "win32":
    #: Arguments of `Popen` that begin a group.
    NEW_GROUP: Final[dict[str, Any]] = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
else:
    NEW_GROUP: Final[dict[str, Any]] = {"start_new_session": True}


class ProcessGroup:
    """The group that a process, started with `NEW_GROUP`, leads.

    Thread: any.
    """

    def __init__(self, leader: subprocess.Popen[bytes]) -> None:
        self._leader = leader
        self._lock = threading.Lock()
        self._is_over = False
        self._job = _Job(leader) if sys.platform == "win32" else None

    def kill(self) -> None:
        """End all of it now."""
        with self._lock:
            if not self._is_over:
                self._kill()

    def wait(self) -> None:
        """Wait for the end of the leader, and end all that it has left behind."""
        if sys.platform != "win32" and hasattr(
            os, "waitid"
        ):  # the number is its own until it is waited for
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, self._leader.pid, os.WEXITED | os.WNOWAIT)
        else:  # Windows, and macOS before Python 3.13
            self._leader.wait()
        with self._lock:
            self._kill()
            self._leader.wait()
            self._is_over = True

    def _kill(self) -> None:
        if self._job is not None:
            self._job.kill()
        elif sys.platform != "win32":
            with contextlib.suppress(OSError):  # nobody is left
                os.killpg(self._leader.pid, signal.SIGKILL)


def end_own_group() -> None:
    """End this process and all that it has started, without a word.

    For a child whose parent is gone. Where this process leads no group, and on Windows, where
    its job ends by itself, it ends alone.
    """
    if sys.platform != "win32" and os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(0)


class _Job:
    """A job object (Windows) that ends its processes when its handle is closed.

    Source: https://learn.microsoft.com/windows/win32/procthread/job-objects
    """

    #: JobObjectExtendedLimitInformation, JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE
    _LIMITS, _KILL_ON_CLOSE = 9, 0x2000

    def __init__(self, leader: subprocess.Popen[bytes]) -> None:
        self._leader = leader
        self._handle = 0
        with contextlib.suppress(OSError, AttributeError):
            self._handle = self._made(int(leader._handle))  # type: ignore[attr-defined]

    def kill(self) -> None:
        """End every process of it."""
        if self._handle and self._api().TerminateJobObject(self._handle, 1):
            return
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            subprocess.run(
                ["taskkill", "/F", "/T", "/PID", str(self._leader.pid)],
                capture_output=True,
                timeout=TASKKILL_S,
                check=False,
            )
        with contextlib.suppress(OSError):
            self._leader.kill()

    def __del__(self) -> None:
        if self._handle:
            self._api().CloseHandle(self._handle)
            self._handle = 0

    def _made(self, process: int) -> int:
        """Return the handle of a job that holds the process; 0: there is none."""
        import ctypes

        class Basic(ctypes.Structure):
            _fields_ = [
                ("PerProcessUserTimeLimit", ctypes.c_int64),
                ("PerJobUserTimeLimit", ctypes.c_int64),
                ("LimitFlags", ctypes.c_uint32),
                ("MinimumWorkingSetSize", ctypes.c_size_t),
                ("MaximumWorkingSetSize", ctypes.c_size_t),
                ("ActiveProcessLimit", ctypes.c_uint32),
                ("Affinity", ctypes.c_size_t),
                ("PriorityClass", ctypes.c_uint32),
                ("SchedulingClass", ctypes.c_uint32),
            ]

        class Extended(ctypes.Structure):
            _fields_ = [
                ("BasicLimitInformation", Basic),
                ("IoInfo", ctypes.c_uint64 * 6),
                ("ProcessMemoryLimit", ctypes.c_size_t),
                ("JobMemoryLimit", ctypes.c_size_t),
                ("PeakProcessMemoryUsed", ctypes.c_size_t),
                ("PeakJobMemoryUsed", ctypes.c_size_t),
            ]

        limits = Extended()
        limits.BasicLimitInformation.LimitFlags = self._KILL_ON_CLOSE
        api = self._api()
        job = api.CreateJobObjectW(None, None)
        if not job:
            return 0
        size = ctypes.sizeof(limits)
        is_set = api.SetInformationJobObject(job, self._LIMITS, ctypes.byref(limits), size)
        if not is_set or not api.AssignProcessToJobObject(job, process):
            api.CloseHandle(job)
            return 0
        return int(job)

    def _api(self) -> Any:
        """Return kernel32, which knows that handles are as wide as pointers."""
        import ctypes

        api = ctypes.WinDLL("kernel32", use_last_error=True)  # type: ignore[attr-defined]
        handle, number, flag = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int
        api.CreateJobObjectW.argtypes = [handle, ctypes.c_wchar_p]
        api.CreateJobObjectW.restype = handle
        api.SetInformationJobObject.argtypes = [handle, flag, handle, number]
        api.SetInformationJobObject.restype = flag
        api.AssignProcessToJobObject.argtypes = [handle, handle]
        api.AssignProcessToJobObject.restype = flag
        api.TerminateJobObject.argtypes = [handle, number]
        api.TerminateJobObject.restype = flag
        api.CloseHandle.argtypes = [handle]
        api.CloseHandle.restype = flag
        return api
