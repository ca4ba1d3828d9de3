"""Class names in any script: drawn with a font that has the glyphs, or escaped."""

import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager

from train.run import fonts
from train.run.fonts import drawable

DEFAULT = ["DejaVu Sans"]


def forget() -> None:
    for function in (drawable, fonts._installed, fonts._characters_of):  # pyright: ignore[reportPrivateUsage]
        function.cache_clear()


def make_font(path: Path, family: str, characters: str, width: int) -> None:
    """A font whose glyphs are rectangles."""
    names = [".notdef", *(f"u{ord(character):04X}" for character in characters)]
    pen = TTGlyphPen(None)
    corners = ((100, 0), (100, 700), (width - 100, 700), (width - 100, 0))
    pen.moveTo(corners[0])
    for corner in corners[1:]:
        pen.lineTo(corner)
    pen.closePath()
    glyph = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(c): name for c, name in zip(characters, names[1:], strict=True)})
    builder.setupGlyf(dict.fromkeys(names, glyph))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (width, 100)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=800, usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    fontManager.addfont(path)


@pytest.fixture
def no_other_fonts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Only the fonts that Matplotlib ships, whatever this machine has."""
    shipped = [font for font in fontManager.ttflist if "mpl-data" in font.fname]
    monkeypatch.setattr(fontManager, "ttflist", shipped)
    forget()
    yield
    forget()


def width_of(text: str, families: list[str]) -> float:
    figure = Figure()
    drawn = figure.text(0, 0, text, fontfamily=families, fontsize=100, parse_math=False)
    figure.canvas.draw()
    return drawn.get_window_extent().width


@pytest.mark.parametrize(
    "name", ["rose", "Ελλάδα", "Русский", "العربية", "שלום", "$_$", "e a", "❤"]
)
@pytest.mark.usefixtures("no_other_fonts")
def test_the_default_font_draws_what_it_has(name: str):
    assert drawable(name) == (name, DEFAULT)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("玫瑰", r"\u73ab\u7470"),
        ("a 玫", r"a \u73ab"),
        ("ไ", r"\u0e44"),
        ("a\nb", r"a\nb"),
        ("\x07", r"\x07"),
        ("\ue000", r"\ue000"),
        ("\U000f0000", r"\U000f0000"),
        ("\u0378", r"\u0378"),  # not assigned
        ("\udce9", r"\udce9"),
        ("\u202eabc", r"\u202eabc"),
        ("\u2028", r"\u2028"),
        ("e\u0301", "é"),
        ("❤\ufe0f", "❤"),
        ("", ""),
    ],
)
@pytest.mark.usefixtures("no_other_fonts")
def test_other_characters_are_escaped(name: str, shown: str):
    text, families = drawable(name)
    assert text.replace("\ufe0f", "") == shown
    assert families == DEFAULT


NAMES = [
    "rose", "Ελλάδα", "Русский", "玫瑰", "日本語", "العربية", "हिन्दी", "😀 smile",
    "👨\u200d👩\u200d👧", "שלום", "a\nb", "\x00", "\ue000", "\udce9", "\u202eabc",
    "q\u0301\u0323", "\u0301", "한국어", "$x_{$", "\\alpha", "🇩🇪",
    "x" * 1000, "\u200d", "\ufe0f", "ก็", "\U0001faff",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_no_name_causes_a_warning(name: str, caplog: pytest.LogCaptureFixture):
    """With the fonts of this machine; pytest turns Python's warnings into errors."""
    for max_length in (14, None):
        text, families = drawable(name, max_length)
        figure = Figure()
        figure.text(0, 0, text, fontfamily=families, parse_math=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.savefig(io.BytesIO())
    assert not caplog.records


@pytest.mark.usefixtures("no_other_fonts")
def test_another_font_draws_what_the_default_lacks(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    make_font(tmp_path / "han.ttf", "Test Han", "玫瑰", 2000)
    make_font(tmp_path / "thai.ttf", "Test Thai", "ไทย", 1500)
    forget()
    assert drawable("rose") == ("rose", DEFAULT)
    assert drawable("玫瑰") == ("玫瑰", [*DEFAULT, "Test Han"])
    assert drawable("rose 玫瑰 ไทย") == ("rose 玫瑰 ไทย", [*DEFAULT, "Test Thai", "Test Han"])
    assert drawable("玫日") == (r"玫\u65e5", [*DEFAULT, "Test Han"])
    # Glyphs of this font are twice as wide as they are high: 100 points, at 100 dots per inch.
    assert width_of(*drawable("玫瑰")) == pytest.approx(2 * 2 * 100 * 100 / 72, rel=0.01)
    assert not caplog.records


@pytest.mark.usefixtures("no_other_fonts")
def test_fonts_that_cannot_be_used_are_ignored(tmp_path: Path):
    make_font(tmp_path / "resort.ttf", "Last Resort", "玫", 1000)
    make_font(tmp_path / "gone.ttf", "Test Gone", "玫", 1000)
    make_font(tmp_path / "broken.ttf", "Test Broken", "玫", 1000)
    forget()
    (tmp_path / "gone.ttf").unlink()
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    assert drawable("玫") == (r"\u73ab", DEFAULT)


@pytest.mark.usefixtures("no_other_fonts")
def test_long_names_are_shortened_without_cutting_an_escape():
    assert drawable("x" * 14, 14)[0] == "x" * 14
    assert drawable("x" * 15, 14)[0] == "x" * 13 + "…"
    assert drawable("玫瑰玫瑰", 14)[0] == r"\u73ab\u7470…"
    assert drawable("玫瑰x", 13)[0] == r"\u73ab\u7470x"
