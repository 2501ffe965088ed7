"""How a program of the benchmarks answers: JSON lines, in and out."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def serve(**functions: Callable[..., Any]) -> None:
    """Call functions as requested, one a line, until the input ends.

    What they return goes back, as far as JSON can hold it. What they print goes to
    standard error.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    for line in sys.stdin:
        request = json.loads(line)
        try:
            result = functions[request["function"]](**request["arguments"])
            answer = {"result": result}
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            answer = {"error": traceback.format_exc(), "reason": reason}
        answers.write(f"{json.dumps(answer)}\n")
        answers.flush()
