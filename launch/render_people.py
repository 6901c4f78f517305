"""Draw procedural talking people: ordinary .mp4 files with sound, and their truth.

    python -m launch.render_people --output DIR --people 24 --scenes 2

Person i is the same whatever the count: use --first_person for people that another
run has not seen.

    python -m launch.render_people --output DIR --benchmark FILE.json

draws the people of the mini benchmark instead, and writes its list, which is
configs/mini_benchmark.json: `launch.evaluate --benchmark FILE.json --media DIR` scores
by it.
"""

from pathlib import Path

from absl import flags

from data_pipelines import benchmark_mini, synthetic
from launch import cli
from tavr_jax.errors import InputError

OUTPUT = flags.DEFINE_string("output", None, "Folder to write.")
PEOPLE = flags.DEFINE_integer("people", 24, "How many.")
SCENES = flags.DEFINE_integer("scenes", 2, "Clips of each, every one in a new scene.")
SECONDS = flags.DEFINE_float("seconds", 3.4, "Length of a clip.")
SIZE = flags.DEFINE_integer("size", 192, "Rows and columns of a frame; even.")
SEED = flags.DEFINE_integer("seed", 0, "Of the cast.")
FIRST = flags.DEFINE_integer("first_person", 0, "Index of the first one.")
BENCHMARK = flags.DEFINE_string(
    "benchmark", None, "Draw the mini benchmark, and write its list to this .json."
)


def main() -> None:
    """Check the flags, then draw."""
    if not OUTPUT.value:
        raise InputError("--output: missing; give the folder to write")
    if BENCHMARK.value:
        return draw_benchmark(Path(BENCHMARK.value), OUTPUT.value)
    counts = ((PEOPLE, 1), (SCENES, 1), (SIZE, 64), (SEED, 0), (FIRST, 0))
    for flag, low in ((SECONDS, 0.5), *counts):
        if not low <= flag.value < 2**31:  # also false for NaN
            raise InputError(f"--{flag.name}={flag.value}: give {low} or more")
    if SIZE.value % 2:
        raise InputError(f"--size={SIZE.value}: H.264 needs an even number; add one")
    paths = synthetic.write_people(
        OUTPUT.value, PEOPLE.value, SCENES.value, SECONDS.value, SIZE.value,
        SEED.value, FIRST.value,
    )  # fmt: skip
    print(f"{len(paths)} clips in {OUTPUT.value}")


def draw_benchmark(path: Path, folder: str) -> None:
    """The mini benchmark: its list first, which takes no time, then its videos.

    InputError: flags that say another cast, a list that cannot be written or is
    somebody else's.
    """
    said = (PEOPLE, SCENES, SECONDS, SIZE, SEED, FIRST)
    if given := [flag.name for flag in said if flag.present]:
        raise InputError(f"--{given[0]}: the mini benchmark is fixed; leave it out")
    text = benchmark_mini.text().encode()
    try:
        if path.exists() and path.read_bytes() != text:
            raise InputError(f"--benchmark {path}: is another list; name a new file")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"{path}: {len(benchmark_mini.listing())} pairs")
    made = benchmark_mini
    paths = synthetic.write_people(
        folder, made.PEOPLE, made.SCENES, made.SECONDS, made.SIZE, made.SEED, made.FIRST
    )
    print(f"{len(paths)} clips in {folder}")


if __name__ == "__main__":
    cli.run(main, __doc__)
