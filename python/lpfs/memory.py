"""How much memory a piece of work takes."""

from __future__ import annotations

import sys
from pathlib import Path

if sys.platform != "win32":
    import resource

STATUS = Path("/proc/self/status")
RESET = Path("/proc/self/clear_refs")


def resident(name: str) -> int:
    """A line of the process's status on Linux, in bytes: `VmRSS` is what is resident, `RssAnon` its
    part that is no file's, `VmHWM` the peak."""
    (line,) = [x for x in STATUS.read_text().splitlines() if x.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


def free() -> int | None:
    """Bytes that this process can still get: what its limits (RLIMIT_AS, of its control group) and
    the machine leave, the least of them; None where the system does not say."""
    if sys.platform != "linux":
        return None
    left = []
    limit = addresses()
    if limit is not None:
        left.append(limit - resident("VmSize"))
    group = Path("/sys/fs/cgroup")
    try:
        most = (group / "memory.max").read_text().strip()
        if most != "max":
            left.append(int(most) - int((group / "memory.current").read_text()))
    except OSError:
        pass  # no control groups, or those of version 1
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            left.append(int(line.split()[1]) * 1024)
    return max(0, min(left)) if left else None


def addresses() -> int | None:
    """Bytes of addresses, used and free, that RLIMIT_AS allows; None without a limit."""
    if sys.platform != "linux":
        return None
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def require_addresses(bytes_: int, what: str) -> None:
    """Raise MemoryError, which names what needs how much, where RLIMIT_AS leaves less.

    Libraries whose threads cannot be started, or get no memory, end the process without a word or
    wait for ever: they must not come so far.
    """
    limit = addresses()
    if limit is None:
        return
    left = max(0, limit - resident("VmSize"))
    if left < bytes_:
        raise MemoryError(
            f"{what} needs {bytes_ >> 20:,} MiB of addresses, {left >> 20:,} of {limit >> 20:,} "
            "MiB are left (ulimit -v)"
        )


def stacks(threads: int) -> int:
    """Bytes of addresses that so many new threads reserve."""
    if sys.platform == "win32":
        return 0
    size = resource.getrlimit(resource.RLIMIT_STACK)[0]
    return threads * (2 << 20 if size == resource.RLIM_INFINITY else size)


class Peak:
    """The process's largest resident memory within the block, in `bytes`; None where the system
    does not say it for a stretch of time."""

    bytes: int | None = None

    def __enter__(self) -> Peak:
        self._known = sys.platform == "linux"
        try:
            # Linux: 5 sets the high-water mark to what is resident now.
            RESET.write_text("5")
        except OSError:
            self._known = False
        return self

    def __exit__(self, *error: object) -> None:
        if self._known:
            self.bytes = resident("VmHWM")
