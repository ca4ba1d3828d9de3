"""Workarounds that no other test covers."""

import subprocess
import sys
from pathlib import Path

ENDING = """
import atexit, sys
from train.command_line import end
class Slow:
    def __del__(self): print("freed")
sys.kept = Slow()
atexit.register(print, "exit handler")
print("output")
end({code})
"""


def test_the_command_ends_by_its_exit_handlers_without_freeing_everything():
    for code in (0, 75):
        run = subprocess.run(
            [sys.executable, "-c", ENDING.format(code=code)],
            cwd=Path(__file__).parents[3],
            capture_output=True,
            text=True,
        )
        assert (run.returncode, run.stderr) == (code, "")
        assert run.stdout == "output\nexit handler\n"
