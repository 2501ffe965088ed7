"""Pages of the documentation whose tables are written by a program."""

from __future__ import annotations

from collections.abc import Mapping


def with_tables(page: str, tables: Mapping[str, str]) -> str:
    """Return the page with the present tables in the places that are marked."""
    for title, table in tables.items():
        start, end = f"<!-- table: {title} -->\n", "<!-- end -->"
        before, found, rest = page.partition(start)
        assert found, title
        page = f"{before}{start}{table}\n{end}{rest.partition(end)[2]}"
    return page
