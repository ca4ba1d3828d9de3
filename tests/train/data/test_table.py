"""The table of a verified data set."""

import io

import pytest
from rich.console import Console

from train.data.table import describe, line_of, printable
from train.data.verification import CorruptImage, Verified, VerifiedSplit


def split(counts: list[int], num_gray: int = 0) -> VerifiedSplit:
    number = sum(counts)
    return VerifiedSplit(
        num_images=number,
        class_counts=counts,
        contents="",
        num_gray=num_gray,
        formats={"JPEG": number},
        sizes={"20 x 10": number} if number < 100 else {"20 x 10": 90, "30 x 40": number - 90},
        shorter_sides=[10, 10, 10] if number < 100 else [10, 11, 400],
    )


def printed(
    names: list[str],
    train: VerifiedSplit,
    skipped: dict[str, int] | None = None,
    num_corrupt: int = 0,
    width: int = 80,
    encoding: str = "utf-8",
) -> list[list[str]]:
    """Lines of the table, as words."""
    splits = {"train": train, "test": split([1] * len(names), num_gray=len(names))}
    verified = Verified(origin="", date="", files="", splits=splits, skipped=skipped or {})
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding, errors="replace")
    console = Console(file=file, width=width, highlight=False, markup=False, emoji=False)
    console.print(describe(names, verified, num_corrupt))
    file.flush()
    lines = raw.getvalue().decode(encoding).splitlines()
    assert all(len(line) <= width for line in lines)
    return [words for line in lines if (words := line.replace("|", " ").split())]


def test_splits_sizes_and_formats_are_listed():
    lines = printed(["a", "b"], split([100, 20], num_gray=7))
    assert ["split", "train", "test"] in lines
    assert ["images", "120", "2"] in lines
    assert ["shorter", "side", "10", "to", "400,", "median", "11", "10"] in lines
    assert ["most", "frequent", "size", "20", "x", "10", "(90", "images)", "20", "x", "10"] in lines
    assert ["formats", "JPEG", "(7", "gray)", "JPEG", "(gray)"] in lines


def test_up_to_twenty_classes_are_all_listed_by_size():
    lines = printed([f"class{i}" for i in range(20)], split([*range(1, 21)]))
    assert ["20", "classes", "train", "test"] in lines
    start = lines.index(["class19", "20", "1"])
    assert lines[start : start + 20] == [[f"class{i}", f"{i + 1}", "1"] for i in range(19, -1, -1)]


def test_of_many_classes_the_largest_and_the_smallest_are_listed():
    counts = [(7 * i) % 1009 + 1 for i in range(1000)]
    lines = printed([f"class{i}" for i in range(1000)], split(counts))
    order = sorted(range(1000), key=lambda i: -counts[i])
    shown = [line for line in lines if line[0].startswith("class")]
    expected = [*order[:10], *order[-10:]]
    assert shown == [[f"class{i}", str(counts[i]), "1"] for i in expected]
    assert ["...", "980", "more", "..."] in lines


def test_what_was_skipped_is_listed_with_the_reason():
    lines = printed(["a", "b"], split([1, 1]), {"hidden file(s)": 2, "[bold]text": 30}, 5)
    start = lines.index(["skipped", "files"])
    assert [line for line in lines[start + 1 :] if "─" not in line[0]] == [
        ["[bold]text", "30"],
        ["corrupt", "image(s)", "5"],
        ["hidden", "file(s)", "2"],
    ]
    assert ["skipped", "files"] not in printed(["a", "b"], split([1, 1]))


@pytest.mark.parametrize(
    "name", ["[red]", "[/]", ":smile:", "розы", "玫瑰", "a\\nb", "\x1b[31m", "a\rb"]
)
def test_any_class_name_is_printed(name: str):
    shown = name.replace("\x1b", "\\x1b").replace("\r", "\\r")
    assert [shown, "2", "1"] in printed([name, "b"], split([2, 1]))


def test_characters_that_the_terminal_lacks_become_question_marks():
    lines = printed(["розы", "é"], split([2, 1]), encoding="latin-1")
    assert ["????", "2", "1"] in lines
    assert ["é", "1", "1"] in lines


@pytest.mark.parametrize("width", [20, 40])
def test_a_narrow_terminal_shows_everything(width: int):
    name = "a-name-of-40-characters-that-does-not-fit"
    words = "".join(line[0] for line in printed([name, "b"], split([100, 20]), width=width))
    assert name in words


def test_a_corrupt_image_is_described_in_one_line():
    image = CorruptImage("train", 7, "a\nb/\x1b[31mc.png", "truncated")
    assert line_of(image) == r"split 'train', image 7 (a\nb/\x1b[31mc.png): truncated"
    assert line_of(CorruptImage("test", 0, None, "empty")) == "split 'test', image 0: empty"


def test_joiners_are_kept_but_directional_characters_are_escaped():
    family = "\U0001f468\u200d\U0001f469"
    assert printable(f"{family} \u202eabc\u2028") == f"{family} \\u202eabc\\u2028"
