"""A picture of a training: python docs/recipes/curve.py plots/sft.csv PICTURE.png COLUMN..."""

import csv
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot


def main(table: Path, picture: Path, names: list[str]) -> None:
    with table.open() as file:
        rows = list(csv.DictReader(file))
    figure, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    colours: dict[str, str] = {}  # of validation as of training
    for name in names:
        points = [(int(row["step"]), float(row[name])) for row in rows if row[name]]
        of_training = name.removeprefix("validation_").removeprefix("train_")
        colour = colours.setdefault(of_training, f"C{len(colours)}")
        style = "o--" if name.startswith("validation_") else "-"
        axes.plot(*zip(*points, strict=True), style, color=colour, label=name)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper left", ncols=2, frameon=False)
    figure.savefig(picture, dpi=100, metadata={"Software": None})


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
