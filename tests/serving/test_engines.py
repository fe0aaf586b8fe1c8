"""Turns, batches and engines: who runs when, what runs together, and that each gets its own answer."""

import concurrent.futures
import contextlib
import functools
import gc
import json
import logging
import os
import threading
import time
import urllib.error
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from keras_convnets.errors import UserError
from keras_convnets.export.serving.admission.admission import Admission
from keras_convnets.export.serving.admission.limits import Limits
from keras_convnets.export.serving.scheduling.batching import Batching, BatchingParameters, graph_of
from keras_convnets.export.serving.scheduling.concurrency import ConcurrencyLimit
from keras_convnets.export.serving.scheduling.deadline import deadline
from keras_convnets.export.serving.signatures import Signature, TensorInfo
from keras_convnets.export.serving.status import Code, ServingError
from keras_convnets.images.decoding import UNKNOWN


class Model:
    """Doubles what it gets, notes the rows of each run, and fails where a row is negative."""

    def __init__(self, seconds=0.0, in_rows=True):
        self.runs = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._seconds = seconds
        self._in_rows = in_rows
        self.held = threading.Event()
        self.held.set()

    def __call__(self, inputs):
        x = inputs["x"]
        with self._lock:
            self.runs.append(len(x))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        assert self.held.wait(20)
        time.sleep(self._seconds)
        with self._lock:
            self._at_once -= 1
        if (x < 0).any():
            raise ServingError(Code.INVALID_ARGUMENT, f"{x.min()} is negative")
        return {"y": x * 2} if self._in_rows else {"y": x * 2, "sum": np.float32(x.sum())}


def rows(*values):
    return {"x": np.array(values, np.float32)}


def queue(batching, model, **outputs):
    """Put a model of floats into batches; its outputs are in rows unless another shape is given."""
    infos = {name: TensorInfo(name, "float", outputs.get(name, (None,))) for name in sorted({"y", *outputs})}
    signature = Signature("double", {"x": TensorInfo("x", "float", None)}, infos)
    return batching.queue(model, signature, graph_of(model, signature))


@contextlib.contextmanager
def at_once(count):
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        yield pool


def wait_for(holds, seconds=20):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.002)


def error_of(future):
    with pytest.raises(ServingError) as caught:
        future.result(timeout=20)
    return caught.value.code


def test_at_most_so_many_run_and_so_many_wait():
    model = Model()
    model.held.clear()
    turns = ConcurrencyLimit(at_once=2, waiting=3)
    run = turns.queue(model)
    with at_once(8) as pool:
        accepted = [pool.submit(run, rows(n)) for n in range(5)]
        wait_for(lambda: turns._waiting == 3)
        refused = pool.submit(run, rows(9))
        assert error_of(refused) is Code.RESOURCE_EXHAUSTED
        model.held.set()
        assert [future.result(20)["y"].tolist() for future in accepted] == [[2.0 * n] for n in range(5)]
    assert model.most_at_once == 2 and len(model.runs) == 5
    assert run(rows(1))["y"].tolist() == [2.0], "a full queue empties again"


@pytest.mark.parametrize("scheduler, requests, rows_run", [
    (ConcurrencyLimit(at_once=3), 3, {1}),
    (Batching(BatchingParameters(max_batch_size=4, batch_timeout_micros=10**6)), 8, {4}),
    (Batching(BatchingParameters(max_batch_size=4000)), 1000, {1}),
], ids=["by itself", "in batches", "in large batches"])  # fmt: skip
def test_what_a_scheduler_says_of_itself_and_does(scheduler, requests, rows_run):
    model = Model()
    run = queue(scheduler, model)
    assert scheduler.requests_at_once == requests
    count = max(rows_run)
    with at_once(count) as pool:
        answers = list(pool.map(lambda n: run(rows(n))["y"].tolist(), range(count)))
    assert answers == [[2.0 * n] for n in range(count)]
    assert set(model.runs) == rows_run


