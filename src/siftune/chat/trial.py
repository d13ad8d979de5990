"""A chat template on trial: a process of its own, with little time and memory.

A template is a program that came with somebody's model. The sandbox keeps it from files and
commands, but not from running for ever. Run by path; reads and prints JSON, imports jinja2 only.
"""

import json
import resource
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 3
MEMORY_BYTES = 512 * 2**20


class Generation(jinja2.ext.Extension):
    """transformers' tag around what is generated: here, just its inside."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        """The statements between {% generation %} and {% endgeneration %}."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def environment() -> ImmutableSandboxedEnvironment:
    """The one of transformers' `apply_chat_template`, in what can fail or take long."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    sandbox.filters["tojson"] = tojson
    sandbox.globals["raise_exception"] = raise_exception
    sandbox.globals["strftime_now"] = lambda format: format
    return sandbox


def errors(asked: dict[str, Any]) -> list[str | None]:
    """Render `conversations` with `template`: what went wrong with each, or None."""
    found: list[str | None] = []
    for conversation in asked["conversations"]:
        try:
            # Compiled each time: constant expressions run already then.
            environment().from_string(asked["template"]).render(**conversation)
            found.append(None)
        except MemoryError:
            raise  # one limit for all of it: the exit code tells
        except Exception as error:  # whatever a hostile program raises
            found.append(f"{type(error).__name__}: {error}"[:300])
    return found


def main() -> None:
    """Print the `errors` of what stands on stdin."""
    for what, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))
    json.dump(errors(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
