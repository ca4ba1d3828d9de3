"""Tables in Markdown pages: the text is written by hand, a script fills the tables from JSON.

<!-- table: NAME -->

| ... |

<!-- end -->
"""

import re
from collections.abc import Iterable, Mapping

MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Format a table whose first column is text and whose other columns are numbers."""
    titles = list(header)
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def fill(page: str, tables: Mapping[str, str]) -> str:
    """Replace the text between each pair of markers by the table of that name.

    Raises:
        ValueError: if a marker has no table, a table has no marker, or a name is used twice.
    """
    names = [match[2] for match in MARKED.finditer(page)]
    if sorted(names) != sorted(tables):
        raise ValueError(f"the page has markers for {sorted(names)}, the tables are {[*tables]}")
    return MARKED.sub(lambda match: f"{match[1]}\n{tables[match[2]]}\n\n{match[3]}", page)
