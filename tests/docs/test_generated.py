"""Contract: docs/reference is what the code says today, and leaves out no key and no command."""

import importlib.util
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

NAMES = {"recipe.md", "synthesis.md", "api.md", "cli.md", "hardware.md"}


def generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def pages():
    return generator().pages()


@pytest.mark.parametrize("name", sorted(NAMES))
def test_the_page_is_up_to_date(name):
    path, wanted = next((path, text) for path, text in pages().items() if path.name == name)
    assert path.read_text("utf-8") == wanted, f"{path.name} is stale: run `python docs/generate.py`"


def test_every_recipe_key_is_there():
    from luthier.recipe.json_schema import json_schema

    text = generator().recipe_page()
    schema = json_schema()
    for definition in schema["$defs"].values():
        for key, field in definition["properties"].items():
            assert f"| `{key}` |" in text
            assert " ".join(field["description"].split()).replace("|", "\\|") in text


def test_every_key_of_a_spec_is_there():
    from luthier.synthesis.load import spec_schema

    text, schema = generator().synthesis_page(), spec_schema()
    for definition in (schema, *schema["$defs"].values()):
        for key, field in definition["properties"].items():
            if "$ref" in str(field) and definition is schema:
                assert f"\n## {key}\n" in text
                continue
            assert f"| `{key}` |" in text
            assert " ".join(field["description"].split()).replace("|", "\\|") in text


def test_every_command_and_option_is_there():
    import typer

    from luthier.cli.main import app

    generate = generator()
    text = generate.cli_page()
    commands = dict(generate._commands(typer.main.get_command(app), "luthier"))
    assert len(commands) >= 16
    for name, command in commands.items():
        section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
        for parameter in command.params:
            for option in parameter.opts:
                shown = option.upper() if parameter.param_type_name == "argument" else option
                assert f"`{shown}`" in section, (name, option)


def test_check_names_a_stale_page(tmp_path, monkeypatch, capsys):
    generate = generator()
    assert generate.main(["--check"]) == 0
    monkeypatch.setattr(generate, "FOLDER", tmp_path / "reference")
    assert generate.main(["--check"]) == 1
    assert "stale: " in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert generate.main([]) == 0
    assert {path.name for path in tmp_path.rglob("*.md")} == NAMES
