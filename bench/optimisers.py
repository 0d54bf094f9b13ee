#!/usr/bin/env python3
"""What optimisers find at equal prompt tokens: bench/optimisers.py run | table.

Key-value retrieval (5 depths) on the bundled needle at twice its trained length, method none, several seeds.  A search
is ended at one budget after another; what each would have handed over is judged on JSON objects that it has not seen.
`bo` needs `pip install bayesian-optimization`; ropebend does not.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import typer
from decode import NEEDLE
from table import row

from ropebend.entry import run_app
from ropebend.errors import UsageError
from ropebend.runtime import Runtime
from ropebend.search import SearchSpec, TaskSpec, run_search
from ropebend.search.cma import CMAES, Adaptation
from ropebend.search.curves import Genes
from ropebend.search.genetic import GeneticSearch
from ropebend.search.optimiser import Genome
from ropebend.search.optimisers import OPTIMISERS

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)


class ThirdsOnly(CMAES):
    """CMA-ES without the ramps and bumps of its sweep."""

    name = "cma-thirds"
    setting = Adaptation(leap=0.0)


class Bayes(GeneticSearch):
    """Bayesian optimisation of the curve's genes (package bayesian-optimization: a Gaussian process whose noise is a
    part of the fit, expected improvement, the constant liar for the candidates of one generation)."""

    name = "bo"

    def next_generation(self) -> list[Genome]:
        """As many as a generation has, from all that was told."""
        from bayes_opt import BayesianOptimization
        from bayes_opt.acquisition import ConstantLiar, ExpectedImprovement
        from sklearn.gaussian_process.kernels import Matern, WhiteKernel

        bounds = {
            f"{i:03}": (low, high) for i, (low, high) in enumerate(zip(self.space.low, self.space.high, strict=True))
        }
        seed = int(self.rng.integers(2**31))
        liar = ConstantLiar(ExpectedImprovement(xi=0.0), strategy="mean")
        model = BayesianOptimization(None, bounds, acquisition_function=liar, random_state=seed, verbose=0,
                                     allow_duplicate_points=True)  # fmt: skip
        wide = np.ptp(np.stack([self.space.low, self.space.high]), axis=0)
        model.set_gp_params(
            kernel=Matern(length_scale=0.3 * wide, length_scale_bounds=(1e-2, 1e2), nu=2.5) + WhiteKernel(1e-3),
            normalize_y=True, n_restarts_optimizer=0,
        )  # fmt: skip
        for genes, scored in self._ranked:
            model.register(dict(zip(bounds, genes, strict=True)), scored.score)
        asked = (model.suggest() for _ in range(8))
        return [(np.array([x[name] for name in bounds]), "bo") for x in asked]


class Sensitivity(GeneticSearch):
    """Effects of the genes taken to add up: a random design of three levels around the best, ridge regression of the
    score on each gene and its square, and the optimum that it predicts, at several radii; then again from there."""

    name = "sensitivity"
    radius = 1.0

    def next_generation(self) -> list[Genome]:
        """A design and what it predicts, in turns."""
        if self.generation % 2 == 0:
            self._centre = self._ranked[0][0]
            design = self.rng.integers(-1, 2, (2 * self.space.n_genes, self.space.n_genes)).astype(float)
            return [(self._at(offset), "probe") for offset in design]
        rows, scores = [], []
        for genes, scored in self._ranked:
            offset = (genes - self._centre) / (self.space.spread * self.radius)
            if np.abs(offset).max() <= 1.01:
                rows.append(np.concatenate([offset, offset**2]))
                scores.append(scored.score)
        x, y = np.array(rows), np.array(scores)
        x, y = x - x.mean(axis=0), y - y.mean()
        slope = np.linalg.solve(x.T @ x + np.eye(x.shape[1]), x.T @ y)
        linear, square = np.split(slope, 2)
        grid = np.linspace(-1, 1, 21)
        best = grid[np.argmax(linear[:, None] * grid + square[:, None] * grid**2, axis=1)]
        out: list[Genome] = [(self._at(k * best), "predicted") for k in (0.5, 1.0, 1.5, 2.0)]
        self.radius = max(0.25, 0.7 * self.radius)
        return out

    def _at(self, offset: Genes) -> Genes:
        return self.space.bounded(self._centre + offset * self.space.spread * self.radius)


#: What is compared: optimiser, genome, numbers that move.
RIVALS: dict[str, tuple[str, str, str]] = {
    "cma": ("cma", "knots", "both"),
    "cma, scales alone": ("cma", "knots", "scale"),
    "cma without ramps and bumps": ("cma-thirds", "knots", "both"),
    "ga (the paper's)": ("ga", "bezier", "scale"),
    "ga, both numbers": ("ga", "knots", "both"),
    "random": ("random", "knots", "both"),
    "bo": ("bo", "bezier", "both"),
    "sensitivity": ("sensitivity", "knots", "both"),
}


@app.command()
def run(
    rivals: Annotated[str, typer.Option(help="Names separated by semicolons.")] = ";".join(RIVALS),
    seeds: Annotated[str, typer.Option(help="FIRST-LAST.")] = "1-8",
    budgets: Annotated[str, typer.Option(help="Thousands of prompt tokens, ascending.")] = "200,400,800,1600",
    test: Annotated[int, typer.Option(min=10, help="Unseen JSON objects to judge on.")] = 40,
    model: Annotated[Path, typer.Option("--model", help="GGUF.", show_default="needle")] = NEEDLE,
    keys: Annotated[int, typer.Option(min=1, help="Key-value pairs per JSON object.")] = 56,
    threads: Annotated[int, typer.Option("-t", min=1, help="CPU threads.")] = 1,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder; what is there already counts.")] = Path(
        "bench-optimisers"
    ),
) -> None:
    """Search and judge; some 4 minutes for 600 ktok on one core.  A stopped run goes on where it was."""
    OPTIMISERS.update({o.name: o for o in (ThirdsOnly, Bayes, Sensitivity)})
    chosen = [name.strip() for name in rivals.split(";")]
    if unknown := set(chosen) - RIVALS.keys():
        raise UsageError(f"--rivals: expected some of {'; '.join(RIVALS)}, got {'; '.join(unknown)}")
    first, _, last = seeds.partition("-")
    try:
        numbers, amounts = range(int(first), int(last or first) + 1), [int(ktok) for ktok in budgets.split(",")]
    except ValueError:
        raise UsageError(f"--seeds, --budgets: expected 1-8 and 200,400 …, got {seeds} and {budgets}") from None
    output.mkdir(parents=True, exist_ok=True)
    results = output / "results.jsonl"
    done = {(r["rival"], r["seed"], r["budget"]) for r in read(results)}
    for seed, name in itertools.product(numbers, chosen):
        optimiser, genome, moving = RIVALS[name]
        log = output / f"{re.sub(r'[^a-z]+', '-', name)}-{seed}.jsonl"
        for ktok in amounts:
            if (name, seed, ktok) in done:
                continue
            task = TaskSpec(name="kv", options={"keys": keys, "seed": f"optimisers-{seed}"})
            spec = SearchSpec(
                model=str(model), tasks=(task,), genome=genome, numbers=moving, budget=f"{ktok}ktok", controls=(),
                seed=seed, test=test, runtime=Runtime(threads),
            )  # fmt: skip
            spec = spec.model_copy(update={"optimiser": optimiser})  # one of ours has no name there
            outcome = run_search(spec, log)  # a longer budget begins as the shorter one did: that is in the log
            if outcome.interrupted:
                raise typer.Exit(130)
            found = outcome.tests[spec.label][0]
            line = {
                "rival": name, "seed": seed, "budget": ktok, "accuracy": found.figure, "sets": outcome.main.n_evaluated,
                "unscaled": outcome.tests["unscaled"][0].figure, "tokens": outcome.n_tokens,
                "scales": outcome.layers.layer_scale, "attn": outcome.layers.layer_attn_factor,
            }  # fmt: skip
            with results.open("a") as f:
                f.write(json.dumps(line) + "\n")
            print(f"seed {seed}, {name}, {ktok} ktok: {found.figure:.1%} ({outcome.main.n_evaluated} sets)", flush=True)


def read(results: Path) -> list[dict[str, Any]]:
    """The lines of a results.jsonl; none if there is no such file."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


