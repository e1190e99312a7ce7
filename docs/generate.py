"""Write docs/reference, docs/hardware.md, tables of docs/plan.md and docs/distributed.md from what they describe.

python docs/generate.py           write them
python docs/generate.py --check   write nothing; exit 1 and name the stale pages
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "cli_page", "hardware_page", "pages", "plan_page", "recipe_page", "service_page", "synthesis_page"]

FOLDER = Path(__file__).parent / "reference"
PLAN = Path(__file__).parent / "plan.md"
DISTRIBUTED = Path(__file__).parent / "distributed.md"
HEAD = "<!-- Written by docs/generate.py from the code; edit the docstrings there, then run it again. -->\n"
SIGNS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
WORDS = {"integer": "whole number", "number": "number", "boolean": "true, false", "string": "text", "null": "null"}
# Keys of `Recipe` whose section stands below another section.
NESTED = {
    "Source": "data.train[]",
    "ValidationSection": "data.validation",
    "MixSection": "data.mix",
    "FilterSection": "data.filters",
    "ListedFilter": "data.filters.listed",
    "EncodingFilter": "data.filters.encoding",
    "PersonalFilter": "data.filters.pii",
    "LengthFilter": "data.filters.length",
    "EchoFilter": "data.filters.echo",
    "EndingFilter": "data.filters.endings",
    "RefusalFilter": "data.filters.refusals",
    "BoilerplateFilter": "data.filters.boilerplate",
    "RepetitionFilter": "data.filters.repetition",
    "LanguageFilter": "data.filters.language",
    "JudgeFilter": "data.filters.judge",
    "JudgeEndpoint": "data.filters.judge.endpoint",
    "DedupSection": "data.dedup",
    "DecontaminateSection": "data.decontaminate",
    "AgainstSource": "data.decontaminate.against[]",
    "TaskSpec": "evaluate.tasks[]",
    "EvaluationJudge": "evaluate.judge",
    "GrpoSection": "objective.grpo",
    "RewardSpec": "objective.grpo.rewards[]",
    "JudgeSection": "objective.grpo.judge",
    "PushSection": "export.push_to_hub",
}


# The same for `SynthSpec`.
SYNTH_NESTED = {
    "EndpointSection": "endpoint",
    **{name: path.removeprefix("data.") for name, path in NESTED.items() if path.startswith("data.filters")},
    "DedupSection": "dedup",
    "Source": "rejection.source",
    "ScorerSpec": "rejection.scorer",
}

SERVICE_NESTED = {
    "SlurmSettings": "launch.slurm",
    "KubernetesSettings": "launch.kubernetes",
    "Volume": "launch.kubernetes.volumes[]",
    "SkySettings": "launch.skypilot",
    "WebhookSettings": "webhooks[]",
}


def pages() -> dict[Path, str]:
    """Every generated page: where it goes, and its text."""
    return {
        FOLDER / "recipe.md": recipe_page(),
        FOLDER / "synthesis.md": synthesis_page(),
        FOLDER / "api.md": service_page(),
        FOLDER / "cli.md": cli_page(),
        FOLDER.parent / "hardware.md": hardware_page(),
        PLAN: plan_page(PLAN.read_text("utf-8")),
        DISTRIBUTED: distributed_page(DISTRIBUTED.read_text("utf-8")),
    }


# -- the recipe


def recipe_page() -> str:
    """All keys of a recipe as tables, from the JSON Schema that `luthier schema` prints."""
    from luthier.recipe.json_schema import json_schema

    head = [
        "# Recipe keys\n",
        "Every key that a recipe may have. Anything else is an error that names the nearest key.",
        "`key.sub=value` on the command line sets a key, `data.train.0.path=...` one of an entry of a list.",
        "The prose is in [data](../data.md), [training](../training.md), [methods](../methods.md), "
        "[evaluation](../evaluation.md) and [merge](../merge.md).\n",
    ]
    return _keys_page(json_schema(), head, NESTED)


def synthesis_page() -> str:
    """All keys of a spec of `luthier data synth`, from the JSON Schema that `luthier schema synth` prints."""
    from luthier.synthesis.load import spec_schema

    head = [
        "# Keys of a synthesis spec\n",
        "Every key that a spec of `luthier data synth` may have; the prose is in [synthesis](../synthesis.md).",
        "Sections that stand in several places (`endpoint`, also below `judge`; sources of rows, also",
        "`seeds.examples` and `evolve.source`) are shown once.\n",
    ]
    return _keys_page(spec_schema(), head, SYNTH_NESTED)


def service_page() -> str:
    """All keys of `api.yaml`, from the JSON Schema that `luthier schema api` prints."""
    from luthier.api.config import settings_schema

    head = [
        "# Keys of api.yaml\n",
        "Every key that `luthier api --config api.yaml` may find there; the prose is in [api](../api.md),",
        "[the fine-tuning service](../fine-tuning-service.md) and [jobs at work](../jobs.md).\n",
    ]
    return _keys_page(settings_schema(), head, SERVICE_NESTED)


def _keys_page(schema: Mapping[str, Any], head: list[str], nested: Mapping[str, str]) -> str:
    definitions = schema["$defs"]
    lines = [HEAD, *head]
    order = _sections(schema, nested)
    simple = [(name, field) for name, field in schema["properties"].items() if not _section(field)]
    required = schema.get("required", [])
    lines += ["## Top level\n", *_table(dict(simple), required, nested)]
    lines += ["", "The other keys are sections:\n"]
    lines += [f"- [`{path}`](#{_anchor(path)}): {definitions[name]['description']}" for path, name in order]
    for path, name in order:
        definition = definitions[name]
        lines += ["", f"## {path}\n", f"{definition['description']}\n"]
        lines += _table(definition["properties"], definition.get("required", []), nested)
    return "\n".join(lines) + "\n"


def _sections(schema: Mapping[str, Any], nested: Mapping[str, str]) -> list[tuple[str, str]]:
    """(path in a file, name of the definition), each section once, followed by those inside it."""
    found: list[tuple[str, str]] = []
    for key, field in schema["properties"].items():
        name = _section(field)
        if name:
            found.append((key, name))
            found += _inside(schema["$defs"], name, nested)
    first: dict[str, tuple[str, str]] = {}
    for path, name in found:
        first.setdefault(name, (path, name))
    return list(first.values())


def _inside(definitions: Mapping[str, Any], name: str, nested: Mapping[str, str]) -> list[tuple[str, str]]:
    """Sections below a section, at any depth."""
    found: list[tuple[str, str]] = []
    for field in definitions[name]["properties"].values():
        below = _section(field)
        if below:
            found += [(nested[below], below), *_inside(definitions, below, nested)]
    return found


def _section(field: Mapping[str, Any]) -> str:
    """Name of the section a field holds (itself, or as items of a list); empty for a value."""
    for option in (field, field.get("items", {}), *field.get("anyOf", [])):
        if "$ref" in option:
            return str(option["$ref"]).rpartition("/")[2]
    return ""


def _table(fields: Mapping[str, Any], required: list[str], nested: Mapping[str, str]) -> list[str]:
    rows = ["| key | allowed | default | meaning |", "|---|---|---|---|"]
    for key, field in fields.items():
        default = "required" if key in required else _default(field)
        rows.append(f"| `{key}` | {_allowed(field, nested)} | {default} | {_cell(field['description'])} |")
    return rows


def _allowed(field: Mapping[str, Any], nested: Mapping[str, str]) -> str:
    if "anyOf" in field:
        return " or ".join(_allowed(option, nested) for option in field["anyOf"] if option.get("type") != "null") + (
            " or `null`" if any(option.get("type") == "null" for option in field["anyOf"]) else ""
        )
    if "$ref" in field:
        path = nested.get(_section(field), "")
        return f"[section](#{_anchor(path)})" if path else "section"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{json.dumps(field['const']) if isinstance(field['const'], bool) else field['const']}`"
    if field["type"] == "array":
        inner = field["items"]
        if "$ref" in inner:
            return f"list of [sections](#{_anchor(nested[_section(field)])})"
        return f"list of {_allowed(inner, nested)}"
    if field["type"] == "object":
        values = field.get("additionalProperties")
        return f"mapping of text to {_allowed(values, nested)}" if isinstance(values, dict) else "mapping"
    if "pattern" in field:
        return "text that matches `" + field["pattern"].replace("|", "\\|") + "`"
    bounds = " and ".join(f"{sign} {field[name]:g}" for name, sign in SIGNS.items() if name in field)
    return " ".join(part for part in (WORDS[field["type"]], bounds) if part)


def _default(field: Mapping[str, Any]) -> str:
    if "default" in field:
        return f"`{json.dumps(field['default'])}`"
    empty = {"array": "`[]`", "object": "`{}`"}.get(field.get("type", ""), "")
    return empty or "its defaults"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(path: str) -> str:
    """As web pages of repositories make them: lower case, dots and brackets left out."""
    return path.lower().replace(".", "").replace("[]", "")


# -- the hardware table


def hardware_page() -> str:
    """What fits where, from the planner."""
    from luthier.plan.table import hardware_page as page

    return HEAD + page()


BEGIN, END = "<!-- written by docs/generate.py -->\n", "<!-- to here -->\n"


def plan_page(text: str) -> str:
    """`text` with the table of measured and planned steps between its two marks."""
    from luthier.plan.measured import measured_table

    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    assert after, "docs/plan.md has lost the marks of its table"
    return before + BEGIN + "\n".join(measured_table()) + "\n" + END + after


def distributed_page(text: str) -> str:
    """`text` with the plans of docs/paper.py, each table between its own two marks."""
    spec = importlib.util.spec_from_file_location("docs_paper", Path(__file__).parent / "paper.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, table in module.paper_tables().items():
        begin, end = f"<!-- {name}: written by docs/generate.py -->\n", f"<!-- {name}: to here -->"
        before, _, rest = text.partition(begin)
        _, _, after = rest.partition(end)
        assert after, f"docs/distributed.md has lost the marks of its table {name}"
        text = before + begin + table + "\n" + end + after
    return text


# -- the command line


def cli_page() -> str:
    """Every command with its arguments and options, from the commands themselves."""
    import typer

    from luthier.cli import main

    root = typer.main.get_command(main.app)
    lines = [
        HEAD,
        "# Commands\n",
        f"{root.help}\n",
        "`luthier COMMAND --help` shows the same. Tables and JSON go to stdout; progress, summaries and errors to",
        "stderr. `--json` makes the result one JSON value on stdout, errors included. `--debug` adds the Python trace",
        "to an error. Exit codes and error codes: [errors](../errors.md). Commands that take a recipe take overrides,",
        "too: `key.sub=value`, `--key.sub value` or `--key.sub=value`.\n",
        "| command | what it does |",
        "|---|---|",
    ]
    commands = list(_commands(root, "luthier"))
    lines += [f"| [`{name}`](#{name.replace(' ', '-')}) | {_cell(command.help or '')} |" for name, command in commands]
    for name, command in commands:
        lines += ["", f"## {name}\n", "```", _usage(name, command), "```\n", f"{_cell(command.help or '')}\n"]
        lines += ["| argument or option | default | meaning |", "|---|---|---|"]
        lines += [_parameter(parameter) for parameter in command.params if not parameter.hidden]
        if not command.params:
            lines[-2:] = ["No arguments and no options."]
    return "\n".join(lines) + "\n"


def _commands(group: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                yield f"{prefix} {name}", command
            yield from _commands(command, f"{prefix} {name}")
        else:
            yield f"{prefix} {name}", command


def _usage(name: str, command: Any) -> str:
    words = []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            word = str(parameter.name).upper() + ("..." if parameter.nargs == -1 else "")
            words.append(word if parameter.required else f"[{word}]")
    options = ["[OPTIONS]"] if any(item.param_type_name == "option" for item in command.params) else []
    return " ".join([name, *options, *words])


def _parameter(parameter: Any) -> str:
    argument = parameter.param_type_name == "argument"
    name = f"`{str(parameter.name).upper()}`" if argument else ", ".join(f"`{option}`" for option in parameter.opts)
    if argument and parameter.required:
        default = "required"
    elif parameter.default is None or getattr(parameter, "is_flag", False):
        default = ""
    else:
        default = f"`{parameter.default}`"
    limits = (("at least", parameter.min), ("at most", parameter.max))
    bounds = "; ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
    meaning = _cell(parameter.help or "")
    return f"| {name} | {default} | {meaning}{f' ({bounds})' if bounds else ''} |"


def main(arguments: list[str]) -> int:
    """Write or check the pages; returns the exit code."""
    wanted = pages()
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text("utf-8") != text]
    if "--check" in arguments:
        sys.stderr.writelines(f"stale: {path}; run `python docs/generate.py`\n" for path in stale)
        return int(bool(stale))
    for path in stale:
        path.parent.mkdir(exist_ok=True)
        path.write_text(wanted[path], "utf-8")
        sys.stderr.write(f"wrote {path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
