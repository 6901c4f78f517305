"""Ship a run: its weights as a small file with a card, to be carried by the package.

    python -m launch.ship --workdir W/cross_scene
    python -m launch.ship --workdir W/face_judge --name face_judge --output FOLDER

Writes NAME.safetensors (averaged weights in float16; low-rank additions alone where
they belong to a stage that is in the folder already, so ship stages in their order) and
NAME.md, which says what made it. A shipped stage is a checkpoint by the name of its
file, and, in the package's own folder, by mini:NAME; mini is the last stage.

Shipped again, a file is replaced. Additions to a stage that was replaced load no more:
ship them again after it.
"""

from pathlib import Path

from absl import flags

from launch import cli, ship_card, ship_weights, shipped
from tavr_jax import storage
from tavr_jax.errors import InputError

WORKDIR = flags.DEFINE_string("workdir", None, "A finished run of launch.train.")
NAME = flags.DEFINE_string("name", None, "Of the file; the run's stage if not given.")
OUTPUT = flags.DEFINE_string("output", None, "Folder; the package's own if not given.")
DATA_COMMANDS = flags.DEFINE_string(
    "data_commands", None, "Text file of the commands that made the data, for the card."
)
HARDWARE = flags.DEFINE_string("hardware", "", "What it was trained on, for the card.")
MEASURED = flags.DEFINE_string("measured", "", "What it was measured to do, likewise.")


def main() -> None:
    """Read everything, then write the file and its card."""
    if not WORKDIR.value:
        raise InputError("flags: --workdir is missing (see --help)")
    workdir = storage.place(WORKDIR.value, "--workdir")
    folder = Path(OUTPUT.value) if OUTPUT.value else shipped.folder()
    name = NAME.value or ship_weights.stage_of(workdir)
    weights = ship_weights.gather(workdir, name, folder)
    card = ship_card.gather(
        weights,
        name,
        workdir,
        folder,
        _commands(DATA_COMMANDS.value),
        HARDWARE.value,
        MEASURED.value,
    )
    weights.facts.update(ship_card.metadata(card))
    path = ship_weights.write(weights, name, folder)
    storage.write_text(path.with_suffix(".md"), ship_card.text(card))
    kind = f"additions to {card.upon}" if card.upon else "whole"
    total = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    print(
        f"{path}: {card.megabytes:.2f} MB, {kind}; the folder has {total / 1e6:.1f} of "
        f"{ship_weights.LARGEST / 1e6:.0f} MB"
    )


def _commands(path: str | None) -> list[str]:
    if not path:
        return []
    try:
        return Path(path).read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(
            f"--data_commands {path}: cannot be read ({error}); give a text file"
        ) from error


if __name__ == "__main__":
    cli.run(main, __doc__)
