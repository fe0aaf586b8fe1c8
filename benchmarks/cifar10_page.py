"""The page of CIFAR-10 results from the kept metrics of runs: python benchmarks/cifar10_page.py (make results).

Reads results/cifar10/*.json, which `benchmarks/cifar10.py keep` and `ship` write, and writes docs/cifar-results.md and
docs/cifar-curves.png. No network is needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reporting import RESULTS

from keras_convnets.files import atomic_file
from keras_convnets.networks.registry import ARCHITECTURES

KEPT = RESULTS / "cifar10"
DOCS = Path(__file__).parent.parent / "docs"
PAGE, CURVES = DOCS / "cifar-results.md", DOCS / "cifar-curves.png"
TEST_IMAGES = 10_000
# Of a row whose recipe is the paper's: so many standard errors of ours and of the paper's are no difference.
STANDARD_ERRORS = 2
# Of the paper's recipe; and what two cores train of ResNet-56 in mixed_bfloat16.
ITERATIONS, BATCH, IMAGES_PER_SECOND = 64_000, 128, 585
RECIPES = {"resnet_cifar": "the paper's", "fast_cifar": "`fast_cifar`"}

INTRODUCTION = """# CIFAR-10: results of real runs

Made by `make results` from the metrics that each run kept. All runs were made on two cores of a CPU by the commands
below. Errors are those of the network after the last iteration, top-1 in percent, in the single view of the 32x32
image, with 95 % intervals (Wilson). The test error here is that of the first 1,000 of the 10,000 test images, as the
others were not at hand; the paper's is that of all 10,000. The paper is
[He et al. 2015](https://arxiv.org/abs/1512.03385).
"""

TABLE = """
## Table 6

| network | error in the paper | error here | recipe | images trained on | error in training | seed |
|---|---|---|---|---|---|---|
"""

PLAIN = """
## Plain and residual networks

![Training error (thin) and test error (bold) of plain and residual networks over the iterations](cifar-curves.png)

Thin lines are the errors in training, of augmented images and as the networks learn; bold points the errors on the test
images at the end, bold lines those of held-out images where a run held some out. In figure 6 of the paper, deeper plain
networks are worse than shallow ones, in training already, and deeper residual networks are better:

"""

NOT_RUN = """
## What was not run

"""


def main() -> None:
    """Write the page and its figure."""
    runs = kept_runs()
    with atomic_file(PAGE) as temporary:
        temporary.write_text(page(runs), encoding="utf-8")
    draw(runs, CURVES)
    print(f"wrote {PAGE} and {CURVES}")


def kept_runs() -> list[dict[str, Any]]:
    """Return the kept metrics, in the order of the networks, the paper's recipe first."""
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(KEPT.glob("*.json"))]
    order = list(ARCHITECTURES)
    return sorted(
        runs,
        key=lambda run: (
            order.index(run["network"]),
            run["recipe"]["name"] != "resnet_cifar",
            -run["images"],
            run["seed"],
        ),
    )


