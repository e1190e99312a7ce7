"""`luthier quickstart`: from an untouched model to a tuned, proven, merged one, and one question to both.

The story writes its synthetic rows and its recipe into the run folder and then does what any
`luthier run` does; the folder's `recipe.yaml` can be run, changed and run again like any other.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.model.embedded import DESCRIPTION
from luthier.quickstart.tickets import CARD, SYSTEM, write_tickets
from luthier.runtime.atomic import write_text
from luthier.runtime.console import note

if TYPE_CHECKING:
    from luthier.pipeline.run import RunResult

__all__ = ["PROMPT", "TEST_ROWS", "TRAIN_ROWS", "prepare", "tell"]

TRAIN_ROWS = 400
TEST_ROWS = 60
TRAIN_SEED = 11
# Chosen before any test row was scored; the recipe was tuned on the `development` split.
TEST_SEED = 2024

PROMPT = (
    "Hi, Priya Nair here. The Tidal Espresso Machine came with a broken lever. Order 2291-XK. "
    "My cafe opens on Saturday, please be quick!"
)
"""Written by hand; none of its words for people and things is in the tickets."""

_SHIPPED_DIR = "runs/quickstart"


def prepare(output_dir: Path) -> Path:
    """Write the synthetic rows, their card and the recipe into the run folder; returns the recipe's path.

    The same files every time, so a second call changes nothing and finished stages are reused.
    """
    write_tickets(output_dir / "tickets" / "train.jsonl", TRAIN_ROWS, seed=TRAIN_SEED, split="train")
    write_tickets(output_dir / "tickets" / "test.jsonl", TEST_ROWS, seed=TEST_SEED, split="test")
    write_text(output_dir / "data_card.md", CARD)
    shipped = (resources.files("luthier.quickstart") / "recipe.yaml").read_text("utf-8")
    # The shipped paths stand in double quotes, where a JSON string without its own quotes is valid YAML.
    folder = json.dumps(output_dir.as_posix())[1:-1]
    recipe = output_dir / "recipe.yaml"
    write_text(recipe, shipped.replace(f'"{_SHIPPED_DIR}', f'"{folder}'))
    return recipe


def tell(output_dir: Path, *, command: Sequence[str] = ()) -> dict[str, Any]:
    """Run the quickstart in `output_dir` and print its summary.

    Args:
        output_dir: Run folder; a finished or interrupted quickstart in it is continued.
        command: The command line, for the manifest.

    Returns:
        The result of the run as JSON, with `prompt` and `answers` of both models.

    Raises:
        LuthierError: with the exit code of its class.
    """
    from luthier.pipeline.run import run_recipe
    from luthier.pipeline.summary import result_to_json
    from luthier.recipe.load import load_recipe

    note("Luthier quickstart: tune a small model to turn support tickets into JSON, and prove it.", style="bold")
    note(f"  model: {DESCRIPTION}")
    note(f"  data:  {TRAIN_ROWS} training and {TEST_ROWS} test tickets, synthetic; the test shares no name or phrase")
    note("  time:  two to six minutes on two cores")
    loaded = load_recipe(prepare(output_dir))
    result = run_recipe(loaded.recipe, recipe_text=loaded.text, command=command)
    note()
    note("One new ticket, both models:", style="bold")
    note(f"  {PROMPT}")
    answers = ask_both(output_dir)
    for name, answer in answers.items():
        note(f"  {name:>5}: {' '.join(answer.split())}")
    for line in summary(result):
        note(line)
    return {**result_to_json(result), "prompt": PROMPT, "answers": answers}


def ask_both(output_dir: Path, prompt: str = PROMPT) -> dict[str, str]:
    """Answers of the base and the tuned model of a run to one ticket, greedy."""
    from luthier.pipeline.talk import open_talkers

    talkers = open_talkers(str(output_dir), ("base", "tuned"), system=SYSTEM, max_new_tokens=64, temperature=0.0)
    return {talker.name: "".join(talker.say(prompt)) for talker in talkers}


def summary(result: RunResult) -> list[str]:
    """The closing lines: verdict, where things are, what to try next."""
    from luthier.pipeline.summary import summary_lines

    folder = result.folder
    return [
        *summary_lines(result),
        f"  luthier data show {folder}/recipe.yaml          the rows as the model sees them, token by token",
        f"  luthier run {folder}/recipe.yaml train.learning_rate=1e-3 output_dir=runs/second",
        f"  luthier compare {folder} runs/second            paired, on the same rows",
        "  luthier init YOUR_FILE.jsonl                     a commented recipe for your own rows",
        "  (the tickets are synthetic: the score says nothing about real customers' mail)",
    ]
