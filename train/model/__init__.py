"""The network and its file formats."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.run.classifier import Classifier


def load(path: str | Path) -> "Classifier":
    """Load a trained network as a function from uint8 images to probabilities.

    Args:
        path: a folder that `python -m train.export` has written, the workdir of a run, or a
            .safetensors or .pth file of torchvision, timm or Hugging Face.

    Raises:
        UsageError: if there is no network.
    """
    # Imported late: the network itself knows nothing of runs.
    from train.run import classifier

    return classifier.load(path)
