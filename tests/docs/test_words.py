"""What the words refer to is there: links, headings, commands and their options."""

import re
import shlex
from itertools import takewhile
from pathlib import Path

import pytest

from halp_probe.judging.endpoint import KEY_VARIABLE

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "benchmarks").glob("*.md")),
]
_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[(?:[^\[\]]|!?\[[^\]]*\]\([^)]*\))*\]\(([^)\s]+)\)")
_TAG = re.compile(r"<(?:img|source|a)\b[^>]*?(?:src|srcset|href)=\"([^\"]+)\"")


def _named(page):
    return str(page.relative_to(ROOT))


def _anchors(page):
    """As GitHub makes them of headings."""
    text = _FENCE.sub("", page.read_text())
    found = []
    for heading in re.findall(r"^#{1,6} +(.+?) *#*$", text, re.MULTILINE):
        plain = re.sub(r"[*`]|\]\([^)]*\)|\[", "", heading)
        anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        count = found.count(anchor)
        found.append(f"{anchor}-{count}" if count else anchor)
    return {*found, *re.findall(r'<a (?:name|id)="([^"]+)"', text)}


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_relative_link_leads_somewhere(page):
    """To a file of the repository, and to a heading that is there."""
    text = _FENCE.sub("", page.read_text())
    broken = []
    for link in (*_LINK.findall(text), *_TAG.findall(text)):
        if re.match(r"[a-z][a-z+]*:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            broken.append(f"{link}: there is no such file")
        elif anchor and target.suffix == ".md" and anchor not in _anchors(target):
            broken.append(f"{link}: there is no such heading")
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_command_line_is_one_that_the_programs_take(page, reference):
    """The command is there, its options are, and a choice is one of its choices."""
    known = {one.name: one for program in reference.PROGRAMS for one in reference.commands(program)}
    wrong = [
        f"{line}: {problem}"
        for line in _command_lines(page.read_text())
        if (problem := _problem(shlex.split(line, comments=True), known))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "line",
    [
        "halp-worker runn",
        "halp-worker run --stor x",
        "halp-store export a b --format csv",
        "halp-producer failed lost",
    ],
)
def test_a_command_line_that_no_program_takes_is_found(line, reference):
    """The test above would see it."""
    assert _problem(line.split(), _known(reference))


@pytest.mark.parametrize("page", PAGES, ids=_named)
def test_every_variable_is_one_that_something_reads(page, reference):
    """Each HALP_ name is an option's variable, one of the compose file, or a judge's key."""
    known = {option.environment for one in _known(reference).values() for option in one.options} | {
        *re.findall(r"HALP_\w+", (ROOT / "docker-compose.yml").read_text()),
        KEY_VARIABLE,
    }
    assert {*re.findall(r"\bHALP_[A-Z]\w*", page.read_text())} <= known


def _known(reference):
    """Every command by its name."""
    found = (one for program in reference.PROGRAMS for one in reference.commands(program))
    return {one.name: one for one in found}


def _command_lines(text):
    """Of blocks of code, and of code in a sentence."""
    for language, block in _FENCE.findall(text):
        if language.strip() in {"", "sh", "console", "dockerfile"}:
            yield from _of_block(block)
    text = _FENCE.sub("", text)
    yield from _of_block("\n".join(re.findall(r"^    (.*)$", text, re.MULTILINE)))
    for code in re.findall(r"`([^`]+)`", text):
        if re.match(r"halp-(producer|worker|store) ", code):
            yield code.replace("\n", " ")


def _of_block(block):
    drawn = re.compile("[─▶│]")
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        compose = re.sub(r".* --entrypoint (halp-\w+) worker(-cpu)? ", r"\1 ", line)
        compose = re.sub(r"docker compose run --rm (producer|worker) ", r"halp-\1 ", compose)
        found = re.search(r"(?:^|[\s/])(halp-(?:producer|worker|store) .*)", compose)
        if found and not drawn.search(line):
            yield found[1]


def _problem(words, known):
    """What is wrong with a command line, or None."""
    words = list(takewhile(lambda one: one not in {"|", ";", "&&", ">"}, words))
    name = next((one for end in (3, 2) if (one := " ".join(words[:end])) in known), None)
    if name is None:
        is_form = any(re.search(r"[|.*]", one) or one.isupper() for one in words[1:3])
        is_of_the_program = words[1].startswith("-") or words[1:] == ["failed"]
        return None if is_form or is_of_the_program else f"no command {' '.join(words[:3])}"
    options = {name: one for one in known[name].options for name in one.names}
    for word, following in zip(words, [*words[1:], ""], strict=True):
        option, equals, value = word.partition("=")
        if not option.startswith("--") or option in {"--help", "--"}:
            continue
        if option not in options:
            return f"{name} has no {option}"
        values = {*(value if equals else following).split("|")}
        choices = {*options[option].choices}
        if choices and not values <= choices and not all(map(str.isupper, values)):
            return f"{option} takes {', '.join(sorted(choices))}, not {', '.join(values)}"
    return None
