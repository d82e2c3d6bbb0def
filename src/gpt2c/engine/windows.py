"""What Windows says about memory. On other systems the functions return nothing."""

from __future__ import annotations

import ctypes
import sys
from ctypes import byref, c_longlong, c_size_t, c_uint32, c_ulonglong, c_void_p, sizeof
from typing import Final

_JOB_EXTENDED_LIMITS: Final = 9
_LIMITS_PROCESS_MEMORY: Final = 0x100
_LIMITS_JOB_MEMORY: Final = 0x200


class MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX."""

    _fields_ = (
        ("size", c_uint32),
        ("percent_used", c_uint32),
        ("physical", c_ulonglong),
        ("others", c_ulonglong * 6),
    )


class ProcessMemory(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS."""

    _fields_ = (
        ("size", c_uint32),
        ("n_page_faults", c_uint32),
        ("peak_resident", c_size_t),
        ("others", c_size_t * 7),
    )


class JobLimits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION."""

    _fields_ = (
        ("times", c_longlong * 2),
        ("flags", c_uint32),
        ("working_set", c_size_t * 2),
        ("n_processes", c_uint32),
        ("affinity", c_size_t),
        ("priorities", c_uint32 * 2),
        ("io", c_ulonglong * 6),
        ("process_memory", c_size_t),
        ("job_memory", c_size_t),
        ("peaks", c_size_t * 2),
    )


def memory_limits() -> list[int]:
    """Return the machine's memory and the limits of this process's job object, in bytes.

    Containers limit their processes by job objects. What Windows does not say is left out.
    """
    if sys.platform != "win32":
        return []
    kernel = ctypes.WinDLL("kernel32")
    status, job = MemoryStatus(size=sizeof(MemoryStatus)), JobLimits()
    found = [status.physical] if kernel.GlobalMemoryStatusEx(byref(status)) else []
    query = kernel.QueryInformationJobObject
    if query(None, _JOB_EXTENDED_LIMITS, byref(job), sizeof(job), None):
        if job.flags & _LIMITS_PROCESS_MEMORY:
            found.append(job.process_memory)
        if job.flags & _LIMITS_JOB_MEMORY:
            found.append(job.job_memory)
    return [int(n_bytes) for n_bytes in found]


def peak_resident_bytes() -> int | None:
    """Return this process's peak resident memory, in bytes; None if Windows does not say."""
    if sys.platform != "win32":
        return None
    kernel = ctypes.WinDLL("kernel32")
    this_process = kernel.GetCurrentProcess
    this_process.restype = c_void_p
    counters, query = ProcessMemory(size=sizeof(ProcessMemory)), kernel.K32GetProcessMemoryInfo
    query.argtypes = c_void_p, c_void_p, c_uint32
    is_known = query(this_process(), byref(counters), sizeof(counters))
    return int(counters.peak_resident) if is_known else None
