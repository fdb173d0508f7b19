"""The page with its data as one HTML file, which needs no server and has no address of anything else.

Scripts and styles stand in the file and are allowed by their digests alone, so that nothing in the data can become one;
the data are JSON in which no `<` stands. Of a large run the file holds a sample of the groups, and the page says which.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rl.runs.folder import write_atomically
from view.index import GroupIndex, Query
from view.library import Library
from view.server import LIBRARY_SCRIPT, SCRIPTS, STATIC, STYLES, encoded

WORST_SHARE = 0.2
"""Of the sample, those whose majority is most surely wrong; the rest is spread evenly over the steps."""


def export(library: Library, out: Path, num_groups: int) -> None:
    """Write the page; num_groups: of each run or evaluation at most. Raises OSError with the remedy."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, page(everything(library, num_groups)))


def everything(library: Library, num_groups: int) -> dict[str, Any]:
    """What the server would answer, by question and source; of the groups a sample."""
    data: dict[str, Any] = {
        name: {} for name in ("curves", "histograms", "configuration", "results", "groups")}
    for source in library.sources():
        name = source.name
        index = library.index_all(name)
        ids = sample(index, num_groups)
        rows = {row["id"]: row for row in index.rows(Query(), 0, -1)} if ids else {}
        data["groups"][name] = {
            "total": len(rows), "rows": [rows[one] for one in ids],
            "full": {one: library.group(name, one) | {"previous": before, "next": behind}
                     for before, one, behind in zip([None, *ids], ids, [*ids[1:], None], strict=False)}}
        data["curves"][name] = library.curves(name)
        data["histograms"][name] = library.histograms(name)
        data["configuration"][name] = library.configuration(name)
        data["results"][name] = library.results(name)
    return data | {"overview": library.overview(), "glossary": library.glossary(), "sample": num_groups}


def sample(index: GroupIndex, limit: int) -> list[int]:
    """Ids of at most `limit` groups in the order of the files."""
    ids = index.ids(Query())
    if len(ids) <= limit:
        return ids
    worst = index.ids(Query(right="majority_wrong", sort="majority", descending=True))[:int(WORST_SHARE * limit)]
    spread = limit - len(worst)
    return sorted({*worst, *(ids[number * len(ids) // spread] for number in range(spread))})


def page(data: Any) -> str:
    """static/index.html with all that it needs in it."""
    styles = "\n".join((STATIC / name).read_text(encoding="utf-8") for name in STYLES)
    licence = (STATIC / "uPlot.LICENSE").read_text(encoding="utf-8")
    library_script = re.sub(  # its own first line is an address
        r"\A/\*!.*?\*/", lambda match: f"/*! uPlot\n{licence}*/", (STATIC / LIBRARY_SCRIPT).read_text(encoding="utf-8"))
    module = joined_modules([(STATIC / name).read_text(encoding="utf-8") for name in SCRIPTS])
    policy = (f"default-src 'none'; script-src {_digest(library_script)} {_digest(module)}; "
              f"style-src {_digest(styles)}; img-src data:; base-uri 'none'; form-action 'none'")
    head = (f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n<style>{styles}</style>\n')
    text = encoded(data).decode("ascii").replace("<", "\\u003c")
    body = (f'<script type="application/json" id="data">{text}</script>\n<script>{library_script}</script>\n'
            f'<script type="module">{module}</script>\n')
    html = (STATIC / "index.html").read_text(encoding="utf-8")
    html = re.sub(r"<link rel=\"stylesheet\".*?>\n|<script.*?</script>\n", "", html)
    return html.replace("</head>", head + "</head>").replace("</body>", body + "</body>")


def joined_modules(modules: Sequence[str]) -> str:
    """The page's modules as one: each imports from those before it, and their names are all different."""
    return re.sub(
        r"^import [^;]*;\n|^export (?=const|let|function|async|class)", "", "\n".join(modules), flags=re.MULTILINE)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
