"""The real clock."""

from __future__ import annotations

import time

from gpusched.model.clock import Instant


class SystemClock:
    """Wall time, and the boot clock that goes on during suspend and never jumps."""

    def now(self) -> Instant:
        return Instant(time.time(), time.clock_gettime(time.CLOCK_BOOTTIME))
