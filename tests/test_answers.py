"""Answers: what is asked of a vision-language model, and what is read in what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from rsseg.ops.answers import parse, question

NAMES = ("building", "low vegetation", None, "bus", "factory")
SQUARE = (100, 100)


def read(text, frame=SQUARE, size=SQUARE, names=NAMES):
    return parse(text, names, frame, size)


def entry(*box, label="building", key="bbox_2d"):
    return json.dumps({key: box, "label": label})


def test_the_question_names_classes_form_and_unit():
    asked = question(["building", "low vegetation"], "pixels")
    assert "list and locate all visible classes" in asked.lower()
    assert "building, low vegetation" in asked
    assert "bbox_2d" in asked
    assert "pixels" in asked
    assert "1000" in question(["building"], "thousandths")


LIST = f"[{entry(10, 20, 30, 40)}, {entry(1, 2, 50, 60, label='bus')}]"


@pytest.mark.parametrize(
    "text",
    [
        LIST,
        f"```json\n{LIST}\n```",
        f"Here is what I see:\n```\n{LIST}\n```\nAnything else?",
        LIST.replace('"', "'"),
        LIST.replace("}]", "},]"),
        f'{{"objects": {LIST}}}',
        LIST.replace(", {", "\n{"),
        LIST.replace("bbox_2d", "bbox").replace("label", "class"),
        LIST.replace("10, 20", '"10", 20.0'),
        "building: [10, 20, 30, 40]\nbus: [1, 2, 50, 60]",
        "- **Building**: (10, 20, 30, 40)\n- **Bus** (1,2,50,60)",
        '{"building": [10, 20, 30, 40], "bus": [1, 2, 50, 60]}',
        "1. building 1: [10.0, 20.0, 30.0, 40.0].\n2. buses: [1, 2, 50, 60].",
    ],
)
def test_forms_of_an_answer(text):
    answer = read(text)
    assert_array_equal(answer.boxes, [[10, 20, 30, 40], [1, 2, 50, 60]])
    assert_array_equal(answer.classes, [0, 3])
    assert not answer.unknown
    assert not answer.rejected
    assert answer.readable


@pytest.mark.parametrize("cut", range(len(entry(10, 20, 30, 40)) + 4, len(LIST) - 1))
def test_what_is_whole_in_a_tail_that_is_cut_off(cut):
    answer = read(LIST[:cut])
    assert_array_equal(answer.boxes[0], [10, 20, 30, 40])
    assert len(answer.boxes) == 1
    assert not answer.unknown
    assert answer.rejected == {"malformed": 1}


@pytest.mark.parametrize("cut", range(len(entry(10, 20, 30, 40))))
def test_an_only_entry_that_is_cut_off_says_nothing(cut):
    answer = read(entry(10, 20, 30, 40)[:cut])
    assert len(answer.boxes) == 0
    assert not answer.unknown
    assert not answer.readable


def test_several_boxes_after_one_name():
    answer = read("Buildings: [10, 20, 30, 40], [50, 60, 70, 80]\nbus: [1, 1, 9, 9]")
    assert_array_equal(answer.classes, [0, 0, 3])


@pytest.mark.parametrize(
    ("written", "index"),
    [
        ("Building", 0),
        ("BUILDINGS", 0),
        (" building ", 0),
        ("building_3", 0),
        ("building 12", 0),
        ("low_vegetation", 1),
        ("Low-Vegetation", 1),
        ("low  vegetations", 1),
        ("buses", 3),
        ("factories", 4),
        ("house", None),
        ("outbuilding", None),
        ("building and bus", None),
        ("", None),
    ],
)
def test_names_of_classes(written, index):
    answer = read(f"[{entry(10, 20, 30, 40, label=written)}]")
    assert answer.classes.tolist() == ([] if index is None else [index])
    assert sum(answer.unknown.values()) == (index is None)
    assert answer.readable


def test_a_plural_class_is_recognised_in_the_singular():
    assert_array_equal(read(entry(0, 0, 9, 9, label="tree"), names=("trees", "tree")).classes, [1])
    assert_array_equal(read(entry(0, 0, 9, 9, label="Tree"), names=("car", "trees")).classes, [1])
    assert_array_equal(read(entry(0, 0, 9, 9, label="city"), names=("cities",)).classes, [0])


def test_a_class_that_was_not_asked_for_is_unknown():
    answer = read(entry(0, 0, 9, 9, label="background"))
    assert answer.unknown == {"background": 1}


def test_unknown_names_are_counted_and_kept_short():
    answer = read(f"[{entry(0, 0, 9, 9, label='Pool')}, {entry(0, 0, 8, 8, label='pool')}]")
    assert answer.unknown == {"pool": 2}
    assert len(next(iter(read(entry(0, 0, 9, 9, label="x" * 999)).unknown))) == 40


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ((30, 20, 10, 40), "reversed"),
        ((10, 40, 30, 20), "reversed"),
        ((100, 0, 120, 50), "outside"),
        ((0, -20, 50, 0), "outside"),
        ((10, 10, 10, 50), "empty"),
        ((10, 10, 10.5, 50), "empty"),
        ((99.5, 10, 150, 50), "empty"),
        ((1, 2, 3), "malformed"),
        ((1, 2, 3, "x"), "malformed"),
        ((1, 2, 3, None), "malformed"),
        ((1, 2, 3, float("nan")), "malformed"),
        ((1, 2, 3, float("inf")), "malformed"),
    ],
)
def test_boxes_that_say_nothing(box, reason):
    answer = read(f"[{entry(*box)}, {entry(1, 2, 50, 60)}]")
    assert_array_equal(answer.boxes, [[1, 2, 50, 60]])
    assert answer.rejected == {reason: 1}


def test_an_entry_without_a_name_is_malformed():
    answer = read('[{"bbox_2d": [1, 2, 50, 60]}, {"bbox_2d": [1, 2, 50, 60], "label": 7}]')
    assert answer.rejected == {"malformed": 2}
    assert not answer.readable


def test_boxes_are_cut_to_the_tile():
    assert_array_equal(read(entry(-5, 90, 50, 150)).boxes, [[0, 90, 50, 100]])


@pytest.mark.parametrize(("frame", "size"), [((1000, 1000), (50, 200)), ((28, 84), (256, 256))])
def test_boxes_come_in_pixels_of_the_tile(frame, size):
    box = (0.25, 0.5, 0.75, 1.0)
    (high, wide), (height, width) = frame, size
    answer = read(entry(*np.multiply(box, (wide, high, wide, high)).tolist()), frame, size)
    assert_allclose(answer.boxes, [np.multiply(box, (width, height, width, height))])


def test_thoughts_are_no_answer():
    thought = f"<think>Is there {entry(1, 1, 9, 9)}?\n"
    assert_array_equal(read(f"{thought}No.</think>{LIST}").boxes, read(LIST).boxes)
    assert not read(thought).readable


def test_a_box_that_is_repeated_counts_once():
    assert len(read(f"[{', '.join([entry(10, 20, 30, 40)] * 50)}]").boxes) == 1


@pytest.mark.parametrize("text", ["[]", " [ ] ", "```json\n[]\n```"])
def test_nothing_to_be_seen(text):
    answer = read(text)
    assert answer.boxes.shape == (0, 4)
    assert answer.boxes.dtype == np.float32
    assert answer.readable


@pytest.mark.parametrize("text", ["", "I see no classes.", "null", "[[1, 2, 3, 4]]", "{" * 5000])
def test_answers_that_cannot_be_read(text):
    answer = read(text)
    assert answer.boxes.shape == (0, 4)
    assert not answer.readable


PIECES = st.sampled_from(
    ["{", "}", "[", "]", ",", '"bbox_2d":', "1", "-2.5", "building", "'", "\n"]
)


@given(st.one_of(st.text(), st.lists(PIECES).map("".join)))
def test_no_text_is_too_much(text):
    answer = read(text)
    assert len(answer.boxes) == len(answer.classes)


def test_deep_nesting_is_no_answer():
    assert not read('{"bbox_2d": ' + "[" * 1900 + "}").readable
    assert not read('{"bbox_2d": ' + "[" * 100_000 + "}").readable
