"""Write the tables of ``docs/security.md``: ``python -m attacks``, in ``tests``."""

from attacks import blocked, leaks, pooled, security
from pages import with_tables

TABLES = {
    **{title: security.leak_table(each) for title, each in leaks.SECTIONS.items()},
    **{title: security.blocked_table(each) for title, each in blocked.SECTIONS.items()},
    "Left on a pooled connection": security.leftover_table(pooled.AFFECTED),
    "What a pooled connection may keep": security.leftover_table(pooled.HARMLESS),
}

if __name__ == "__main__":
    page = security.PATH.read_text()
    security.PATH.write_text(with_tables(page, TABLES))
