"""The page of measurements says what the committed readings say."""

import runpy
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def test_the_page_is_made_of_the_committed_readings():
    page = runpy.run_path(str(BENCHMARKS / "page.py"))["page"]
    assert (BENCHMARKS / "README.md").read_text(encoding="utf-8") == page()
