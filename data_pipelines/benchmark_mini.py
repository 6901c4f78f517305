"""The mini benchmark: 158 pairs of drawn people whom nobody was trained on (ours).

79 people of two scenes each; either scene is once the target and once the reference.
The list is a function of the numbers below; configs/mini_benchmark.json is it, made by

    python -m launch.render_people --benchmark configs/mini_benchmark.json --output DIR

which draws its videos: they are not shipped.
"""

import json
from typing import Any

from data_pipelines.synthetic_people import caption, scene
from data_pipelines.synthetic_speech import FPS

FIRST, PEOPLE, SCENES = 5000, 79, 2  # index of the first person, of the cast of SEED
SEED, SECONDS, SIZE = 0, 3.4, 192


def listing() -> list[dict[str, Any]]:
    """The samples, as `benchmark_file` reads them."""
    return [
        {
            "target": _span(person, place),
            "reference": _span(person, 1 - place),
            "target_caption": caption(scene((SEED, person, place))),
            "person": _name(person),
        }
        for person in range(FIRST, FIRST + PEOPLE)
        for place in range(SCENES)
    ]


def text() -> str:
    """The list as its file: a sample a line."""
    lines = ",\n".join(map(json.dumps, listing()))
    return f"[\n{lines}\n]\n"


def _name(person: int) -> str:
    return f"person_{person:04d}"


def _span(person: int, place: int) -> dict[str, Any]:
    frames = round(SECONDS * FPS)
    return {
        "video_id": f"{_name(person)}/scene_{place}",
        "video_url": "",
        "start_time": 0.0,
        "end_time": frames / FPS,
        "start_frame": 0,
        "end_frame": frames,
        "fps": float(FPS),
        "width": SIZE,
        "height": SIZE,
    }
