"""Synthetic rows with known topics, for tests and `benchmarks/map.py`: seeded, from word lists, nobody's data."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

TOPICS = {
    "cooking": "flour butter oven dough recipe sugar whisk simmer garlic onion skillet broth seasoning bake yeast",
    "astronomy": "planet orbit telescope galaxy comet nebula eclipse moon asteroid spectrum gravity star crater",
    "gardening": "soil compost seedling prune tomato mulch watering perennial bulb hedge lawn weed trellis",
    "banking": "loan interest mortgage deposit account overdraft credit branch transfer savings currency fee",
    "sailing": "mast anchor harbour rudder tide keel sail crew wind deck rope buoy compass voyage marina hull",
    "medicine": "dose symptom fever vaccine clinic nurse diagnosis allergy prescription wound surgeon infection",
    "football": "goalkeeper penalty striker league referee offside midfield tackle stadium coach corner season",
    "music": "chord melody violin rhythm tempo piano orchestra tune octave harmony guitar concert drum soloist",
    "railway": "locomotive platform carriage signal track timetable conductor tunnel station freight junction gauge",
    "law": "contract clause tribunal plaintiff verdict statute appeal lawyer witness damages liability evidence",
    "weaving": "loom thread fabric warp weft dye cotton yarn pattern spindle wool textile shuttle stitch",
    "databases": "query index table schema transaction join replica column backup primary cache migration lock",
    "birds": "feather nest beak migration owl sparrow plumage wingspan robin heron flock egg perch",
    "painting": "canvas pigment brush palette portrait easel varnish sketch perspective gallery watercolour fresco",
    "insurance": "premium claim policy deductible insurer coverage damage adjuster theft liability renewal hazard",
    "cycling": "pedal chain saddle gear brake tyre helmet derailleur sprint peloton puncture handlebar climb",
}  # fmt: skip
QUESTIONS = (
    "How do I keep the {0} right when the {1} and the {2} do not agree?",
    "What is the use of a {0} if there is already a {1}, and does the {2} matter?",
    "My {0} is worse than last year. Could the {1} or the {2} be the reason?",
    "Please explain {0}, {1} and {2} to somebody who has never seen a {3}.",
)
ANSWERS = (
    "Begin with the {0}, because the {1} depends on it. Then look at the {2} and the {3}.",
    "Most people look at the {0} first. It is better to write down the {1}, the {2} and at last the {3}.",
    "It depends on the {0}. With a good {1} the {2} takes care of itself, and the {3} follows.",
    "Never change the {0} and the {1} together. The {2} tells you more than the {3} does.",
)


def planted(n: int, *, topics: int = 8, seed: int = 0, without: tuple[str, ...] = ()) -> list[tuple[str, str, str]]:
    """(topic, question, answer) of `n` rows; topics in `without` do not come."""
    chance = random.Random(seed)
    names = [name for name in list(TOPICS)[:topics] if name not in without]
    rows = []
    for _ in range(n):
        topic = chance.choice(names)
        words = TOPICS[topic].split()
        asked = chance.choice(QUESTIONS).format(*chance.sample(words, 4))
        said = " ".join(chance.choice(ANSWERS).format(*chance.sample(words, 4)) for _ in range(chance.randint(1, 4)))
        rows.append((topic, asked, said))
    return rows


def chat(question: str, answer: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}], **more}


def write_planted(path: Path, n: int, **keys: Any) -> list[str]:
    """JSON Lines of chats; returns their topics."""
    rows = planted(n, **keys)
    lines = (json.dumps(chat(question, answer)) + "\n" for _, question, answer in rows)
    path.write_text("".join(lines), "utf-8")
    return [topic for topic, _, _ in rows]
