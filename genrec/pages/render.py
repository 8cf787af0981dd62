"""Pages that a run leaves behind: one HTML file each, with its style, its scripts and its data inside.

Every page extends ``base.html.j2``. Text is escaped by Jinja; data for a script is JSON that cannot end its element; a
content security policy names the page's own scripts by their digests, so that no other script runs and nothing is
loaded, whatever text a page shows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from genrec.data.files import write_text
from genrec.errors import printable

OWN = "genrec.pages"
SCRIPTS = ("page", "charts")
"""Scripts of every page: tables that sort, hints; then the charts."""

_AS_ESCAPE = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"})


def write_page(
    path: Path, package: str, template: str, context: Mapping[str, Any], *, scripts: Sequence[str] = ()
) -> Path:
    """Write the page of ``template`` to ``path``, atomically, and return the path.

    Args:
        package: dotted name of the package that the template, and the further ``scripts``, lie in.
        context: what the template shows. ``title`` is the page's title.
        scripts: names of files ``<name>.js.j2`` of ``package``, run after those of every page, in this order.
    """
    environment = page_environment(package)
    code = [script_text(environment, name) for name in (*SCRIPTS, *scripts)]
    policy = " ".join(f"'sha256-{script_digest(text)}'" for text in code)
    page = environment.get_template(template).render(context, scripts=[Markup(text) for text in code], policy=policy)
    write_text(page, path)
    return path


def page_environment(package: str) -> Environment:
    """Jinja for the templates of ``package`` and the base that all pages share; an undefined name is an error."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package, "."), PackageLoader(OWN, ".")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["as_data"] = as_data
    environment.filters["figure"] = shown_figure
    environment.filters["md"] = as_markdown
    environment.filters["indented"] = as_code
    return environment


def script_text(environment: Environment, name: str) -> str:
    """The text of a script of the page."""
    return environment.get_template(f"{name}.js.j2").render()


def script_digest(text: str) -> str:
    """What a content security policy knows a script by: base64 of its SHA-256."""
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def as_data(value: object) -> Markup:
    """``value`` as JSON for an element ``<script type="application/json">``; what is not finite becomes null."""
    text = json.dumps(finite(value), ensure_ascii=False, separators=(",", ":"))
    return Markup(text.translate(_AS_ESCAPE))


def finite(value: Any) -> Any:
    """``value`` with None in place of every number that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_markdown(text: str) -> str:
    """A shop's text within a line of Markdown: nothing in it is read as markup, a link or a cell's end."""
    return re.sub(r"([\\`*_{}\[\]()#+|<>!~&$])", r"\\\1", " ".join(printable(text).split()))


def as_code(text: str) -> str:
    """Text as a block of Markdown code, which no line of it can end."""
    return "\n".join(f"    {printable(line)}" for line in text.splitlines())


def shown_figure(value: object, digits: int = 4) -> str:
    """A number as people read it in a table: ``digits`` significant ones where it is small; a dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) >= 100):
        return f"{int(value):,}"
    is_small = 0 < abs(value) < 0.001
    return f"{value:.{digits}g}" if is_small or abs(value) >= 100 else f"{value:.{digits}f}"
