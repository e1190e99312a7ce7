"""Contract: the JSON Schema explains every key and agrees with the loader; the starter loads; loading is light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.recipe.json_schema import SCHEMA_ID, json_schema
from luthier.recipe.load import load_recipe
from luthier.recipe.nearest import sections
from luthier.recipe.resolve import recipe_to_dict
from luthier.recipe.schema import Recipe
from luthier.recipe.starter import starter_recipe
from luthier.recipe.yaml12 import parse_yaml
from tests.recipe.support import BASE, load

pytestmark = pytest.mark.usefixtures("work")

SCHEMA = json_schema()


def conforms(value: object, schema: dict) -> bool:
    """The part of JSON Schema that ours uses."""
    if "$ref" in schema:
        return conforms(value, SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]])
    if "anyOf" in schema:
        return any(conforms(value, option) for option in schema["anyOf"])
    if "const" in schema:
        return value == schema["const"]
    if "enum" in schema:
        return value in schema["enum"]
    if schema.get("type") == "object":
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        return (
            isinstance(value, dict)
            and set(schema.get("required", ())) <= set(value)
            and all(conforms(item, known[key]) if key in known else (other is True or (other and conforms(item, other)))
                    for key, item in value.items())
        )  # fmt: skip
    if schema.get("type") == "array":
        return (
            isinstance(value, list)
            and len(value) >= schema.get("minItems", 0)
            and all(conforms(item, schema["items"]) for item in value)
        )
    if schema.get("type") in {"integer", "number"}:
        number = isinstance(value, int if schema["type"] == "integer" else int | float) and not isinstance(value, bool)
        return (
            number
            and value >= schema.get("minimum", value) and value > schema.get("exclusiveMinimum", value - 1)
            and value <= schema.get("maximum", value) and value < schema.get("exclusiveMaximum", value + 1)
        )  # fmt: skip
    return isinstance(value, {"string": str, "boolean": bool, "null": type(None)}[schema["type"]])


def properties() -> list[tuple[str, dict]]:
    found = [(f"Recipe.{name}", field) for name, field in SCHEMA["properties"].items()]
    return found + [
        (f"{section}.{name}", field)
        for section, definition in SCHEMA["$defs"].items()
        for name, field in definition["properties"].items()
    ]


def test_the_schema_has_a_name_an_address_and_every_key():
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert (SCHEMA["$id"], SCHEMA["title"]) == (SCHEMA_ID, "Luthier recipe")
    assert len(properties()) == sum(len(keys) for keys in sections().values())
    json.dumps(SCHEMA, allow_nan=False)


def test_every_key_has_a_description_and_unknown_keys_are_refused():
    assert [name for name, field in properties() if len(field.get("description", "")) < 5] == []
    assert all(definition["additionalProperties"] is False for definition in [SCHEMA, *SCHEMA["$defs"].values()])


def test_optional_values_have_their_default():
    train = SCHEMA["$defs"]["TrainSection"]["properties"]
    assert train["learning_rate"]["default"] == "auto"
    assert train["adam_beta2"]["default"] == 0.999
    assert train["optim"]["enum"][0] == "adamw_torch_fused"
    assert SCHEMA["required"] == ["model", "data", "output_dir"]


def test_schema_and_loader_agree_on_good_and_bad_recipes():
    good = recipe_to_dict(load("evaluate: {tasks: [{name: a, path: rows.jsonl, metric: exact}]}\n"))
    assert conforms(good, SCHEMA)
    for change in (
        {"nme": 1},
        {"version": 2},
        {"train": {"seed": -1}},
        {"train": {"seed": 1.5}},
        {"train": {"optim": "x"}},
        {"data": {"train": []}},
        {"train": {"learning_rate": 0}},
        {"train": {"learning_rate": "fast"}},
        {"model": None},
    ):
        assert not conforms({**good, **change}, SCHEMA), change
        with pytest.raises(ValueError):
            Recipe.model_validate({**good, **change})
    assert conforms({**good, "train": None}, SCHEMA)  # an empty section: the loader takes it too
    load("train:\n")


def starter(**changes: object) -> str:
    arguments = {
        "data_path": "rows.jsonl", "format": "messages", "mapping": {}, "rows": 300, "model": "smollm2-135m-instruct",
        "max_length": 512, "task_metric": None, "output_dir": "runs/rows",
    }  # fmt: skip
    return starter_recipe(**{**arguments, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["lora", "qlora", "full", "freeze"])
@pytest.mark.parametrize("rows", [1, 39, 40, 399, 400, 5_000, 100_000])
@pytest.mark.parametrize("test_path", [None, "more.jsonl"])
def test_the_starter_recipe_loads_as_it_is(method, rows, test_path):
    text = starter(
        method=method,
        rows=rows,
        test_path=test_path,
        mapping={"user": "question", "assistant": "a: b"},
        task_metric="number",
    )
    Path("recipe.yaml").write_text(text)
    recipe = load_recipe(Path("recipe.yaml")).recipe
    assert recipe.method.name == method
    assert recipe.data.train[0].map == {"user": "question", "assistant": "a: b"}
    assert (recipe.data.validation.fraction > 0) == (rows >= 40)
    assert [task.metric for task in recipe.evaluate.tasks] == (["number"] if test_path else [])
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.mark.parametrize(("kind", "name"), [("pairs", "dpo"), ("rated", "kto"), ("tokens", "sft")])
def test_the_starter_recipe_of_preferences_has_their_objective(kind, name):
    formats = {"pairs": "preference", "rated": "unpaired_preference", "tokens": "messages"}
    Path("recipe.yaml").write_text(starter(kind=kind, format=formats[kind], mapping={"user": "prompt"}))
    recipe = load_recipe(Path("recipe.yaml")).recipe
    assert recipe.objective.name == name and recipe.data.train[0].format == formats[kind]
    Path("recipe.yaml").write_text(starter(kind=kind, format=formats[kind], test_path="more.jsonl"))
    assert load_recipe(Path("recipe.yaml")).recipe.evaluate.tasks[0].format == "messages"


def test_the_first_line_tells_editors_where_the_schema_is():
    assert starter().splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA_ID}"
    assert starter(schema="x.json").splitlines()[0].endswith("$schema=x.json")


def test_the_task_of_the_starter_recipe_can_be_uncommented():
    Path("test.jsonl").write_text("{}\n")
    lines = starter(mapping={"user": "q"}, task_metric="json_exact").splitlines()
    start = next(index for index, line in enumerate(lines) if line == "  # tasks:")
    stop = lines.index("", start)
    lines[start:stop] = [line.replace("# ", "", 1) for line in lines[start:stop]]
    Path("recipe.yaml").write_text("\n".join(lines))
    (task,) = load_recipe(Path("recipe.yaml")).recipe.evaluate.tasks
    assert (task.metric, task.limit, task.map) == ("json_exact", 200, {"user": "q"})


@given(
    path=st.text(min_size=1, max_size=30),
    key=st.text(min_size=1, max_size=10),
    column=st.text(max_size=20),
    output=st.text(min_size=1),
)
def test_any_file_and_column_name_survives_the_starter_recipe(path, key, column, output):
    document = parse_yaml(starter(data_path=path, mapping={key: column}, output_dir=output), origin="x")
    assert document.problems == []
    assert document.value["data"]["train"][0] == {"path": path, "format": "messages", "map": {key: column}}
    assert document.value["output_dir"] == output


def test_loading_needs_no_torch_and_little_time():
    Path("recipe.yaml").write_text(BASE)
    code = (
        "import sys, time; started = time.process_time()\n"
        "from pathlib import Path\n"
        "from luthier.recipe.load import load_recipe\n"
        "load_recipe(Path('recipe.yaml'), ['train.seed=1'])\n"
        "seconds = time.process_time() - started\n"
        "started = time.process_time(); sum(n * n for n in range(1_000_000))\n"
        "unit = time.process_time() - started\n"
        "import luthier.recipe.resolve, luthier.recipe.json_schema, luthier.recipe.starter\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'accelerate', 'scipy', 'numpy'} & set(sys.modules)\n"
        "print(seconds / unit, sorted(heavy))"
    )
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "/usr/bin:/bin"}
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout
    units, heavy = output.split(" ", 1)
    assert heavy.strip() == "[]"
    assert float(units) < 15  # loops of a million turns: 4 where the machine is quiet (0.15 s), 7 where it is busy