def test_expired_requests_are_not_run():
    model = Model()
    model.held.clear()
    run = ConcurrencyLimit(1, 8).queue(model)

    def late():
        with deadline(time.monotonic() + 0.05):
            return run(rows(7))

    with at_once(4) as pool:
        first = pool.submit(run, rows(1))
        wait_for(lambda: model.runs)
        second, third = pool.submit(late), pool.submit(run, rows(2))
        time.sleep(0.15)
        model.held.set()
        assert error_of(second) is Code.DEADLINE_EXCEEDED
        assert (first.result(20)["y"].tolist(), third.result(20)["y"].tolist()) == ([2.0], [4.0])
    assert sum(model.runs) == 2
    with deadline(time.monotonic() - 1), pytest.raises(ServingError, match="deadline"):
        run(rows(1))


def test_a_deadline_that_passes_before_or_in_a_batch():
    model = Model()
    run = queue(Batching(BatchingParameters(max_batch_size=4, batch_timeout_micros=100_000)), model)
    with deadline(time.monotonic() - 1), pytest.raises(ServingError, match="deadline"):
        run(rows(1))
    assert model.runs == []
    with deadline(time.monotonic() + 0.01), pytest.raises(ServingError, match="deadline"):
        run(rows(1))


def test_requests_of_the_same_time_run_together():
    model = Model(seconds=0.01)
    parameters = BatchingParameters(max_batch_size=16, num_batch_threads=1, max_enqueued_batches=20)
    run = queue(Batching(parameters), model)
    with at_once(16) as pool:
        answers = list(pool.map(lambda n: run(rows(n))["y"].tolist(), range(200)))
    assert answers == [[2.0 * n] for n in range(200)], "each gets its own answer"
    assert sum(model.runs) == 200 and max(model.runs) <= 16
    assert len(model.runs) < 60
    assert model.most_at_once == 1


def test_a_batch_waits_for_more_but_not_longer_than_it_may():
    model = Model()
    run = queue(Batching(BatchingParameters(max_batch_size=3, batch_timeout_micros=20_000_000)), model)
    with at_once(3) as pool:
        assert [answer["y"].tolist() for answer in pool.map(run, [rows(1), rows(2), rows(3)])] == [[2], [4], [6]]
    assert model.runs == [3], "a full batch does not wait"
    quick = queue(Batching(BatchingParameters(max_batch_size=3, batch_timeout_micros=100_000)), model)
    quick(rows(1))
    began = time.monotonic()
    quick(rows(1))
    assert 0.09 < time.monotonic() - began < 10
    assert model.runs == [3, 1, 1]


def test_one_bad_row_spoils_no_other_answer():
    model = Model()
    numbers = {"max_batch_size": 8, "batch_timeout_micros": 20_000_000, "num_batch_threads": 1}
    run = queue(Batching(BatchingParameters(**numbers)), model)
    with at_once(8) as pool:
        futures = [pool.submit(run, rows(-1 if n == 5 else n)) for n in range(8)]
        for n, future in enumerate(futures):
            if n == 5:
                assert error_of(future) is Code.INVALID_ARGUMENT
            else:
                assert future.result(20)["y"].tolist() == [2.0 * n]
    assert model.runs[0] == 8 and model.runs[1:] == [1] * 8


def test_a_full_queue_of_batches_refuses():
    model = Model()
    model.held.clear()
    run = queue(Batching(BatchingParameters(max_batch_size=1, num_batch_threads=1, max_enqueued_batches=2)), model)
    with at_once(8) as pool:
        running = pool.submit(run, rows(1))
        wait_for(lambda: model.runs)
        waiting = [pool.submit(run, rows(n)) for n in (2, 3)]
        # Only the scheduler knows when the two stand in its queue.
        time.sleep(0.5)
        refused = pool.submit(run, rows(4))
        with pytest.raises(ServingError, match="currently 2 batches enqueued and max_enqueued_batches is 2") as caught:
            refused.result(timeout=20)
        assert caught.value.code is Code.RESOURCE_EXHAUSTED
        model.held.set()
        assert [future.result(20)["y"].tolist() for future in (running, *waiting)] == [[2.0], [4.0], [6.0]]
    assert model.runs == [1, 1, 1]
    assert run(rows(5))["y"].tolist() == [10.0], "a full queue empties again"


