"""The report page: metrics of every classifier, paired comparisons, ensembles, and the errors of each classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from keras_convnets.card import current_git_revision, current_versions
from keras_convnets.display import printable
from keras_convnets.errors import UserError
from keras_convnets.files import wrap_write_errors, write_text
from keras_convnets.training.data import DataSet, Split
from keras_convnets.training.evaluation.calibration import calibrate, calibration_error
from keras_convnets.training.evaluation.comparison import Comparison, compare, compare_all, distinct_names
from keras_convnets.training.evaluation.ensembles import Ensemble, Subset
from keras_convnets.training.evaluation.metrics import wilson_interval
from keras_convnets.training.evaluation.predictions import Predictions
from keras_convnets.training.evaluation.report_page import pictures
from keras_convnets.training.evaluation.report_page.contact_sheet import contact_sheet
from keras_convnets.training.evaluation.report_page.html import Html, element, joined, name, table
from keras_convnets.training.evaluation.result import Evaluation

FILE_NAME = "index.html"
MOST_PAIRS, MOST_SUBSETS, MOST_LEFT_OUT = 20, 32, 200
# Content security policy: the page must not load any resource or run scripts.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def report(
    results: Sequence[Evaluation | Predictions],
    directory: str | os.PathLike,
    *,
    images: DataSet | Split | Sequence[Split | None] | None = None,
    ensemble: Ensemble | None = None,
    command: str | None = None,
) -> Path:
    """Write a self-contained, printable HTML page about one or several evaluations.

    The page has top-1 and top-5 errors with n and 95 % confidence intervals, paired comparisons and the errors of
    ensembles. For each classifier, it has the error of every class, the confusion matrix, the calibration before and
    after temperature scaling, the most confident errors, and the images that were left out.

    Args:
        results: evaluations with predictions, or predictions.
        directory: output folder, created if needed; the page is `index.html` in it.
        images: the data set or split of the evaluations, or one split per evaluation, to show misclassified images.
        ensemble: the result of `ensemble` for these predictions; None for no section on ensembles.
        command: the command line that is shown on the page.

    Returns:
        Path of the page.

    Raises:
        UserError: if there are no results, a result has no predictions, or the page can't be written.

    Example:
        >>> report([training.evaluate(model, data)], "report", images=data)
        PosixPath('report/index.html')
    """
    several = [_predictions(result) for result in results]
    if not several:
        raise UserError("a report needs at least one result; give one or more.")
    if Path(directory).is_file():
        raise UserError(f"{directory} is a file; give a folder for the report.")
    names = distinct_names(several)
    sections = [
        _summary(several, names),
        _comparisons(several, ensemble) if len(several) > 1 else None,
        _ensemble(ensemble) if ensemble is not None else None,
        *(_classifier(found, names[at], at, _split_of(images, found, at)) for at, found in enumerate(several)),
        _provenance(command),
    ]
    file = Path(directory) / FILE_NAME
    with wrap_write_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, _page(f"Evaluation on {name(several[0].data)}", joined(sections)))
    return file


def _predictions(result: Evaluation | Predictions) -> Predictions:
    found = result if isinstance(result, Predictions) else result.predictions
    if found is None:
        raise UserError("a result has no predictions; give the result of training.evaluate, or its predictions.")
    return found


def _split_of(images: DataSet | Split | Sequence[Split | None] | None, found: Predictions, at: int) -> Split | None:
    if isinstance(images, DataSet):
        return images.splits.get(found.split)
    return images if images is None or isinstance(images, Split) else images[at]


def _page(title: str, body: Html) -> str:
    style = (resources.files(__package__) / "style.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("title", title),
        element("style", Html(style)),
    )
    return f"<!doctype html>\n{element('html', head, element('body', element('main', body)), lang='en')}\n"


def _summary(several: Sequence[Predictions], names: Sequence[str]) -> Html:
    results = [Evaluation.of_predictions(found) for found in several]
    has_top5 = any(figures.top5_wrong is not None for figures in results)
    rows = []
    for at, (found, figures) in enumerate(zip(several, results, strict=True)):
        top5 = "" if figures.top5_wrong is None else _error(figures.top5_wrong, len(found))
        rows.append([
            element("a", name(names[at]), href=f"#classifier-{at}"),
            *(name(found.key), f"{len(found):,}", _error(figures.top1_wrong, len(found))),
            *([top5] if has_top5 else []),
            *(f"{figures.loss:.3f}", f"{calibration_error(found):.2%}"),
        ])  # fmt: skip
    data = ", ".join(dict.fromkeys(f"{name(found.data)}, split {name(found.split)}" for found in several))
    errors = ["top-1 error", "top-5 error"] if has_top5 else ["top-1 error"]
    heads = ["classifier", "data/split/protocol", "images", *errors, "log loss", "calibration error"]
    note = (
        f"{data}. Errors with Wilson's 95 % confidence intervals; mean cross-entropy (log loss) in nats; expected "
        "calibration error without temperature scaling."
    )
    return joined([
        element("h1", f"Evaluation on {name(several[0].data)}"),
        element("p", note, class_="soft"),
        table(heads, rows, texts=(0, 1)),
    ])  # fmt: skip


def _error(wrong: int, n: int) -> Html:
    low, high = wilson_interval(wrong, n)
    interval = element("span", f"{low:.2%} to {high:.2%}", class_="interval")
    return joined([f"{wrong / n:.2%}", element("br"), interval])


def _comparisons(several: Sequence[Predictions], together: Ensemble | None) -> Html:
    heading = element("h2", "Paired comparisons")
    try:
        found = compare_all(several)
    except UserError as error:
        return joined([heading, element("p", f"The classifiers are not compared: {error}")])
    note = (
        "Top-1 predictions of two classifiers on the same images, compared by McNemar's exact test: p is the "
        "probability of a difference at least as large if both had the same error. A difference is significant if p, "
        "adjusted for the number of pairs by Holm's method, is below 0.05."
    )
    parts = [heading, element("p", note, class_="soft"), _comparison_table(found)]
    if together is not None:
        alone = min(range(len(together.names)), key=lambda member: together.subset([member]).top1_wrong)
        against = compare(together.mean(), together.predictions[alone])
        parts += [
            element("h3", "Full ensemble and best single member"),
            _comparison_table([against]),
        ]
    return joined(parts)


def _comparison_table(found: Sequence[Comparison]) -> Html:
    rows = [
        [
            *(name(row.first), name(row.second), f"{row.only_first:,}", f"{row.only_second:,}"),
            *(f"{row.difference:+.2%}", f"{row.p_value:.2g}", f"{row.adjusted_p_value:.2g}"),
            "neither" if row.better is None else joined([name(row.better), _significance(row)]),
        ]
        for row in found
    ]
    heads = ("A", "B", "only A correct", "only B correct", "error A - error B", "p", "adjusted p", "lower error")
    return table(heads, rows, texts=(0, 1, 7))


def _significance(row: Comparison) -> Html:
    return element("span", " (significant)" if row.significant else " (not significant)", class_="soft")


def _ensemble(together: Ensemble) -> Html:
    def row(found: Subset) -> list[Any]:
        members = " + ".join(name(together.names[member]) for member in found.members)
        top5 = "" if found.top5_wrong is None else _error(found.top5_wrong, found.n)
        return [members, len(found.members), _error(found.top1_wrong, found.n), top5]

    shown = list(together.subsets[:MOST_SUBSETS])
    shown += [together.whole] if together.whole not in shown else []
    evaluated = "all subsets" if together.complete else "single members, a forward selection, and all members but one"
    note = (
        f"Errors of the mean of the members' probabilities for {evaluated}: {len(together.subsets):,} subsets, best "
        "first. The best subset is selected on these images, so its error on new images is expected to be slightly "
        "higher."
    )
    gains = [
        [name(label), "" if gain is None else f"{gain:+.2%}"]
        for label, gain in zip(together.names, together.contributions, strict=True)
    ]
    return joined([
        element("h2", "Ensembles"),
        element("p", note, class_="soft"),
        table(("members", "number of members", "top-1 error", "top-5 error"), map(row, shown)),
        element("h3", "Contribution of each member"),
        element("p", "Increase of the top-1 error of the full ensemble if the member is removed.", class_="soft"),
        table(("member", "increase of the top-1 error"), gains),
    ])  # fmt: skip


def _classifier(found: Predictions, label: str, at: int, images: Split | None) -> Html:
    figures = Evaluation.of_predictions(found)
    wrong = figures.top1_wrong
    errors = (
        element("p", f"{wrong:,} of {len(found):,} images are misclassified.", class_="soft")
        if wrong
        else element("p", "All images are classified correctly.")
    )
    return joined([
        element("h2", name(label), id=f"classifier-{at}"),
        element("h3", "Classes"),
        _class_table(figures),
        element("h3", "Confusion matrix"),
        _confusion(figures, f"c{at}-"),
        element("h3", "Calibration"),
        _calibration_part(found, f"r{at}-"),
        element("h3", "Most confident errors"),
        errors,
        contact_sheet(found, images) if wrong else None,
        _left_out(found),
    ])  # fmt: skip


def _class_table(figures: Evaluation) -> Html:
    rows = []
    names = figures.class_names
    for index, found in enumerate(figures.per_class):
        if not found["n"]:
            continue
        mistakes = figures.confusion[index].copy()
        mistakes[index] = 0
        worst = int(mistakes.argmax())
        taken = f"{name(names[worst])} ({mistakes[worst]})" if mistakes[worst] else ""
        wrong = int(mistakes.sum())
        low, high = wilson_interval(wrong, found["n"])
        cells = [name(names[index]), f"{found['n']:,}", wrong, f"{wrong / found['n']:.1%}", f"{low:.1%} to {high:.1%}"]
        rows.append((-wrong / found["n"], index, [*cells, taken]))
    empty = sum(not found["n"] for found in figures.per_class)
    heads = ("class", "images", "errors", "error rate", "95 % interval", "most often predicted instead")
    return joined([
        table(heads, [cells for *_, cells in sorted(rows, key=lambda row: row[:2])], texts=(0, 5)),
        element("p", f"{empty:,} classes without images are not listed.", class_="soft") if empty else None,
    ])  # fmt: skip


def _confusion(figures: Evaluation, prefix: str) -> Html:
    names, counts = figures.class_names, figures.confusion
    caption = "Rows: true classes; columns: predicted classes. Colour: fraction of the images of the true class."
    if pictures.fits_by_name(len(names)):
        return _picture(pictures.confusion_picture(counts, names, prefix), caption, large=len(names) > 20)
    whole, together = pictures.overview_picture(counts, f"{prefix}all-")
    dots = f" Each cell shows the largest fraction among {together} x {together} classes." if together > 1 else ""
    shown = [_picture(whole, f"All {len(names):,} classes. {caption}{dots}")]
    classes = pictures.most_confused_classes(counts)
    if len(classes):
        inner = counts[classes][:, classes]
        zoomed = pictures.confusion_picture(inner, [names[index] for index in classes], f"{prefix}zoom-")
        text = "The most confused classes, with numbers of images. Predictions of other classes are not shown."
        shown.append(_picture(zoomed, text, large=True))
    pairs = [[name(names[a]), name(names[b]), n] for a, b, n in pictures.most_confused(counts, MOST_PAIRS)]
    return joined([
        element("div", *shown, class_="pictures"),
        element("h3", "Most confused pairs of classes"),
        table(("true class", "predicted class", "images"), pairs, texts=(0, 1)),
    ])  # fmt: skip


def _picture(drawn: Html, caption: str | None = None, large: bool = False) -> Html:
    below = element("figcaption", caption) if caption else None
    return element("figure", drawn, below, class_="picture large" if large else "picture")


def _calibration_part(found: Predictions, prefix: str) -> Html:
    if len(found) < 2:
        return element("p", "Calibration needs at least two images.")
    measured = calibrate(found)
    note = (
        f"Temperature scaling divides the logits by {measured.temperature:.3f}; the predicted classes do not change. "
        f"The temperature was fitted on {measured.fitted:,} images. On the other {measured.measured:,} images, the "
        f"expected calibration error is {measured.before.error:.2%} before and {measured.after.error:.2%} after "
        f"scaling, and the log loss is {measured.loss_before:.3f} before and {measured.loss_after:.3f} after scaling."
    )
    drawn = [
        _picture(pictures.reliability_picture(measured.before, "before scaling", f"{prefix}before-")),
        _picture(pictures.reliability_picture(measured.after, "after scaling", f"{prefix}after-")),
    ]
    return joined([element("p", note, class_="soft"), element("div", *drawn, class_="pictures")])


def _left_out(found: Predictions) -> Html | None:
    if not found.left_out:
        return None
    count = len(found.left_out)
    more = f" The first {MOST_LEFT_OUT}:" if count > MOST_LEFT_OUT else ""
    rows = [[name(image.file), name(image.reason)] for image in found.left_out[:MOST_LEFT_OUT]]
    return joined([
        element("h3", "Images left out"),
        element("p", f"{count:,} of the {count + len(found):,} images do not decode and are not counted.{more}"),
        table(("image", "reason"), rows, texts=(0, 1)),
    ])  # fmt: skip


def _provenance(command: str | None) -> Html:
    versions = {**current_versions(), "git revision": current_git_revision()}
    return joined([
        element("h2", "Command and versions"),
        element("pre", printable(command)) if command else None,
        element("p", ", ".join(f"{what} {value}" for what, value in versions.items() if value), class_="soft"),
    ])  # fmt: skip
