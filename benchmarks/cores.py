"""Which cores measure, and which serve.

Left to the system, a client and its server share a core and part again as it happens,
and a transaction takes a quarter more or less for that.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# other systems than Linux do not let one choose
_ALL = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

#: One core for what is measured, the others for its server; empty if there is one.
CLIENT, SERVER = (_ALL[:1], _ALL[1:]) if len(_ALL) > 1 else ([], [])


@contextmanager
def on(cores: Sequence[int]) -> Iterator[None]:
    """Run this thread, and processes that it starts meanwhile, on these cores only."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
