"""What docs/other-libraries.md shows is what the programs here do."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "other-libraries.md"


def test_the_page_shows_lines_of_the_programs() -> None:
    shown = re.findall(r"^ {4}(.+)$", PAGE.read_text(), re.MULTILINE)
    written = {
        line.strip()
        for file in HERE.glob("test_*.py")
        for line in file.read_text().splitlines()
    }
    assert len(shown) > 15
    assert [line for line in shown if line.strip() not in written] == []
