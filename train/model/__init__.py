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
        UsageError: if the path does not hold a trained network.
    """
    # Imported late: the network itself knows nothing of runs.
    from train.run.classifier import Classifier
    from train.run.trained import load_trained

    return Classifier(load_trained(Path(path)))
