"""Draw `docs/schedule.png`: the learning rates of the paper for batch sizes 256 and 8192.

python docs/schedule.py
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure

from optax_warmup import LargeMinibatchRecipe


def main() -> None:
    """Write the figure next to this file."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    whole, start = figure.subplots(1, 2, width_ratios=(2, 1))
    gradual = LargeMinibatchRecipe(num_examples=1_281_167, num_workers=256)
    constant = dataclasses.replace(gradual, warmup="constant")
    reference = dataclasses.replace(gradual, num_workers=8)
    for recipe, label, style in [
        (constant, "kn = 8192, constant warmup", "tab:orange"),
        (gradual, "kn = 8192, gradual warmup", "tab:blue"),
        (reference, "kn = 256, the reference", "tab:gray"),
    ]:
        steps = np.arange(recipe.num_steps)
        rates = jax.vmap(recipe.schedule())(steps)
        for axes in (whole, start):
            axes.plot(steps / recipe.steps_per_epoch, rates, color=style, label=label)
    whole.set(yscale="log", xlabel="epoch", ylabel="learning rate")
    whole.legend()
    start.set(xlim=(0, 8), ylim=(0, 3.5), xlabel="epoch", title="the first epochs")
    for axes in (whole, start):
        axes.grid(alpha=0.3)
    figure.savefig(Path(__file__).with_name("schedule.png"), dpi=100)


if __name__ == "__main__":
    main()