def page(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the page's whole text."""
    rows = "".join(row(run) for run in runs)
    commands = "".join(f"    {command}\n" for command in dict.fromkeys(run["command"] for run in runs))
    return "".join(
        (
            *(INTRODUCTION, TABLE, rows, verdicts(runs), PLAIN, findings(runs)),
            *("\n## Commands\n\n", commands, NOT_RUN, missing(runs)),
        )
    )


def row(run: Mapping[str, Any]) -> str:
    """Return a run's row of the table."""
    published = ARCHITECTURES[run["network"]].published
    paper = f"{published[0].top1:.2f}" if published else "–"
    recipe = RECIPES[run["recipe"]["name"]]
    dtype = run["recipe"].get("precision")
    return (
        f"| {run['network']} | {paper} | {error_text(run)} | {recipe}{', ' + dtype if dtype != 'float32' else ''} "
        f"| {run['images']:,} | {100 - 100 * run['train_top1']:.1f} | {run['seed']} |\n"
    )


def error_text(run: Mapping[str, Any]) -> str:
    """Return the errors of a run with n and interval: on the test images, and on those held out."""
    parts = [f"**{percent(run['test'])}** (n={run['test']['n']:,}, {interval(run['test'])})"]
    if "holdout" in run:
        parts.append(f"held out: {percent(run['holdout'])} (n={run['holdout']['n']:,}, {interval(run['holdout'])})")
    return "; ".join(parts)


def percent(figures: Mapping[str, Any]) -> str:
    """Return the error of measured figures."""
    return f"{100 * (1 - figures['top1']):.1f}"


def interval(figures: Mapping[str, Any]) -> str:
    """Return the interval of the error of measured figures."""
    low, high = (100 * (1 - bound) for bound in reversed(figures["interval"]))
    return f"{low:.1f} to {high:.1f}"


def standard_error(error: float, n: int) -> float:
    """Return the standard error of an error rate in percent."""
    return (error * (100 - error) / n) ** 0.5


def verdicts(runs: Iterable[Mapping[str, Any]]) -> str:
    """Return a sentence for each run by the paper's whole recipe: how far its error is from the paper's."""
    lines = []
    for run in runs:
        published = ARCHITECTURES[run["network"]].published
        if run["recipe"]["name"] != "resnet_cifar" or not published:
            continue
        ours, theirs = 100 * (1 - run["test"]["top1"]), published[0].top1 or 0.0
        together = (standard_error(ours, run["test"]["n"]) ** 2 + standard_error(theirs, TEST_IMAGES) ** 2) ** 0.5
        far = abs(ours - theirs) / together
        within = "within" if far <= STANDARD_ERRORS else "NOT within"
        lines.append(
            f"{run['network']} by the paper's recipe: {ours - theirs:+.2f} points from the paper's error, {far:.1f} "
            f"standard errors of both, {within} the {STANDARD_ERRORS} that are taken for no difference."
        )
    return "\n" + "\n".join(lines) + "\n" if lines else ""


def findings(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return the comparisons of plain and residual networks, of runs by one recipe on the same images."""
    by_key = {(run["network"], run["recipe"]["name"], run["images"], run["seed"]): run for run in runs}
    lines = []
    for better, worse in (
        *(("ResNet20", "PlainNet20"), ("ResNet56", "ResNet20")),
        *(("PlainNet20", "PlainNet56"), ("ResNet56", "PlainNet56")),
    ):
        for (network, *rest), first in by_key.items():
            second = by_key.get((worse, *rest))
            if network != better or second is None:
                continue
            both = [[f"{percent(run['test'])}", f"{100 - 100 * run['train_top1']:.1f}"] for run in (first, second)]
            lines.append(
                f"| {better} and {worse} | {RECIPES[rest[0]]}, {rest[1]:,} images, seed {rest[2]} "
                f"| {both[0][0]} and {both[1][0]} | {both[0][1]} and {both[1][1]} |\n"
            )
    heading = "| networks | trained | test error | error in training |\n|---|---|---|---|\n"
    return heading + "".join(lines)


def missing(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return which networks of the paper's table have no run, and which only one by the short schedule."""
    table = [name for name, row in ARCHITECTURES.items() if row.family.module == "resnet_cifar" and row.published]
    whole = {run["network"] for run in runs if run["recipe"]["name"] == "resnet_cifar"}
    short = {run["network"] for run in runs} - whole
    seeds = {run["network"] for run in runs if run["seed"] != 0}
    never = [name for name in table if name not in whole | short]
    seconds = ITERATIONS * BATCH / IMAGES_PER_SECOND / ARCHITECTURES["ResNet56"].multiply_adds
    hours = ", ".join(
        f"{name} {seconds * ARCHITECTURES[name].multiply_adds / 3600:.0f} hours" for name in table if name not in whole
    )
    lines = [
        f"By the paper's whole recipe: {', '.join(one for one in table if one not in whole)}, and the plain networks.",
        f"At {IMAGES_PER_SECOND} images a second of ResNet56, as measured, they take on two cores: {hours}.",
        "No GPU that TensorFlow could use was at hand.",
    ]
    lines += [f"By any recipe: {', '.join(never)}."] if never else []
    lines += [] if seeds else ["Other seeds than 0: the spread over runs is not known, only that over test images."]
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the curves of plain and residual networks side by side, as figure 6 of the paper does, a recipe a panel."""
    from matplotlib.figure import Figure

    panels: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in sorted(runs, key=lambda run: run["recipe"]["name"]):
        kind = "plain" if run["network"].startswith("Plain") else "residual"
        panels.setdefault((run["recipe"]["name"], kind), []).append(run)
    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    places = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, ((recipe, kind), shown) in zip(places, sorted(panels.items()), strict=True):
        for number, run in enumerate(shown):
            draw_run(axes, run, f"C{number}")
        axes.set(
            xlabel="iterations", title=f"{kind}, {RECIPES[recipe].strip('`')} recipe", ylim=(0, 30), xlim=(0, None)
        )
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper right")
    places[0].set_ylabel("error, %")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, metadata={"Software": None})


def draw_run(axes: Any, run: Mapping[str, Any], colour: str) -> None:
    """Draw a run's errors in training, thin, and on test or held-out images, bold."""
    curve = run["curve"]
    steps = [point["step"] for point in curve]
    label = f"{run['network']}, {run['images']:,} images"
    axes.plot(steps, [100 * (1 - point["top1"]) for point in curve], color=colour, linewidth=0.8)
    held = [point for point in curve if "val_top1" in point]
    if held:
        axes.plot(
            [point["step"] for point in held],
            [100 * (1 - point["val_top1"]) for point in held],
            color=colour,
            linewidth=2.2,
        )
    axes.plot(steps[-1], 100 * (1 - run["test"]["top1"]), "o", color=colour, markersize=7, label=label, clip_on=False)


if __name__ == "__main__":
    main()
