"""Requests by hand: a known model, a method, a device, documents of 300 tokens."""

from __future__ import annotations

from luthier.plan.devices import find_device
from luthier.plan.known import known_model
from luthier.plan.request import Request, make_request
from luthier.plan.work import Documents, assumed_documents
from luthier.recipe.schema import DataSection, MethodSection, ModelSection, Recipe, Source, TrainSection


def recipe(method: dict | None = None, *, model: dict | None = None, max_length: int = 1024, **train) -> Recipe:
    """A valid recipe; nothing in it is read."""
    return Recipe(
        model=ModelSection(name_or_path="x", **(model or {})),
        data=DataSection(train=[Source(path="x.jsonl")], max_length=max_length),
        method=MethodSection(**(method or {"name": "lora"})),
        train=TrainSection(**{"tokens_per_step": 16_384, **train}),
        output_dir="runs/x",
    )


def documents(max_length: int = 1024, mean_tokens: int = 300, rows: int = 10_000) -> Documents:
    return assumed_documents(max_length=max_length, packing=True, mean_tokens=mean_tokens, rows=rows)


def request(
    method: dict | None = None, *, name: str = "Llama-3.1-8B", gpu: str = "H200", num_gpus: int = 1, **rest
) -> Request:
    wanted = recipe(method, **rest)
    data = documents(wanted.data.max_length)
    return make_request(wanted, known_model(name), data, find_device(gpu), num_gpus=num_gpus)
