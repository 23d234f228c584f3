"""Processor time of other processes, user and system, of all their threads, in nanoseconds' resolution."""

import time

from bench.servers.processes import group_members

#: Linux makes the id of a process's clock of its pid; see clock_getcpuclockid(3).
_SCHED_CLOCK = 2


def processor_s(pid: int) -> float:
    """Return the seconds that a process has computed so far.

    Raises:
        OSError: there is no such process.
    """
    return time.clock_gettime((~pid << 3) | _SCHED_CLOCK)


def group_processor_s(group_id: int) -> tuple[float, float]:
    """Return the seconds of a group's first process, and those of all its others.

    Raises:
        OSError: one of them ended meanwhile.
    """
    others = [pid for pid in group_members(group_id) if pid != group_id]
    return processor_s(group_id), sum(map(processor_s, others))