def test_allowed_sizes_are_filled_up_and_larger_requests_refused():
    model = Model()
    run = queue(Batching(BatchingParameters(max_batch_size=8, allowed_batch_sizes=(4, 8))), model)
    assert run(rows(1, 2, 3))["y"].tolist() == [2.0, 4.0, 6.0]
    assert run(rows(*range(5)))["y"].tolist() == [0.0, 2.0, 4.0, 6.0, 8.0]
    with pytest.raises(ServingError, match="Task size 11 is larger than maximum input batch size 8") as caught:
        run(rows(*range(11)))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert model.runs == [4, 8]


@pytest.mark.parametrize("numbers", [{"max_execution_batch_size": 4}, {"allowed_batch_sizes": (2, 4)}])
def test_a_large_request_is_split_where_that_is_allowed(numbers):
    model = Model()
    if "max_execution_batch_size" not in numbers:
        numbers = {**numbers, "max_execution_batch_size": 4}
    parameters = BatchingParameters(max_batch_size=16, enable_large_batch_splitting=True, **numbers)
    assert queue(Batching(parameters), model)(rows(*range(11)))["y"].tolist() == [2.0 * n for n in range(11)]
    assert max(model.runs) == 4 and len(model.runs) == 3


def test_what_is_not_in_rows_runs_by_itself():
    parameters = BatchingParameters(max_batch_size=2, batch_timeout_micros=20_000_000)
    unbatched = Model(in_rows=False)
    assert float(queue(Batching(parameters), unbatched, sum=())(rows(5))["sum"]) == 5.0
    assert unbatched.runs == [1], "by its shape"
    model = Model(in_rows=False)
    run = queue(Batching(parameters), model, sum=None)
    with at_once(2) as pool:
        assert sorted(float(answer["sum"]) for answer in pool.map(run, [rows(1), rows(2)])) == [1.0, 2.0]
    assert model.runs == [2, 1, 1]
    assert float(run(rows(5))["sum"]) == 5.0
    assert model.runs == [2, 1, 1, 1]


def test_other_shapes_are_not_stacked():
    model = Model()
    run = queue(Batching(BatchingParameters(max_batch_size=2, batch_timeout_micros=20_000_000)), model)
    with at_once(2) as pool:
        wide = pool.submit(run, {"x": np.ones([1, 3], np.float32)})
        assert run({"x": np.ones([1, 2], np.float32)})["y"].shape == (1, 2)
        assert wide.result(20)["y"].shape == (1, 3)
    assert model.runs == [1, 1]


class Pairs(tf.Module):
    """A signature of one shape, over a graph that does not mind another rank as long as the last size is 2."""

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def serve(self, x):
        return {"y": tf.linalg.matvec(tf.constant([[1.0, 0.0], [1.0, 1.0]]), x)}


@pytest.mark.parametrize("parameters", [None, BatchingParameters(max_batch_size=2)])
def test_the_graph_decides_which_shapes_it_takes(tmp_path, parameters):
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    module = Pairs()
    tf.saved_model.save(module, str(tmp_path), {"serving_default": module.serve})
    few = Admission(Limits(max_request_rows=3))
    engine = SavedModelEngine(tmp_path, parameters and Batching(parameters), few)
    for x, y in [([[1, 2]], [[1, 3]]), ([1, 2], [1, 3]), ([[[1, 2]], [[3, 4]]], [[[1, 3]], [[3, 7]]])]:
        assert engine.run("serving_default", {"x": np.array(x, np.float32)})["y"].tolist() == y
    for bad in (np.ones([1, 3], np.float32), np.float32(1).reshape(())):
        with pytest.raises(ServingError, match=r"(?i)matrix size-incompatible|dim|shape") as caught:
            engine.run("serving_default", {"x": bad})
        assert caught.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(ServingError, match="has 4 rows; the server allows 3"):
        engine.run("serving_default", {"x": np.ones([1, 4, 2], np.float32)})


@pytest.mark.parametrize(
    ("dtype", "expected", "shape", "rows"),
    [
        ("uint8", (None, 4, 4, 3), (9, 4, 4, 3), 0),
        ("uint8", (None, 4, 4, 3), (1, 8, 9, 3), 5),
        ("uint8", (None, None, None, 3), (1, 8, 9, 1), 0),
        ("string", (None,), (2, 500), 1000),
        ("float", (None,), (2, 500), 0),
        ("float", None, (2, 500), 0),
        ("float", (None, 0), (2, 5), 10),
    ],
)
def test_how_many_rows_a_tensor_of_another_shape_is_worth(dtype, expected, shape, rows):
    assert TensorInfo("x", dtype, expected).rows_worth(shape) == rows


