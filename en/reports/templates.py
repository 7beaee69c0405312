"""The templates of pages."""

from jinja2 import Environment, PackageLoader, StrictUndefined

from en.errors import in_one_line


def template_environment() -> Environment:
    """Makes the environment of this room's templates: all is escaped, and what a template names has to be there."""
    environment = Environment(
        loader=PackageLoader("en", "reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["line"] = in_one_line
    return environment
