"""What all formats share: held-out examples, and the rejection of unsuitable data sets."""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import pytest

from train.data.formats.source import (
    TEST,
    TRAIN,
    VALIDATION,
    Example,
    Source,
    check,
    check_classes,
    hold_out,
    normalized,
    shuffled,
)
from train.errors import UsageError


def make(counts: dict[str, Sequence[int]], class_names: Sequence[str] = ("a", "b")) -> Source:
    """A data set with these numbers of examples of each class, by split."""
    examples = [
        Example(split, f"{class_names[label]}/{index}", label, None)
        for split, numbers in counts.items()
        for label, number in enumerate(numbers)
        for index in range(number)
    ]
    return Source(
        origin="the folder x", class_names=class_names, examples=examples, read=lambda _: b""
    )


def rejection(source: Source) -> str:
    with pytest.raises(UsageError) as caught:
        check(source)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_share_of_each_class_is_held_out():
    source = make({TRAIN: [20, 2]})
    held_out = hold_out(source, 0.25)
    assert held_out.class_counts() == {TRAIN: [15, 1], VALIDATION: [5, 1]}
    assert [e._replace(split=TRAIN) for e in held_out.examples] == source.examples
    assert held_out == hold_out(source, 0.25)  # reproducible
    names = [e.name for e in held_out.examples if e.split == VALIDATION and e.label == 0]
    assert names != [f"a/{index}" for index in range(5)]  # at random
    assert names != [f"a/{index}" for index in range(15, 20)]


@pytest.mark.parametrize(("share", "expected"), [(0.001, [1, 1]), (0.999, [19, 1])])
def test_each_class_keeps_and_holds_out_at_least_one_example(share: float, expected: list[int]):
    assert hold_out(make({TRAIN: [20, 2]}), share).class_counts()[VALIDATION] == expected


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_the_held_out_share_must_be_a_fraction(share: float):
    with pytest.raises(UsageError, match=r"--held-out is .*; it must be more than 0 and less "):
        hold_out(make({TRAIN: [2, 2]}), share)


def test_a_class_with_a_single_image_cannot_be_held_out():
    with pytest.raises(UsageError, match=r"class\(es\) b of the folder x have fewer than two"):
        hold_out(make({TRAIN: [2, 1]}), 0.1)


def test_examples_are_shuffled_within_their_split():
    source = make({TRAIN: [50, 50], TEST: [5, 5]})
    order = shuffled(source.examples)
    assert Counter(order) == Counter(source.examples)
    assert order == shuffled(source.examples[::-1])
    labels = [example.label for example in order if example.split == TRAIN]
    assert 10 < sum(labels[:50]) < 40


def test_a_data_set_without_images_is_rejected_with_what_was_skipped():
    source = dataclasses.replace(make({}), skipped={"hidden files": 3, "files ending in .x": 2})
    assert rejection(source) == (
        "the folder x has no labeled images (skipped: 3 hidden files, 2 files ending in .x)"
    )
    assert rejection(make({})) == "the folder x has no labeled images"


def test_a_data_set_without_training_images_is_rejected():
    said = rejection(make({VALIDATION: [1, 1], TEST: [1, 1]}))
    assert "images only in the split(s) validation, test; it must have training images" in said


def test_a_name_may_occur_once_in_each_split():
    source = make({TRAIN: [2, 2], TEST: [2, 2]})
    assert check(source) == []
    repeated = [*source.examples, source.examples[-1]]
    said = rejection(dataclasses.replace(source, examples=repeated))
    assert "several images named b/1 in the split 'test'; rename or remove all but one" in said


@pytest.mark.parametrize(
    ("class_names", "words"),
    [
        (("caf\udce9", "b"), "the class name 'caf\\udce9' is not valid UTF-8"),
        (("a", ""), "the class name '' is blank or has a line break"),
        (("a", " \t"), "the class name ' \\t' is blank or has a line break"),
        (("a", "b\nc"), "the class name 'b\\nc' is blank or has a line break"),
        (("a", "b\u2028c"), "the class name 'b\\u2028c' is blank or has a line break"),
        (("a", "a "), "the class names 'a' and 'a ' look the same"),
        (("\u00e9", "e\u0301"), "the class names '\\xe9' and 'e\\u0301' look the same"),
    ],
)
def test_class_names_that_cannot_be_stored_are_rejected(class_names: Sequence[str], words: str):
    assert words in rejection(make({TRAIN: [1, 1]}, class_names))


def test_class_names_that_differ_in_case_are_a_warning():
    warnings = check(make({TRAIN: [1, 1, 1]}, ("Cat", "cat", "dog")))
    assert warnings == ["the classes Cat, cat differ only in upper and lower case"]


def test_an_unused_test_split_is_a_warning():
    (warning,) = check(make({TRAIN: [1, 1], VALIDATION: [1, 1], TEST: [1, 1]}))
    assert warning == (
        "runs evaluate on the split 'validation'; the split 'test' is stored but not used"
    )


def test_names_are_normalized():
    assert normalized(" e\u0301 ") == "\u00e9"


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({TRAIN: [3], TEST: [1]}, "there is only one class, c0, so there is nothing to learn"),
        ({TRAIN: [3, 0], TEST: [1, 1]}, "class(es) c1 have images only in the split 'test'; add"),
        (
            {TRAIN: [3, 0], VALIDATION: [1, 0], TEST: [0, 1]},
            "class(es) c1 have images only in the split 'test'; add",
        ),
        ({TRAIN: [3, 3, 0], TEST: [1, 1, 0]}, "class(es) c2 have no images; add some or remove"),
    ],
)
def test_classes_that_cannot_be_trained_on_are_rejected(counts: dict[str, list[int]], words: str):
    names = [f"c{label}" for label in range(len(counts[TRAIN]))]
    with pytest.raises(UsageError) as caught:
        check_classes(names, counts, "validation" if VALIDATION in counts else "test")
    assert words in str(caught.value)


def test_suspicious_classes_are_warnings():
    names = [f"c{label}" for label in range(8)]
    counts = {TRAIN: [2] * 7 + [1], TEST: [1] + [0] * 6 + [1]}
    assert check_classes(names, counts, TEST) == [
        "class(es) c1, c2, c3, c4, c5 and 1 more have no images in the split 'test', so their "
        "error is not measured; add some",
        "class(es) c7 have fewer than two training images; add more or remove them",
    ]
    assert check_classes(names[:2], {TRAIN: [2, 2], TEST: [1, 1]}, TEST) == []
