"""Text output of `evaluate`: errors with confidence intervals, classes, comparisons and ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from keras_convnets.display import printable

if TYPE_CHECKING:
    from keras_convnets.training import Evaluation
    from keras_convnets.training.evaluation import Comparison, Ensemble
    from keras_convnets.training.evaluation.ensembles import Subset

NAMES_SHOWN, SUBSETS_SHOWN = 5, 10


def print_evaluation(source: str, result: Evaluation, reason: str = "") -> None:
    """Print the errors of a classifier, the reason for its protocol, the images left out, and the error per class."""
    of = f" of {result.of}" if result.of is not None else ""
    top5 = f", {_error('top-5', result.top5_wrong, result.n)}" if result.top5_wrong is not None else ""
    figures = f"{_error('top-1', result.top1_wrong, result.n)}{top5}"
    print(printable(f"{source}: {figures}  on {result.key}, n={result.n}{of} images (95 % intervals){reason}"))
    _print_left_out(result)
    names = [printable(name) for name in result.class_names]
    width = max(map(len, names))
    print(f"  {'class':<{width}}  {'n':>6}  {'error':>7}  most often predicted instead")
    for index, row in enumerate(result.per_class):
        if row["n"]:
            mistakes = result.confusion[index].copy()
            mistakes[index] = 0
            worst = mistakes.argmax()
            taken = f"{names[worst]} ({mistakes[worst]})" if mistakes[worst] else ""
            print(f"  {names[index]:<{width}}  {row['n']:>6}  {1 - row['top1']:>7.2%}  {taken}".rstrip())


def _error(what: str, wrong: int, n: int) -> str:
    from keras_convnets.training.evaluation.metrics import wilson_interval

    low, high = wilson_interval(wrong, n)
    return f"{what} error {wrong / n:.2%} ({low:.2%} to {high:.2%})"


def _print_left_out(result: Evaluation) -> None:
    left_out = result.predictions.left_out if result.predictions is not None else ()
    if left_out:
        named = "; ".join(f"{image.file} ({image.reason})" for image in left_out[:NAMES_SHOWN])
        more = f" and {len(left_out) - NAMES_SHOWN} more" if len(left_out) > NAMES_SHOWN else ""
        print(printable(f"  {len(left_out)} images left out because they do not decode: {named}{more}"))


def print_comparisons(found: Sequence[Comparison]) -> None:
    """Print the paired comparison of each pair of classifiers."""
    print(f"\nPaired comparisons on the same {found[0].n} images (McNemar's exact test):")
    for row in found:
        print(printable(f"  {row.sentence()}"))


def print_ensemble(found: Ensemble) -> None:
    """Print the errors of the best subsets and of the full ensemble, and the contribution of each member."""
    evaluated = "all subsets" if found.complete else "single members, a forward selection, and all members but one"
    print(f"\nEnsembles (mean of the members' probabilities), n={found.best.n}, {evaluated}, best first:")
    shown = list(found.subsets[:SUBSETS_SHOWN])
    for subset in shown + ([] if found.whole in shown else [found.whole]):
        print(printable(f"  {_subset_text(found, subset)}"))
    if len(found.subsets) > SUBSETS_SHOWN:
        print(f"  ({len(found.subsets)} subsets in total; --json and --report show more)")
    print("  The best subset is selected on these images; expect a slightly higher error on new images.")
    for name, gain in zip(found.names, found.contributions, strict=True):
        if gain is not None:
            print(printable(f"  without {name}, the top-1 error of the full ensemble changes by {gain:+.2%}"))


def _subset_text(found: Ensemble, subset: Subset) -> str:
    members = " + ".join(found.names[member] for member in subset.members)
    top5 = f", {_error('top-5', subset.top5_wrong, subset.n)}" if subset.top5_wrong is not None else ""
    return f"{_error('top-1', subset.top1_wrong, subset.n)}{top5}  {members}"