def save_old(path):
    """A SavedModel as TensorFlow 0.12 wrote it, where a placeholder of no dimensions has any shape."""
    from tensorflow.core.protobuf import saved_model_pb2

    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        x = v1.placeholder(tf.float32, None, name="x")
        info = v1.saved_model.utils.build_tensor_info
        signature = v1.saved_model.build_signature_def({"x": info(x)}, {"y": info(tf.transpose(x, [1, 0]))}, "m")
        builder = v1.saved_model.Builder(str(path))
        builder.add_meta_graph_and_variables(session, ["serve"], {"serving_default": signature})
        builder.save()
    file = path / "saved_model.pb"
    saved = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    (graph,) = saved.meta_graphs
    graph.graph_def.versions.producer = 21
    (placeholder,) = (node for node in graph.graph_def.node if node.op == "Placeholder")
    signature = graph.signature_def["serving_default"]
    for shape in (placeholder.attr["shape"].shape, *(signature.inputs[n].tensor_shape for n in signature.inputs)):
        shape.Clear()
    file.write_bytes(saved.SerializeToString())
    return signature


def test_a_graph_from_before_placeholders_had_shapes_loads(tmp_path):
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    signature = save_old(tmp_path / "1")
    (tmp_path / "1" / "assets").mkdir(exist_ok=True)
    engine = SavedModelEngine(tmp_path / "1")
    assert engine.run("serving_default", {"x": np.float32([[1, 2]])})["y"].tolist() == [[1], [2]]
    assert engine.signature_defs["serving_default"] == signature, "the metadata tell what the file says"
    folder = engine._folder.name
    assert os.path.isdir(folder)
    del engine
    gc.collect()
    assert not os.path.exists(folder)


def test_an_unexpected_error_reaches_every_request():
    def broken(inputs):
        raise ServingError(Code.INTERNAL, "no reason")

    run = queue(Batching(BatchingParameters(max_batch_size=2, batch_timeout_micros=20_000_000)), broken)
    with at_once(2) as pool:
        futures = [pool.submit(run, rows(n)) for n in range(2)]
        assert [error_of(future) for future in futures] == [Code.INTERNAL] * 2


def noted_queues(monkeypatch):
    """Return the list to which each queue's name is added when it is taken."""
    names, queue_name = [], Batching.queue_name

    def noted(self, owner):
        names.append(queue_name(self, owner))
        return names[-1]

    monkeypatch.setattr(Batching, "queue_name", noted)
    return names


def test_versions_that_come_and_go_leave_no_threads_and_no_queues(saved, monkeypatch):
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    names = noted_queues(monkeypatch)
    batching = Batching(BatchingParameters(max_batch_size=2))
    threads = []
    for colour in (7, 8, 9, 10):
        engine = SavedModelEngine(saved, batching)
        assert engine.run("serving_default", {"image_bytes": np.array([png(colour)], object)})["means"][0, 0] == colour
        threads.append(len(os.listdir("/proc/self/task")))
        del engine
        gc.collect()
    assert threads[0] == threads[-1], threads
    assert len(names) == 4 and len(set(names)) == 1, names


def test_a_queue_that_is_used_again_runs_what_its_new_owner_has(monkeypatch):
    names = noted_queues(monkeypatch)
    batching = Batching(BatchingParameters(max_batch_size=4, num_batch_threads=1))
    first, second = queue(batching, Model()), queue(batching, Model())
    assert first(rows(1))["y"].tolist() == second(rows(1))["y"].tolist() == [2.0]
    del first
    gc.collect()
    model = Model()
    third = queue(batching, lambda inputs: model({"x": inputs["x"] + 10}))
    with at_once(8) as pool:
        answers = list(pool.map(lambda n: (second(rows(n))["y"].tolist(), third(rows(n))["y"].tolist()), range(32)))
    assert answers == [([2.0 * n], [2.0 * n + 20]) for n in range(32)]
    assert len(names) == 3 and names[2] == names[0] != names[1]


