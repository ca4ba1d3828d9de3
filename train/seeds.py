"""Several runs that differ in their seed alone, scored as the paper does (section 5.1)."""

import dataclasses
import json
import statistics

import jax

from train.config import Config
from train.loop import DONE, run
from train.run.workdir import read_summary, write_whole


def run_seeds(config: Config) -> int:
    """Run each of `config.seeds` in a folder of its own, then write seeds.json.

    Returns:
        The exit code of the first run that did not finish, else 0.
    """
    errors: dict[int, float] = {}
    for seed in config.seeds:
        workdir = config.workdir / f"seed-{seed}"
        one = dataclasses.replace(config, seed=seed, seeds=(), workdir=workdir)
        if (code := run(one)) != DONE:
            return code
        errors[seed] = read_summary(workdir)["top1_error_median_last5"]
    mean = statistics.mean(errors.values())
    # Of one run there is no deviation.
    deviation = statistics.stdev(errors.values()) if len(errors) > 1 else None
    score = {"top1_error_mean": mean, "top1_error_std": deviation, "top1_error": errors}
    if jax.process_index() != 0:
        return DONE
    write_whole(config.workdir / "seeds.json", json.dumps(score, indent=2) + "\n")
    spread = "" if deviation is None else f" ± {100 * deviation:.2f}"
    print(
        f"test error {100 * mean:.2f}{spread} % over {len(errors)} seeds "
        f"(mean ± standard deviation of the median of the last 5 epochs): "
        f"{config.workdir / 'seeds.json'}"
    )
    return DONE
