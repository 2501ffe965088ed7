"""The tables of ``docs/security.md``, from the lists of attacks, and its code."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from attacks import ATTACKERS, NO_EFFECT, OWN, Attacker, Blocked, Leak, Leftover

PATH = Path(__file__).parents[2] / "docs" / "security.md"


def blocks(language: str) -> list[str]:
    """The code blocks of the page."""
    page = PATH.read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def blocked_table(attacks: Sequence[Blocked]) -> str:
    rows = [
        (attack.name + _since(attack.since), _who(attack.by), _outcome(attack.gets))
        for attack in attacks
    ]
    return _table(("attack", "by", "gets"), rows)


def leak_table(leaks: Sequence[Leak]) -> str:
    rows = [
        (
            leak.name + _fixed(leak.fixed),
            _who(leak.by),
            leak.remedy,
            f"`{leak.finding}`" if leak.finding else "",
            "stops it" if leak.dml else "",
        )
        for leak in leaks
    ]
    header = ("leak", "by", "remedy", "`check()` reports", "DML only")
    return _table(header, rows)


def leftover_table(leftovers: Sequence[Leftover]) -> str:
    rows = [
        (
            left.name,
            "all"
            if set(left.isolations) == {"role", "shared"}
            else ", ".join(left.isolations),
            left.remedy or "nobody is affected",
        )
        for left in leftovers
    ]
    return _table(("left behind", "by", "remedy"), rows)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _who(by: tuple[Attacker, ...]) -> str:
    return "all" if set(by) == set(ATTACKERS) else ", ".join(by)


def _fixed(releases: Mapping[int, int]) -> str:
    if not releases:
        return ""
    numbers = [f"{major}.{minor}" for major, minor in releases.items()]
    return f" (before {', '.join(numbers)})"


def _since(version: int) -> str:
    return "" if version == 15 else f" (from PostgreSQL {version} on)"


def _outcome(gets: object) -> str:
    if isinstance(gets, tuple):
        return " or ".join(map(_outcome, gets))
    if gets is NO_EFFECT:
        return "no effect on others"
    if gets == OWN:
        return "own rows only"
    if gets == []:
        return "no rows"
    if isinstance(gets, list):
        return "what concerns own rows only"
    return f"error {gets}"
