"""The order of events: open, plan, resume, train, evaluate, save, sum up."""

import json
import time

import jax

from optax_warmup import LargeMinibatchRecipe
from train.checkpoint import Checkpoints, load_network
from train.config import Config, UsageError
from train.display import Display, outcome, plan
from train.evaluation import error_rates, predict
from train.input_pipeline import (
    Dataset,
    open_dataset,
    training_minibatches,
)
from train.metrics import MetricsLog, Record, top1_error_median_last5
from train.optimizer import make_optimizer
from train.plots import plot_curves
from train.state import initial_state, params_digest, transplant
from train.step import StepMetrics, abstract_minibatch, make_steps
from train.stop import StopOnSignal
from train.workdir import claim, finished, forget_summary, write_whole
from train.workers import Workers, make_workers

DONE, STOPPED = 0, 75


def run(config: Config) -> int:
    """Train in the workdir, from where an earlier run on it stopped.

    Returns:
        The exit code: `DONE`, or `STOPPED` by a signal after saving.

    Raises:
        UsageError: if the configuration is impossible; nothing has been trained then.
    """
    dataset = open_dataset(config)
    recipe = config.large_minibatch_recipe(len(dataset.train))
    workers = make_workers(config)
    claim(config)
    last_step = min(recipe.num_steps, config.num_steps or recipe.num_steps)
    with Display(last_step) as display, StopOnSignal() as stop:
        if summary := finished(config, last_step):
            display.say(f"already {outcome(config.workdir, summary)}")
            return DONE
        display.say(plan(config, recipe, dataset, workers))
        return _train(config, dataset, recipe, workers, last_step, display, stop)


def _train(
    config: Config,
    dataset: Dataset,
    recipe: LargeMinibatchRecipe,
    workers: Workers,
    last_step: int,
    display: Display,
    stop: StopOnSignal,
) -> int:
    optimizer = make_optimizer(recipe.schedule(), config.optimizer)
    steps = make_steps(config, dataset.num_classes, optimizer, workers)
    checkpoints = Checkpoints(config.workdir / "checkpoints")
    state = initial_state(config, dataset.num_classes, optimizer, workers)
    if restored := checkpoints.restore(like=state):
        state = restored
    elif config.init_from is not None:
        state = transplant(load_network(config.init_from, workers), into=state)
    step = first_step = int(state.step)
    if first_step:
        display.say(f"resuming after step {first_step}")
    log = MetricsLog(config.workdir, first_step)
    if first_step > last_step or (first_step == last_step and not log.is_evaluated(last_step)):
        raise UsageError(
            f"--num-steps is {config.num_steps}; it must be more than the {first_step} steps that "
            "this run has already made"
        )
    forget_summary(config)
    train_step = steps.train.lower(state, abstract_minibatch(config, workers)).compile()
    epoch_steps = recipe.steps_per_epoch
    clock = Clock(first_step)

    def ends_epoch(step: int) -> bool:
        return step % epoch_steps == 0 or step == last_step

    def read(step: int, metrics: StepMetrics) -> Record:
        """Wait for an update; what it says is a record where one is due, else empty."""
        values = jax.device_get(metrics)
        if step % config.log_every_steps and not ends_epoch(step):
            return {}
        return {
            "step": step,
            "epoch": step / epoch_steps,
            "train/loss": float(values.loss),
            "train/top1_error": float(values.top1_error),
            "train/learning_rate": float(values.learning_rate),
            "train/images_per_second": clock.steps_per_second(step) * workers.batch_size,
        }

    def write(record: Record) -> None:
        if record:
            log.write(record)
            display.show(record)

    unread: tuple[int, StepMetrics] | None = None
    for rows in training_minibatches(dataset, config, workers, first_step, last_step):
        state, metrics = train_step(state, jax.tree.map(workers.to_devices, rows))
        step += 1
        if unread:  # the update before, read while this one runs
            write(read(*unread))
        unread = step, metrics
        if not ends_epoch(step) and not stop.requested:
            continue
        record = read(*unread)
        unread = None
        if ends_epoch(step):
            record |= error_rates(
                *predict(state.params, state.batch_stats, steps, dataset, config, workers)
            )
        write(record)
        if (step // epoch_steps) % config.checkpoint_every_epochs == 0 or stop.requested:
            checkpoints.save(step, state)
        clock.restart(step)
        if stop.requested:
            break
    checkpoints.save(step, state)
    checkpoints.close()
    log.close()
    summary = {
        "top1_error_median_last5": top1_error_median_last5(log.records, epoch_steps),
        "num_steps": step,
        "num_examples_seen": step * workers.batch_size,
        "params_digest": params_digest(state.params),
    }
    if jax.process_index() == 0:
        title = f"{config.recipe}: {config.model}"
        plot_curves(log.records, config.workdir / "curves.png", title)
        if step == last_step:
            write_whole(config.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")
    if step < last_step:
        display.say(f"stopped after step {step} of {last_step} and saved; the same command goes on")
        return STOPPED
    display.say(outcome(config.workdir, summary))
    return DONE


class Clock:
    """Steps per second since the last reading, evaluations and the like left out."""

    def __init__(self, step: int) -> None:
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begin to count at a step that has just been made."""
        self._step, self._seconds = step, time.perf_counter()

    def steps_per_second(self, step: int) -> float:
        """Read the rate up to a step that has just been made, and begin anew."""
        steps, seconds = step - self._step, time.perf_counter() - self._seconds
        self.restart(step)
        return steps / seconds
