"""Writes this folder's pages, one a program, from the command lines themselves: `make reference`.

Reads the annotated functions that typer makes its commands of, rather than its parsed commands:
these differ between typer's versions, and so would the pages.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final, Literal, Union, get_args, get_origin, get_type_hints

import typer
from typer.models import ArgumentInfo, OptionInfo

from halp_probe.cli import app as probe
from halp_producer.cli import app as producer
from halp_store.cli import app as store
from halp_worker.cli import app as worker

HERE: Final = Path(__file__).parent

PROGRAMS: Final = {
    "halp-producer": producer,
    "halp-worker": worker,
    "halp-store": store,
    "halp-probe": probe,
}

_COMMON_EXITS: Final = {
    "0": "all is well",
    "1": "something is wrong: with the data, the server, the store; the message says what to do",
    "2": "the command line is wrong",
}
EXIT_CODES: Final = {
    "halp-producer": {
        **_COMMON_EXITS,
        "130": "interrupted; the same command goes on where it was",
    },
    "halp-worker": {
        **_COMMON_EXITS,
        "3": "`run`: the device is broken, so that starting again on it is of no use",
        "4": "`run --until-empty`: the run ended, and every job of it failed",
        "128 + signal": "`run`: stopped at once by a second signal; nothing is lost",
    },
    "halp-store": _COMMON_EXITS,
    "halp-probe": _COMMON_EXITS,
}
"""A command that exits otherwise, or has more to say of it, does so in its text."""

_TYPES: Final = {str: "text", int: "integer", float: "number", Path: "path"}


@dataclass(frozen=True)
class Parameter:
    """One option or argument.

    names: `--option`s, or an argument's one name. choices: empty where any value of `kind` goes.
    kind: None for a flag. default: as it is typed, None where there is none (or none to show).
    """

    names: tuple[str, ...]
    kind: str | None
    choices: tuple[str, ...]
    is_argument: bool
    is_required: bool
    is_repeated: bool
    default: str | None
    environment: str | None
    help: str


@dataclass(frozen=True)
class Command:
    """name: as it is typed, `halp-producer failed list`."""

    name: str
    text: str
    examples: tuple[str, ...]
    parameters: tuple[Parameter, ...]

    @property
    def options(self) -> tuple[Parameter, ...]:
        return tuple(one for one in self.parameters if not one.is_argument)

    @property
    def arguments(self) -> tuple[Parameter, ...]:
        return tuple(one for one in self.parameters if one.is_argument)


def commands(program: str) -> tuple[Command, ...]:
    """Of a program, in the order of its `--help`; those of a group after the others."""
    return tuple(_commands(program, PROGRAMS[program]))


def pages() -> dict[str, str]:
    """File name -> text, all that this folder should hold."""
    return {
        "README.md": _index(),
        **{f"{program}.md": _page(program) for program in PROGRAMS},
    }


def _commands(name: str, app: typer.Typer) -> Iterator[Command]:
    for one in app.registered_commands:
        if one.callback is not None and not one.hidden:
            shown = one.name or one.callback.__name__.replace("_", "-")
            yield _command(f"{name} {shown}", one.callback, one.epilog or "")
    for group in app.registered_groups:
        if group.typer_instance is not None:
            yield from _commands(f"{name} {group.name}", group.typer_instance)


def _command(name: str, callback: Callable[..., Any], epilog: str) -> Command:
    signature = inspect.signature(callback)
    parameters = []
    for variable, hint in get_type_hints(callback, include_extras=True).items():
        infos = [one for one in get_args(hint)[1:] if isinstance(one, OptionInfo | ArgumentInfo)]
        if infos and not infos[0].hidden:
            default = signature.parameters[variable].default
            parameters.append(_parameter(variable, get_args(hint)[0], infos[0], default))
    examples = epilog.replace("\b", "").strip().removeprefix("Examples:")
    return Command(
        name,
        inspect.getdoc(callback) or "",
        tuple(line.strip() for line in examples.strip().splitlines()),
        tuple(parameters),
    )


def _parameter(
    variable: str, hint: Any, info: OptionInfo | ArgumentInfo, default: Any
) -> Parameter:
    is_argument = isinstance(info, ArgumentInfo)
    kind = _without_none(hint)
    is_repeated = get_origin(kind) in {list, tuple}
    kind = get_args(kind)[0] if is_repeated else kind
    choices = _choices(kind)
    dashed = variable.replace("_", "-")
    # Inside Annotated the first declaration stands where an option's default used to.
    first = (info.default,) if isinstance(info.default, str) else ()
    names = (*first, *(info.param_decls or ()))
    if is_argument:
        names = ((info.metavar or dashed).upper().removesuffix("..."),)
    elif not names:
        names = (f"--{dashed}", f"--no-{dashed}") if kind is bool else (f"--{dashed}",)
    is_required = default is inspect.Parameter.empty or default is ...
    environment = info.envvar if isinstance(info.envvar, str) else None
    return Parameter(
        names=names,
        kind=None if kind is bool else _kind(kind, info),
        choices=choices,
        is_argument=is_argument,
        is_required=is_required,
        is_repeated=is_repeated,
        default=None if is_required or kind is bool else _shown(default),
        environment=environment,
        help=info.help or "",
    )


def _without_none(hint: Any) -> Any:
    if get_origin(hint) in {Union, types.UnionType}:
        return next(one for one in get_args(hint) if one is not type(None))
    return hint


def _choices(kind: Any) -> tuple[str, ...]:
    if get_origin(kind) is Literal:
        return tuple(map(str, get_args(kind)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return tuple(str(one.value) for one in kind)
    return ()


def _kind(kind: Any, info: OptionInfo | ArgumentInfo) -> str:
    if choices := _choices(kind):
        return "|".join(f"`{one}`" for one in choices)
    bounds = [
        f"{word} {_number(bound)}"
        for word, bound in (("from", info.min), ("to", info.max))
        if bound is not None
    ]
    shown = _TYPES[kind]
    if isinstance(info, OptionInfo) and info.metavar and info.metavar != "PATH":
        shown = f"`{info.metavar}`"
    return " ".join([shown, *bounds])


def _shown(default: Any) -> str | None:
    if default is None or default == "":
        return None
    if isinstance(default, float):
        return _number(default)
    return str(default.value if isinstance(default, Enum) else default)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)


def _page(program: str) -> str:
    found = commands(program)
    lines = [
        f"# `{program}`",
        "",
        _GENERATED,
        "",
        str(PROGRAMS[program].info.help),
        "",
        "| command | |",
        "|---|---|",
        *(f"| [`{one.name}`](#{_anchor(one.name)}) | {_summary(one)} |" for one in found),
        "",
        "Where an option names a variable, the option wins over it. `--help` after any command "
        "prints what is here.",
        "",
        "| exit code | |",
        "|---|---|",
        *(f"| {code} | {meaning} |" for code, meaning in EXIT_CODES[program].items()),
    ]
    for one in found:
        lines += ["", *_section(one)]
    return "\n".join(lines) + "\n"


def _section(command: Command) -> Iterator[str]:
    usage = [command.name, *(["[OPTIONS]"] if command.options else [])]
    for one in command.arguments:
        shown = f"{one.names[0]}..." if one.is_repeated else one.names[0]
        usage.append(shown if one.is_required else f"[{shown}]")
    yield from (f"## `{command.name}`", "", "```", " ".join(usage), "```", "")
    yield _escaped(command.text)
    # A list, since tables break options at their hyphens.
    for title, some in (("Arguments", command.arguments), ("Options", command.options)):
        if some:
            yield from ("", f"{title}:", "")
            for one in some:
                yield f"- {_signature(one)}\\"
                yield f"  {_escaped(' '.join(one.help.split()))}"
    if command.examples:
        yield from ("", "```", *command.examples, "```")


def _signature(parameter: Parameter) -> str:
    """`--name` and all that is known of its value."""
    parts = [", ".join(f"**`{name}`**" for name in parameter.names)]
    if parameter.kind is not None:
        parts[0] += f" {parameter.kind}"
    if parameter.is_repeated:
        parts.append("several" if parameter.is_argument else "may be repeated")
    if parameter.is_required and not parameter.is_argument:
        parts.append("required")
    if parameter.default is not None:
        parts.append(f"default `{parameter.default}`")
    if parameter.environment is not None:
        parts.append(f"variable `{parameter.environment}`")
    return " · ".join(parts)


def _index() -> str:
    lines = [
        "# Reference",
        "",
        _GENERATED,
        "",
        "Every command with its arguments, options, variables and exit codes.",
        "",
        "| command | |",
        "|---|---|",
    ]
    for program in PROGRAMS:
        for one in commands(program):
            lines.append(f"| [`{one.name}`]({program}.md#{_anchor(one.name)}) | {_summary(one)} |")
    return "\n".join(lines) + "\n"


_GENERATED: Final = "<!-- Made by `make reference` from the commands. Do not edit. -->"


def _summary(command: Command) -> str:
    return _cell(command.text.partition("\n\n")[0])


def _anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _cell(text: str) -> str:
    return _escaped(" ".join(text.split())).replace("|", "\\|")


def _escaped(text: str) -> str:
    """Text of a terminal as Markdown: what would be markup there is code or plain here."""
    return re.sub(r"(?<![`\w-])(--[a-z][a-z-]*)(?![`\w-])", r"`\1`", text).replace("<", "&lt;")


def main() -> None:
    """Writes all pages."""
    for name, text in pages().items():
        (HERE / name).write_text(text)


if __name__ == "__main__":
    main()
