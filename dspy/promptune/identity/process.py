"""Which process this is, and whether another one lives."""

from __future__ import annotations

import functools
import os
from pathlib import Path

__all__ = ["alive", "container", "process_start"]


@functools.cache
def container() -> str | None:
    """Of which start of the machine and which container this process's number is, where the system says so."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + " " + os.readlink("/proc/self/ns/pid")
    except OSError:
        return None


def alive(pid: int) -> bool:
    """Whether there is such a process, on any system; one that is only waited for is none."""
    import psutil

    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, ValueError, OverflowError):
        return True


def process_start(pid: int) -> float | None:
    """When a process began, for numbers of processes recur: in clock ticks since the start of the machine, or where
    the system does not say that in seconds since 1970."""
    import psutil

    fields = _stat(pid)
    if fields is not None:
        return int(fields[19])
    try:
        return float(round(psutil.Process(pid).create_time(), 2))
    except (psutil.Error, ValueError, OverflowError):
        return None


def _stat(pid: int) -> list[str] | None:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
