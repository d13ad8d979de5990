"""The templates, rendered with numbers worded as everywhere; what goes into HTML is escaped."""

from typing import Any

import jinja2

from siftune import wording

FILTERS = {
    "count": wording.count,
    "duration": wording.duration,
    "percent": wording.percent,
    "size": wording.size,
    "small": wording.small,
}


def render(template: str, **facts: Any) -> str:
    """Fill in a file of templates/; a fact that it needs and does not get is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("siftune"),
        autoescape=jinja2.select_autoescape(enabled_extensions=("html.j2",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= FILTERS
    return environment.get_template(template).render(facts)
