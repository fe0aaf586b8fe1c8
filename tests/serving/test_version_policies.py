"""Version policies, labels and models that have no version yet."""

from __future__ import annotations

import pytest
from served_versions import ALL, FakeEngine, available, config_of, entry, fails, folders, label, specific, started

from keras_convnets.errors import UserError
from keras_convnets.export.serving.models.model import State
from keras_convnets.export.serving.models.servables import Servables
from keras_convnets.export.serving.status import Code


def latest(count):
    return f"model_version_policy {{ latest {{ num_versions: {count} }} }}"


@pytest.mark.parametrize(
    ("policy", "served"),
    [("", [12]), (latest(2), [12, 3]), (latest(0), [12]), (latest(9), [12, 3, 2]), (ALL, [12, 3, 2])]
    + [(specific(2), [2]), (specific(3, 2), [3, 2])],
)
def test_policies(tmp_path, policy, served):
    folders(tmp_path, "2", "0003", "12", "no")
    assert available(started(config_of(entry(tmp_path, policy)))) == served


def test_missing_specific_versions_only_warn(tmp_path, caplog):
    folders(tmp_path, 1, 2)
    servables = started(config_of(entry(tmp_path, specific(2, 7))))
    servables.poll()
    assert available(servables) == [2]
    assert [record.getMessage() for record in caplog.records] == [
        f"Model m has no version 7 in {tmp_path}, which its policy asks for"
    ]
    folders(tmp_path, 7)
    servables.poll()
    assert available(servables) == [7, 2]
    with pytest.raises(UserError, match="holds versions 1, 2, 7, and its version policy asks for 9"):
        started(config_of(entry(tmp_path, specific(9))))


def test_a_policy_changes_while_serving(tmp_path):
    folders(tmp_path, 1, 2, 3)
    servables = started(config_of(entry(tmp_path)))
    for policy, served in [(ALL, [3, 2, 1]), (specific(1), [1]), (latest(2), [3, 2]), ("", [3])]:
        servables.reload(config_of(entry(tmp_path, policy)))
        assert available(servables) == served
    assert [(item.version, item.state) for item in servables.status("m")] == [
        (3, State.AVAILABLE),
        (2, State.END),
        (1, State.END),
    ]


def test_the_new_version_is_there_before_the_old_one_goes(tmp_path):
    folders(tmp_path, 1)
    seen = []

    class Watching(FakeEngine):
        def __init__(self, path):
            seen.append((path.name, available(servables) if path.name != "1" else []))

    servables = Servables({"m": tmp_path}, load=Watching)
    servables.load_initial()
    folders(tmp_path, 2)
    servables.poll()
    assert seen == [("1", []), ("2", [1])]
    assert available(servables) == [2]


def test_a_rollback_to_a_broken_version_keeps_what_is_served(tmp_path):
    folders(tmp_path, 1, 2)
    (tmp_path / "1" / "broken").mkdir()
    servables = started({"m": tmp_path}, max_num_load_retries=0)
    servables.reload(config_of(entry(tmp_path, specific(1))))
    assert available(servables) == [2]
    assert servables.status("m", 1)[0].error.code is Code.DATA_LOSS


def test_one_broken_version_of_several_is_reported_and_tried_again(tmp_path):
    folders(tmp_path, 1, 2)
    (tmp_path / "2" / "broken").mkdir()
    servables = started(config_of(entry(tmp_path, ALL)), load_retry_interval_seconds=0.0)
    assert available(servables) == [1]
    assert servables.status("m", 2)[0].state is State.LOADING
    (tmp_path / "2" / "broken").rmdir()
    servables.poll()
    assert available(servables) == [2, 1]


def test_labels(tmp_path):
    folders(tmp_path, 1, 2, 3)
    both = latest(2)
    servables = started(config_of(entry(tmp_path, both)))
    stable = label("stable", 2)
    servables.reload(config_of(entry(tmp_path, both, stable + label("canary", 3))))
    for name, version in [("stable", 2), ("canary", 3)]:
        with servables.use("m", label=name) as servable:
            assert servable.version == version
    for model in ("m", "unknown"):
        fails(
            Code.INVALID_ARGUMENT, "Unrecognized servable version label: x", servables.use(model, None, "x").__enter__
        )
    message = "Request to assign label to version 1 of model m, which is not currently available for inference"
    for labels in (stable + label("old", 1), label("stable", 1)):
        changed = config_of(entry(tmp_path, both, labels))
        fails(Code.FAILED_PRECONDITION, message, servables.reload, changed)
    with servables.use("m", label="canary"):
        pass
    servables.reload(config_of(entry(tmp_path, both, stable)))
    gone = "Unrecognized servable version label: canary"
    fails(Code.INVALID_ARGUMENT, gone, servables.use("m", None, "canary").__enter__)


def test_labels_for_versions_that_are_not_available(tmp_path):
    folders(tmp_path, 1, 2)
    labelled = config_of(entry(tmp_path, labels=label("stable", 2)))
    with pytest.raises(UserError, match="version 2 of model m, which is not currently available"):
        started(labelled)
    servables = started(labelled, allow_version_labels_for_unavailable_models=True)
    new = config_of(entry(tmp_path, labels=label("stable", 2) + label("old", 1)))
    servables.reload(new)
    fails(Code.NOT_FOUND, "Servable not found for request: Specific(m, 1)", servables.use("m", None, "old").__enter__)
    moved = config_of(entry(tmp_path, labels=label("stable", 1)))
    message = "Request to assign label to version 1 of model m, which is not currently available for inference"
    fails(Code.FAILED_PRECONDITION, message, servables.reload, moved)
