"""How much memory a build took: the most that this process held at once while it ran."""

from __future__ import annotations

import re
from pathlib import Path

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # man 5 proc_pid_clear_refs


class PeakMemory:
    """The peak of this process's resident memory since this object was made.

    The kernel's own peak is set back for it, so that whatever the process did before is not counted, but everything
    that it still holds is. What was swapped out is not resident.
    """

    def __init__(self, process: Path = _PROCESS) -> None:
        self._process = process
        try:
            (process / "clear_refs").write_text(_RESET_PEAK)
            self._before = 0
        except OSError:
            self._before = self._peak() or 0

    def bytes(self) -> int | None:
        """None where the system does not tell, or where a higher peak from before hides this one."""
        peak = self._peak()
        return peak if peak is not None and peak > self._before else None

    def _peak(self) -> int | None:
        try:
            found = re.search(r"^VmHWM:\s+(\d+) kB", (self._process / "status").read_text(), re.MULTILINE)
        except OSError:
            return None
        return int(found[1]) * 1024 if found else None
