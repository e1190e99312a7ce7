"""Configurations of accelerate that users already have: its YAML, and what `accelerate launch` exports.

    source.py       a YAML file as plain values, with the place of each
    environment.py  the variables of `accelerate launch` as the same values
    without_effect.py  keys that have none here, and why
    reading.py      values taken from a source, and everything wrong with it
    translate.py    what each key means in a recipe
    merge.py        into the recipe; contradictions

Keys and their meaning: accelerate 1.15, `commands/config/config_args.py`, `commands/launch.py`, `utils/launch.py`
(https://github.com/huggingface/accelerate). accelerate itself is not imported: it imports torch, and a recipe is read
without. `tests/recipe/accelerate` holds the keys against the installed package.
"""
