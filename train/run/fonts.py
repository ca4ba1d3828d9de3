"""Fonts that can draw a class name in any script; what none can draw is escaped."""

import functools
import unicodedata

from matplotlib.font_manager import FontProperties, findfont, fontManager
from matplotlib.ft2font import FT2Font

# Fonts whose glyphs are not those of the characters: boxes for all, or TeX's own encodings.
UNUSABLE = ("Last Resort", "STIXNon", "STIXSize", "cm")

INVISIBLE = ("\ufe0e", "\ufe0f", "\u200c", "\u200d")  # variants and joiners, useless in a poor font


@functools.lru_cache(maxsize=10_000)
def drawable(text: str, max_length: int | None = None) -> tuple[str, list[str]]:
    r"""Text that Matplotlib draws without boxes or warnings, and the font families to use.

    Args:
        text: any text.
        max_length: number of characters to shorten it to.

    Returns:
        The text, with an escape such as \\u4e00 for a character that no installed font has, and
        the default family followed by those of other scripts.
    """
    pieces = list(unicodedata.normalize("NFC", text))
    families, missing = _families(frozenset(filter(_has_glyph, pieces)))
    pieces = [
        ""
        if piece in INVISIBLE and piece in missing
        else ascii(piece)[1:-1]
        if piece in missing or not _has_glyph(piece)
        else piece
        for piece in pieces
    ]
    if max_length is not None and sum(map(len, pieces)) > max_length:
        while sum(map(len, pieces)) >= max_length:
            pieces.pop()
        pieces.append("…")
    return "".join(pieces), families


def _has_glyph(character: str) -> bool:
    """Whether a font can have it: it is not a control character, surrogate or for private use."""
    category = unicodedata.category(character)
    return character in INVISIBLE or category not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")


def _families(wanted: frozenset[str]) -> tuple[list[str], frozenset[str]]:
    """Few font families that have the most of some characters, and what they lack."""
    default = findfont(FontProperties())
    families = [FontProperties(fname=default).get_name()]
    missing = wanted - _characters(default)
    while missing:
        family = min(_installed(), key=lambda name: (len(missing - _characters_of(name)), name))
        if not missing & _characters_of(family):
            break
        families.append(family)
        missing -= _characters_of(family)
    return families, missing


@functools.cache
def _installed() -> list[str]:
    """Names of the usable families with a regular font; for others Matplotlib logs a warning."""
    regular = {
        font.name
        for font in fontManager.ttflist
        if font.weight in (400, "normal", "regular")
        and (font.style, font.variant, font.stretch) == ("normal", "normal", "normal")
    }
    return sorted(name for name in regular if not name.startswith(UNUSABLE))


@functools.cache
def _characters_of(family: str) -> frozenset[str]:
    font = FontProperties(family=[family])
    try:
        path = findfont(font, fallback_to_default=False, rebuild_if_missing=False)
    except ValueError:  # Matplotlib's list of fonts names a file that is gone
        return frozenset()
    return _characters(path)


@functools.cache
def _characters(path: str) -> frozenset[str]:
    """Characters of a font file; none of a font of bitmaps, such as colored emoji."""
    try:
        font = FT2Font(path)
    except (OSError, RuntimeError):
        return frozenset()
    return frozenset(map(chr, font.get_charmap())) if font.scalable else frozenset()