@pytest.mark.parametrize(
    "numbers",
    [
        {"max_batch_size": 0},
        {"batch_timeout_micros": -1},
        {"max_enqueued_batches": 0},
        {"num_batch_threads": 0},
        {"max_batch_size": 8, "allowed_batch_sizes": (2, 4)},
        {"max_batch_size": 8, "allowed_batch_sizes": (4, 2, 8)},
        {"max_batch_size": 8, "max_execution_batch_size": 4},
        {"max_batch_size": 8, "enable_large_batch_splitting": True, "max_execution_batch_size": 16},
    ],
)
def test_parameters_that_cannot_be_used(numbers):
    with pytest.raises(UserError, match="must"):
        BatchingParameters(**numbers)


class Images(tf.Module):
    """The mean of each channel, of images of any size."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="image_bytes")])
    def serve(self, image_bytes):
        def mean(data):
            return tf.reduce_mean(tf.cast(tf.io.decode_png(data, channels=3), tf.float32), [0, 1])

        return {"means": tf.map_fn(mean, image_bytes, fn_output_signature=tf.TensorSpec([3], tf.float32))}


def png(colour):
    return tf.io.encode_png(np.full((4, 4, 3), colour, np.uint8)).numpy()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "1"
    module = Images()
    tf.saved_model.save(module, str(path), {"serving_default": module.serve})
    return path


def test_a_saved_model_in_batches_with_a_bad_image(saved, caplog):
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    caplog.set_level(logging.DEBUG, "keras_convnets.export.serving.scheduling.batching")
    engine = SavedModelEngine(saved, Batching(BatchingParameters(max_batch_size=8, num_batch_threads=1)))

    def one(n):
        data = b"no image" if n == 20 else png(n)
        try:
            return engine.run("serving_default", {"image_bytes": np.array([data], object)})["means"].tolist()
        except ServingError as error:
            return error.code

    with at_once(16) as pool:
        answers = list(pool.map(one, range(64)))
    assert answers == [Code.INVALID_ARGUMENT if n == 20 else [[n, n, n]] for n in range(64)]
    sizes = [int(record.args[0]) for record in caplog.records]
    assert sum(sizes) == 64 and len(sizes) < 48 and max(sizes) <= 8, sizes


def test_a_full_queue_is_429_over_rest_and_the_state_is_still_told(saved):
    pytest.importorskip("uvicorn")
    pytest.importorskip("tensorflow_serving.apis")
    from keras_convnets.export.serving import ModelServer

    with ModelServer({"m": saved.parent}, port=0, rest_api_port=0, max_queued_requests=2) as server:
        url = f"http://127.0.0.1:{server.rest_api_port}/v1/models/m"
        body = json.dumps({"instances": ["x"]}).encode()

        def ask():
            try:
                with urllib.request.urlopen(f"{url}:predict", body, timeout=30) as response:
                    return response.status
            except urllib.error.HTTPError as error:
                return error.code

        turns = server._scheduler
        with contextlib.ExitStack() as stack, at_once(12) as pool:
            for _ in range(turns._at_once):
                stack.enter_context(turns.slot())
            waiting = [pool.submit(ask) for _ in range(2)]
            wait_for(lambda: turns._waiting == 2)
            assert [future.result(20) for future in [pool.submit(ask) for _ in range(9)]] == [429] * 9
            with urllib.request.urlopen(url, timeout=30) as response:
                assert "AVAILABLE" in response.read().decode()
            stack.close()
            assert [future.result(20) for future in waiting] == [400] * 2, "a text is no image"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """What an export of a small network holds, with ONNX files of channels last and first."""
    import keras

    from keras_convnets.card import ModelCard
    from keras_convnets.export.formats.onnx import write_onnx
    from keras_convnets.export.formats.saved_model import write_saved_model
    from keras_convnets.images.preprocessing import Preprocessing
    from keras_convnets.images.view import View

    keras.utils.set_random_seed(0)
    images = keras.Input([32, 32, 3], name="images")
    x = keras.layers.Rescaling(1 / 255)(images)
    x = keras.layers.Conv2D(8, 3, strides=2, activation="relu")(x)
    x = keras.layers.Dense(10, activation="softmax")(keras.layers.Flatten()(x))
    network = keras.Model(images, {"probabilities": x})
    card = ModelCard(
        architecture="small",
        arguments={"classes": 10, "input_shape": [32, 32, 3]},
        class_names=tuple(f"class {n}" for n in range(10)),
        preprocessing=Preprocessing(mean=(0.0, 0.0, 0.0)),
        view=View.of_size(32, 32),
    )
    folders = []
    for layout in ("nhwc", "nchw"):
        folder = tmp_path_factory.mktemp(layout)
        write_saved_model(network, card, folder)
        write_onnx(network, card, folder / "model.onnx", layout)
        (folder / "assets.extra").mkdir()
        card.write(folder / "assets.extra")
        folders.append(folder)
    return folders


def photographs():
    rng = np.random.default_rng(0)
    return [tf.io.encode_jpeg(rng.integers(0, 256, size, np.uint8)).numpy() for size in ((40, 60, 3), (32, 32, 3))]


def example(data):
    feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[data]))
    features = tf.train.Features(feature={"image/encoded": feature})
    return tf.train.Example(features=features).SerializeToString()


def test_both_engines_agree(exported):
    from keras_convnets.export.serving.engines.onnx import SIGNATURES, OnnxEngine
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    encoded = np.array(photographs(), object)
    pixels = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), np.uint8)
    inputs = {
        "serving_default": {"image_bytes": encoded},
        "top_k": {"image_bytes": encoded},
        "predict_images": {"images": pixels},
        "classify": {"inputs": np.array([example(data) for data in encoded], object)},
    }
    theirs = SavedModelEngine(exported[0])
    for path in exported:
        ours = OnnxEngine(path)
        assert set(ours.signatures) == set(SIGNATURES) == set(inputs)
        for name, arrays in inputs.items():
            expected, found = theirs.run(name, arrays), ours.run(name, arrays)
            assert list(found) == list(expected)
            for alias, array in found.items():
                assert array.dtype == expected[alias].dtype
                if array.dtype == object:
                    assert array.tolist() == expected[alias].tolist()
                else:
                    np.testing.assert_allclose(array, expected[alias], rtol=0, atol=1e-5)
        for shape in ((3, 32, 3), (1, 16, 32, 3)):
            with pytest.raises(ServingError, match=r"does not fit the signature's \[\?,32,32,3\]") as caught:
                ours.run("predict_images", {"images": np.zeros(shape, np.uint8)})
            assert caught.value.code is Code.INVALID_ARGUMENT
        with pytest.raises(ServingError) as caught:
            ours.run("serving_default", {"image_bytes": np.array([b"no image"], object)})
        assert caught.value.code is Code.INVALID_ARGUMENT and caught.value.message == UNKNOWN


def test_both_engines_agree_in_batches_of_many_clients(exported):
    """More batches at once than TensorFlow has threads: none may wait for what another holds."""
    from keras_convnets.export.serving.engines.onnx import OnnxEngine
    from keras_convnets.export.serving.engines.saved_model import SavedModelEngine

    encoded = [*photographs(), b"no image"] * 8
    parameters = BatchingParameters(max_batch_size=4, num_batch_threads=4, max_enqueued_batches=100)

    def answer(engine, data):
        try:
            return engine.run("serving_default", {"image_bytes": np.array([data], object)})["probabilities"]
        except ServingError as error:
            return error

    answers = []
    for kind in (SavedModelEngine, OnnxEngine):
        engine = kind(exported[0], Batching(parameters))
        with at_once(16) as pool:
            answers.append(list(pool.map(functools.partial(answer, engine), encoded)))
    for data, theirs, ours in zip(encoded, *answers, strict=True):
        if data == b"no image":
            assert theirs.code is ours.code is Code.INVALID_ARGUMENT
            assert theirs.message == ours.message == UNKNOWN
        else:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


def test_a_saved_model_without_an_onnx_file_does_not_load(saved):
    from keras_convnets.export.serving.engines.onnx import OnnxEngine

    with pytest.raises(ServingError, match=r"has no model\.onnx; export it with --formats onnx") as caught:
        OnnxEngine(saved)
    assert caught.value.code is Code.NOT_FOUND
