"""Print the lowest versions that ``pyproject.toml`` allows, as constraints for pip."""

from __future__ import annotations

import re
import tomllib
from itertools import chain
from pathlib import Path

PATH = Path(__file__).parent.parent / "pyproject.toml"

project = tomllib.loads(PATH.read_text())["project"]
extras = project["optional-dependencies"].values()
for requirement in chain(project["dependencies"], *extras):
    # as in "psycopg[binary]>=3.2"; what has no bound here has one elsewhere
    if match := re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\w.]+)", requirement):
        print(f"{match[1]}=={match[2]}")
