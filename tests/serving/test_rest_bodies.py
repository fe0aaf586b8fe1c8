"""JSON bodies: formats, numbers, bytes, and TensorFlow Serving's messages for bad ones."""

from __future__ import annotations

import base64
import json
import math

import numpy as np
import pytest
from endpoints import call, post
from served_models import LABELS, ROW, png, predict, same

MANY_ROW = "Failed to process element: {} key: {} of 'instances' list. Error: INVALID_ARGUMENT: {}"
BAD_BODIES = [
    ("", "JSON Parse error: The document is empty"),
    ("  \n", "JSON Parse error: The document is empty. at offset: 3"),
    ("{,}", "JSON Parse error: Missing a name for object member. at offset: 1"),
    ('{"instances": [1, x]}', "JSON Parse error: Invalid value. at offset: 18"),
    ('{"instances": nul}', "JSON Parse error: Invalid value. at offset: 14"),
    ('{"instances" [1]}', "JSON Parse error: Missing a colon after a name of object member. at offset: 13"),
    ('{"instances": [1 2]}', "JSON Parse error: Missing a comma or ] after an array element. at offset: 17"),
    ('{"instances": [1]', "JSON Parse error: Missing a comma or } after an object member. at offset: 17"),
    ('{"instances": ["a', "JSON Parse error: Missing a closing quotation mark in string. at offset: 17"),
    ('{"instances": ["\\x"]}', "JSON Parse error: Invalid escape character in string. at offset: 16"),
    ('{"instances": ["\\ud800"]}', "JSON Parse error: The surrogate pair in string is invalid. at offset: 16"),
    ('{"instances": [1.]}', "JSON Parse error: Miss fraction part in number. at offset: 17"),
    ('{"instances": [1e999]}', "JSON Parse error: Number too big to be stored in double. at offset: 15"),
    ("[1]", "JSON Value: [1] Is not object"),
    ('{"signature_name": null}', " not formatted correctly. 'signature_name' key must be a string value."),
    ("{}", "Missing 'inputs' or 'instances' key"),
    ('{"signature_name": "no"}', 'Serving signature name: "no" not found in signature def'),
    (
        '{"signature_name": "__saved_model_init_op"}',
        "Failed to get input map for signature: __saved_model_init_op",
    ),
    (
        '{"instances": [1], "inputs": [1]}',
        " Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
    ),
    ('{"instances": 1}', " Expecting 'instances' to be an list/array"),
    ('{"instances": []}', " No values in 'instances' array"),
    (
        '{"instances": [[1, 2]]}',
        "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    (
        '{"inputs": [1]}',
        "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
        "tensorinfo_map",
    ),
    ({"instances": [{**ROW, "z": 1}]}, MANY_ROW.format(0, "z", "JSON object: does not have named input: z")),
    ({"instances": [ROW, {"a": [1, 2]}]}, "Failed to process element: 1 of 'instances' list. JSON object: {"),
    ({"instances": [ROW, {"a": [1, 2]}]}, "keys must be equal to: a,b,s"),
    ({"instances": [ROW, [1]]}, "Expecting object but got list at item 1 of input list"),
    ({"instances": [ROW, {**ROW, "a": [1]}]}, MANY_ROW.format(1, "a", "Expecting tensor size: 2 but got: 1")),
    ({"instances": [ROW, {**ROW, "b": [1]}]}, MANY_ROW.format(1, "b", "Expecting shape [] but got: [1]")),
    (
        {"instances": [{**ROW, "b": 1.5}]},
        MANY_ROW.format(0, "b", "JSON Value: 1.5 Type: Number is not of expected type: int32"),
    ),
    ({"instances": [{**ROW, "b": 2**31}]}, "Type: Number is not of expected type: int32"),
    ({"instances": [{**ROW, "b": True}]}, "JSON Value: true Type: True is not of expected type: int32"),
    ({"instances": [{**ROW, "a": [1, None]}]}, "JSON Value: null Type: Null is not of expected type: float"),
    ({"instances": [{**ROW, "a": [1, "x"]}]}, 'JSON Value: "x" Type: String is not of expected type: float'),
    ({"instances": [{**ROW, "s": 4}]}, "JSON Value: 4 Type: Number is not of expected type: string"),
    ({"instances": [{**ROW, "s": {"b64": "a-_b"}}]}, MANY_ROW.format(0, "s", "Unable to base64 decode")),
    ({"instances": [{**ROW, "s": {"b64": "YQ="}}]}, "Unable to base64 decode"),
    ({"instances": [{**ROW, "s": {"x": "YQ"}}]}, "not formatted correctly for base64 data"),
    ({"inputs": {"a": [[1, 2]], "b": [1]}}, "Missing named input: s in 'inputs' object."),
    (
        {"inputs": {"a": [[1, 2], [3]], "b": [1], "s": ["x"]}},
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    (
        {"inputs": {"a": [[1, 2]], "b": [1, [2]], "s": ["x"]}},
        "Encountered list at unexpected level: 1 expected < 1",
    ),
    (
        {"inputs": {"a": [[1, 2], 3], "b": [1], "s": ["x"]}},
        "JSON Value: 3 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    (
        {"signature_name": "text", "instances": [{"b64": 4}]},
        MANY_ROW.format(0, "b64", "JSON object: does not have named input: b64"),
    ),
    (
        {"signature_name": "text", "instances": [{"b64": "YQ", "x": "a"}]},
        MANY_ROW.format(0, "b64", "JSON object: does not have named input: b64"),
    ),
    ({"signature_name": "text", "instances": [{"x": {"b64": 4}}]}, "not formatted correctly for base64 data"),
    ({"signature_name": "negate", "instances": [1]}, "JSON Value: 1 Type: Number is not of expected type: bool"),
    ({"signature_name": "small", "instances": [2**31]}, "Type: Number is not of expected type: uint8"),
    ({"signature_name": "small", "instances": [1.0]}, "JSON Value: 1.0 Type: Number is not of expected type: uint8"),
    ({"instances": [{**ROW, "b": math.nan}]}, "JSON Value: NaN Type: Number is not of expected type: int32"),
    ({"signature_name": 7, "instances": []}, "'signature_name' key must be a string value."),
    ({"signature_name": "same", "instances": [1, {"a": 1}]}, "Expecting value/list but got object at item 1 of input"),
    (
        {"signature_name": "same", "instances": [1, [2]]},
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: Expecting shape [] but got: [1]",
    ),
    (
        {"signature_name": "batchless", "instances": [1.0]},
        "Tensor name: sum has no shape information ",
    ),
    (
        {"signature_name": "uneven", "instances": [1.0]},
        "Tensor name: x has inconsistent batch size: 1 expecting: 10",
    ),
    ({"signature_name": "to_half", "instances": [1.0]}, "Failed to write JSON value for tensor type: half"),
]


@pytest.mark.parametrize(("body", "message"), BAD_BODIES)
def test_bad_bodies(server, body, message):
    status, answer = predict(server, body)
    assert status == 400
    assert message in answer["error"]


def test_a_shape_that_the_signature_does_not_say_is_left_to_the_graph(server):
    for x in ([[1.0]], 1.0, [[[1.0], [2.0]]]):
        assert predict(server, {"signature_name": "same", "inputs": x}) == (200, {"outputs": x})
    assert predict(server, {"signature_name": "same", "instances": [[1.0, 2.0]]}) == (
        200,
        {"predictions": [[1.0, 2.0]]},
    )


def test_a_type_that_json_cannot_carry(server):
    message = "Conversion of JSON Value: 1.5 to type: half"
    assert predict(server, {"signature_name": "half", "inputs": [1.5]}) == (501, {"error": message})
    # In row format the error is wrapped with the element's number, and what wraps it is an invalid argument.
    wrapped = f"Failed to process element: 0 of 'instances' list. Error: UNIMPLEMENTED: {message}"
    assert predict(server, {"signature_name": "half", "instances": [1.5]}) == (400, {"error": wrapped})


def test_a_long_value_is_cut_in_the_message(server):
    status, answer = predict(server, {"instances": [{**ROW, "b": ["x" * 9000]}]})
    assert status == 400
    assert "is not of expected type: int32" in answer["error"]
    assert len(answer["error"]) < 600


def test_row_and_columnar_format(server):
    rows = [ROW, {"a": [3, 4.5], "b": -6, "s": {"b64": "//8"}}]
    status, answer = predict(server, {"instances": rows[:1] * 2, "signature_name": ""})
    one = {"double_a": [2.0, 4.0], "long_b": 15_000_000_000, "s_bytes": {"b64": "b25l"}, "text": "one"}
    assert (status, answer) == (200, {"predictions": [one, one]})
    columns = {"a": [[1, 2], [3, 4.5]], "b": [5, -6], "s": ["one", {"b64": " d H\nc="}], "extra": "ignored"}
    status, answer = predict(server, {"inputs": columns})
    assert status == 200
    assert answer == {
        "outputs": {
            "double_a": [[2.0, 4.0], [6.0, 9.0]],
            "long_b": [15_000_000_000, -18_000_000_000],
            "s_bytes": [{"b64": "b25l"}, {"b64": "dHc="}],
            "text": ["one", "tw"],
        }
    }
    raw = call(server, "POST", "/v1/models/many:predict", json.dumps({"instances": rows}))[2]
    assert b'"text":"\xff\xff"' in raw, "bytes that are no UTF-8 leave as they are"
    assert predict(server, {"inputs": [2.0], "signature_name": "batchless"})[1] == {"outputs": {"sum": 2.0, "x": [2.0]}}


def test_number_formats(server):
    assert same(server, "[1, 0.5, 0.1, 16777217, 9000000, 0.00003, -0.0]") == (
        '{"predictions":[1.0,0.5,0.1,16777216.0,9e+06,3e-05,-0.0]}'
    )
    assert same(server, "[0.123456789, 3.14159274]") == '{"predictions":[0.123456791,3.14159274]}'
    assert same(server, "[NaN, Infinity, -Infinity, 1e300]") == '{"predictions":[NaN,Infinity,-Infinity,Infinity]}'
    assert same(server, "[0.1, 0.12345678901234567, 2]", signature="same_double") == (
        '{"predictions":[0.1,0.12345678901234566,2.0]}'
    )
    assert same(server, "[7, 255, 256, -1]", signature="small") == '{"predictions":[7,255,0,255]}'
    assert same(server, "[true, false]", signature="negate") == '{"predictions":[false,true]}'
    assert same(server, "[1, 2]", key="inputs") == '{"outputs":[1.0,2.0]}'


def test_every_float32_reads_back(server):
    values = np.random.default_rng(0).standard_normal(500).astype(np.float32)
    answer = json.loads(same(server, json.dumps(values.tolist())))["predictions"]
    assert np.array_equal(np.float32(answer), values)


def test_lenient_json(server):
    deep = "[" * 100_000 + "]" * 100_000
    for text in (
        b'\xef\xbb\xbf {"signature_name": "same", "instances": [1]}',
        b'{"signature_name": "same", "instances": [1]} and what follows',
        b'{"signature_name": "same", "instances": [1], "instances": [2, 3]}',
        b'{"signature_name": "same", "instances": [{"x": 1}]}',
        b'{"signature_name": "same", "instances": [1], "more": ' + deep.encode() + b"}",
        b'{"signature_name": "same", "instances": [1], "emoji": "\\ud83d\\ude00"}',
    ):
        assert predict(server, text) == (200, {"predictions": [1.0]}), text[:60]
    status, answer = predict(server, f'{{"signature_name": "same", "instances": [{deep}]}}')
    assert status == 400 and "tensor parsing error: x" in answer["error"]


def test_the_slow_parser_reads_what_the_fast_one_reads():
    from keras_convnets.export.serving.rest import json_text

    value = {
        "a": [1, -2.5, [], {}, {"b": None, "c": [True, False]}],
        "e\n\u00e9": '"\\/\t',
        "z": [[], [[1]]],
        "n": 2**63,
    }
    for indent in (None, 2):
        text = json.dumps(value, indent=indent)
        assert json_text.parse(text.encode()) == value
        assert json_text.parse(f'{{"\\ud83d\\ude00": {text}}}'.encode()) == {"\U0001f600": value}


def test_images_by_bytes_and_a_bad_one(server):
    images = [{"b64": base64.b64encode(png(colour)).decode()} for colour in LABELS]
    status, answer = predict(server, {"instances": images}, "colours", "/versions/3")
    assert status == 200
    assert np.argmax(answer["predictions"], axis=1).tolist() == [0, 1, 2]
    status, answer = predict(server, {"signature_name": "top_k", "instances": images[:1]}, "colours")
    assert answer["predictions"][0]["classes"][0] == "red"
    for bad in ("plain text", {"b64": "YWJj"}):
        status, answer = predict(server, {"instances": [images[0], bad]}, "colours")
        assert status == 400
        assert "Unknown image file format" in answer["error"]
        assert "Graph execution error" not in answer["error"] and "[Op:" not in answer["error"]
    assert predict(server, {"instances": images}, "colours")[0] == 200


def test_tf1_style_model(server):
    assert predict(server, {"instances": [1, 2]}, "old") == (200, {"predictions": [2.5, 3.0]})


def test_what_lies_outside_of_long_strings():
    from keras_convnets.export.serving.json_strings import outside_strings

    long = b"[{,:e000" * 1000
    assert outside_strings(b'{"b64": "' + long + b'"}') == b"{: }"
    assert outside_strings(b'{"b64": "' + long) == b"{: "
    # Escapes hide quotation marks, and of many short strings every byte counts.
    assert outside_strings(b'["\\"", "' + long + b'"]') is None
    assert outside_strings(b'["a", "b", "c"]' * 500) is None
    assert outside_strings(b"[1, 2]" * 500) == b"[1, 2]" * 500


@pytest.mark.parametrize("image", [b"A" * 40_000, b"[{,:" * 10_000, "é".encode() * 20_000])
def test_the_cost_of_a_body_with_an_image(image):
    from keras_convnets.export.serving.admission import costs

    body = b'{"instances": [{"b64": "' + image + b'"}]}'
    quick, whole = costs.of_whole_json(body), costs.of_json([body])
    copies = 6 if image.isascii() else 12
    assert copies * len(body) < quick <= whole + len(body) // 16
    assert quick < copies * len(body) * 1.02 + 1000
    # Lists outside of strings are counted as ever.
    nested = body + b"[" * 10_000
    assert costs.of_whole_json(nested) > 160 * 10_000


def test_a_number_beyond_a_double_is_found_beside_an_image(server):
    image = "A" * 40_000
    body = f'{{"signature_name": "which", "inputs": [1e999], "note": "{image}"}}'
    status, answer = post(server, "/v1/models/colours:predict", body)
    assert status == 400 and "Number too big" in answer["error"]
    body = f'{{"signature_name": "which", "inputs": [1.5], "note": "e000{image}e000"}}'
    assert post(server, "/v1/models/colours:predict", body)[0] == 200