@app.command()
def table(
    folder: Annotated[Path, typer.Argument(help="What run wrote: results.jsonl.")] = Path("bench-optimisers"),
    picture: Annotated[Path | None, typer.Option(help="PNG of the learning curves.", show_default=False)] = None,
) -> None:
    """Accuracy on unseen objects by prompt tokens searched: medians, and bands from the lower to the upper quartile."""
    print("\n".join(markdown(folder)))
    if picture is not None:
        draw(folder, picture)


def curves(folder: Path) -> dict[str, dict[int, list[float]]]:
    """Accuracies in percent, one a seed, by rival and budget (thousands of tokens); the best rival first."""
    found: defaultdict[str, defaultdict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for r in read(folder / "results.jsonl"):
        found[r["rival"]][r["budget"]].append(100 * r["accuracy"])
    last = {name: float(np.median(of[max(of)])) for name, of in found.items()}
    return {name: dict(sorted(found[name].items())) for name in sorted(found, key=lambda name: -last[name])}


def markdown(folder: Path) -> list[str]:
    """The table, a row a rival."""
    found = curves(folder)
    budgets = sorted({b for of in found.values() for b in of})
    lines = [row("", *(f"{b:,} ktok" for b in budgets)), row("---", *["---"] * len(budgets))]
    return lines + [row(name, *(cell(of.get(b, [])) for b in budgets)) for name, of in found.items()]


def cell(values: Sequence[float]) -> str:
    """Median, all of them, and how many."""
    if not values:
        return ""
    return f"{np.median(values):.1f}% ({min(values):.0f}–{max(values):.0f}, {len(values)} seeds)"


def draw(folder: Path, picture: Path) -> None:
    """The learning curves."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, of in curves(folder).items():
        low, middle, high = np.transpose([np.percentile(values, (25, 50, 75)) for values in of.values()])
        axes.plot([*of], middle, marker="o", markersize=3, label=name)
        axes.fill_between([*of], low, high, alpha=0.15, linewidth=0)
    axes.set(xscale="log", xlabel="thousand prompt tokens searched", ylabel="right on unseen items, %", ylim=(0, None))
    axes.legend(fontsize=8)
    figure.savefig(picture, dpi=130)


if __name__ == "__main__":
    run_app(app)
