"""Files that are replaced as a whole."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """Replace a file so that a kill or a crash leaves the old text or the new, never a part."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # otherwise the rename may reach the disk before the text
    os.replace(unfinished, path)
