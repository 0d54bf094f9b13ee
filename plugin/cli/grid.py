"""`ropebend eval` of many tasks or lengths: the heat map (length by depth), and RULER's suite with its average."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ropebend.errors import UsageError
from ropebend.lengths import read_length, short_length

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ropebend.evaluate import Evaluation
    from ropebend.tasks.task import Task

TIME = "30m"  # for all of it, where neither --samples nor --time is given
COLOURS = ((178, 50, 60), (214, 164, 60), (60, 140, 80))  # of nothing, half and everything right


@dataclass(frozen=True)
class Cell:
    """One measurement: a row or column of the picture, its task, and what it costs beside the others."""

    label: str
    task: Task
    cost: float


#: Measures a task, scaled or not, within so many seconds (None: no limit): its figures, and why it ended early if so.
Measure = Callable[["Task", bool, "float | None"], tuple["Evaluation", "str | None"]]


def of_lengths(text: str, make: Callable[[int], Task]) -> list[Cell]:
    """A cell for each of "1k,2k,4k".  Raises UsageError for what is no length."""
    lengths = sorted({read_length(part) for part in text.split(",")})
    return [Cell(short_length(n), make(n), n) for n in lengths]


def of_suite(options: Mapping[str, Any]) -> tuple[list[Cell], dict[str, str]]:
    """A cell for each task of RULER, and for those that cannot be measured why."""
    from ropebend.tasks import ruler

    tasks, missing = ruler.suite(options)
    return [Cell(name.removeprefix("ruler:"), task, 1.0) for name, task in tasks.items()], missing


def measure_all(
    cells: Sequence[Cell], sides: Sequence[tuple[str, bool]], limit: float | None, measure: Measure
) -> tuple[dict[str, dict[str, Evaluation]], bool]:
    """Results by side ("unscaled", "scaled") and label; True if it was interrupted.  The time is shared by cost."""
    results: dict[str, dict[str, Evaluation]] = {name: {} for name, _ in sides}
    total = sum(c.cost for c in cells) * len(sides)
    for cell in cells:
        for name, scaled in sides:
            try:
                result, stopped = measure(cell.task, scaled, None if limit is None else limit * cell.cost / total)
            except KeyboardInterrupt:
                return results, True
            results[name][cell.label] = result
            if stopped == "interrupted":
                return results, True
    return results, False


def by_depth(results: Mapping[str, Evaluation]) -> tuple[list[float], list[str], list[list[float]]]:
    """Depths, labels, and accuracies [depth][label]."""
    from ropebend.evaluate import RetrievalEvaluation

    found = {label: r for label, r in results.items() if isinstance(r, RetrievalEvaluation)}
    depths = list(next(iter(found.values())).depths)
    columns = [r.value.mean(axis=0).tolist() for r in found.values()]
    return depths, list(found), [[column[row] for column in columns] for row in range(len(depths))]


def heat_map(results: Mapping[str, Mapping[str, Evaluation]]) -> RenderableType:
    """Accuracy in percent, length by depth, the sides next to each other."""
    from rich.columns import Columns
    from rich.table import Table
    from rich.text import Text

    tables = []
    for name, side in results.items():
        if not side:
            continue
        depths, labels, values = by_depth(side)
        table = Table(title=name, box=None, padding=0, pad_edge=False)
        table.add_column("depth ", justify="right")
        for label in labels:
            table.add_column(f" {label} ", justify="center", min_width=6)
        for depth, row in zip(depths, values, strict=True):
            cells = [Text(f"{100 * v:^6.0f}", style=f"white on rgb({_colour(v)})") for v in row]
            table.add_row(f"{depth:g} ", *cells)
        table.add_row("mean ", *(f"{100 * r.mean:^6.0f}" for r in side.values()))
        tables.append(table)
    return Columns(tables, padding=(0, 4))


def _colour(value: float) -> str:
    low, high = (COLOURS[0], COLOURS[1]) if value < 0.5 else (COLOURS[1], COLOURS[2])
    part = 2 * value if value < 0.5 else 2 * value - 1
    return ",".join(str(round(a + part * (b - a))) for a, b in zip(low, high, strict=True))


def picture(title: str, results: Mapping[str, Mapping[str, Evaluation]]) -> bytes:
    """The heat map as PNG."""
    import io

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.colors import LinearSegmentedColormap

    colours = LinearSegmentedColormap.from_list("right", [[c / 255 for c in colour] for colour in COLOURS])
    sides = {name: by_depth(side) for name, side in results.items() if side}
    n_columns = max(len(labels) for _, labels, _ in sides.values())
    width = 1.6 + len(sides) * (1.0 + 0.7 * n_columns)
    figure, axes = plt.subplots(1, len(sides), figsize=(max(width, 4.5), 4.6), layout="constrained", squeeze=False)
    for ax, (name, (depths, labels, values)) in zip(axes[0], sides.items(), strict=True):
        image = ax.imshow(values, cmap=colours, vmin=0, vmax=1, aspect="auto")
        ax.set(title=name, xlabel="prompt, tokens", ylabel="depth of the answer")
        ax.set_xticks(range(len(labels)), labels)
        ax.set_yticks(range(len(depths)), [f"{d:g}" for d in depths])
        for y, row in enumerate(values):
            for x, value in enumerate(row):
                ax.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color="white", fontsize=8)
    figure.colorbar(image, ax=axes[0].tolist(), label="right answers")
    figure.suptitle(title, fontsize=10)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=120)
    plt.close(figure)
    return data.getvalue()


def suite_table(results: Mapping[str, Mapping[str, Evaluation]], missing: Mapping[str, str]) -> str:
    """RULER's tasks with their scores in percent, and the average over them."""
    sides = {name: side for name, side in results.items() if side}
    labels = list(next(iter(sides.values())))
    lines = ["".join(["task".ljust(18), *(name.rjust(18) for name in sides)])]
    for label in labels:
        cells = [side[label].in_words() if label in side else "" for side in sides.values()]
        lines.append("".join([label.ljust(18), *(c.rjust(18) for c in cells)]))
    means = [[r.mean for r in side.values()] for side in sides.values()]
    lines.append("".join(["average".ljust(18), *(f"{sum(m) / len(m):.1%}".rjust(18) for m in means)]))
    if missing:
        lines.append(f"\nThe average is over {len(labels)} of 13 tasks, so it is not RULER's:")
        lines += [f"{name}: {why}" for name, why in missing.items()]
    return "\n".join(lines)


def depths_of(text: str) -> str:
    """ "11" as eleven depths from 0 to 1; anything else as it is.  Raises UsageError."""
    if not text.strip().isdigit() or text.strip() in ("0", "1"):
        return text
    n = int(text)
    if n > 101:
        raise UsageError(f"--depths: expected at most 101, got {n}")
    return ",".join(f"{k / (n - 1):.4g}" for k in range(n))
