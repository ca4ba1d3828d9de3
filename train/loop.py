"""The order of events: open, plan, resume, train, evaluate, save, sum up."""

import contextlib
import json
from collections.abc import Callable

import jax
import optax

from train.cluster.agreement import agree, together
from train.cluster.stop import StopOnSignal
from train.config import Config, UsageError
from train.data.minibatches import (
    Dataset,
    open_dataset,
    training_minibatches,
)
from train.data.reader import on_devices
from train.run.checkpoint import Checkpoints, CheckpointTimes, load_network
from train.run.corrupt import CorruptImages
from train.run.display import Display, outcome, plan
from train.run.metrics import MetricsLog, top1_error_median_last5
from train.run.plots import plot_curves
from train.run.report import Report
from train.run.workdir import claim, finished, forget_summary, keep_config, write_whole
from train.step.evaluation import error_rates, predict
from train.step.optimizer import make_optimizer
from train.step.state import TrainState, initial_state, params_digest, transplant
from train.step.train_step import Steps, abstract_minibatch, make_steps
from train.step.workers import Workers, make_workers
from train.timeline import Timeline, going_on

DONE, STOPPED = 0, 75


def run(
    config: Config,
    *,
    optimizer: Callable[..., optax.GradientTransformation] = make_optimizer,
    start: Callable[..., TrainState] = initial_state,
) -> int:
    """Train in the workdir, from where an earlier run on it stopped.

    Args:
        config: of the run.
        optimizer: called as `make_optimizer`, whose place another may take in an experiment.
        start: called as `initial_state`, likewise. The workdir does not know of either.

    Returns:
        The exit code: `DONE`, or `STOPPED` by a signal after saving.

    Raises:
        UsageError: if the configuration is impossible; nothing has been trained then.
        RunError: if it cannot go on.
    """
    agree(config)
    dataset = together(lambda: open_dataset(config))
    config.large_minibatch_recipe(len(dataset.train))  # refuses before a folder is made
    workers = make_workers(config)
    with contextlib.ExitStack() as held, StopOnSignal() as stop:
        together(lambda: held.enter_context(claim(config)))
        folder = (config.workdir / "checkpoints").absolute()
        checkpoints = held.enter_context(Checkpoints(folder, config))
        step = checkpoints.newest_step
        timeline = going_on(config, len(dataset.train), checkpoints.phases, step)
        checkpoints.phases = timeline.phases
        last_step = min(timeline.num_steps, config.num_steps or timeline.num_steps)
        if timeline.phases[-1].first_step == step >= last_step:
            raise UsageError(
                f"--workdir {config.workdir} holds a run that has no step left for a minibatch of "
                f"{config.batch_size} after its {step}; a finished run cannot change"
            )
        display = held.enter_context(Display(last_step))
        for line in checkpoints.set_aside:
            display.say(line)
        if summary := finished(config, last_step):
            display.say(f"already {outcome(config.workdir, summary)}")
            return DONE
        display.say(plan(config, timeline, dataset, workers))
        transformation = optimizer(timeline.schedule(), config.optimizer)
        steps = make_steps(config, dataset.num_classes, transformation, workers)
        return _train(
            config, dataset, timeline, workers, steps,
            lambda: start(config, dataset.num_classes, transformation, workers),
            last_step, checkpoints, held, display, stop,
        )  # fmt: skip


def _train(
    config: Config,
    dataset: Dataset,
    timeline: Timeline,
    workers: Workers,
    steps: Steps,
    start: Callable[[], TrainState],
    last_step: int,
    checkpoints: Checkpoints,
    held: contextlib.ExitStack,
    display: Display,
    stop: StopOnSignal,
) -> int:
    state = start()
    if restored := checkpoints.restore(like=state):
        state = restored
    elif config.init_from is not None:
        state = transplant(load_network(config.init_from, workers, display.say), into=state)
    step = first_step = int(state.step)
    if first_step:
        display.say(f"resuming after step {first_step}")
    log = held.enter_context(contextlib.closing(MetricsLog(config.workdir, first_step)))
    if first_step > last_step or (first_step == last_step and not log.is_evaluated(last_step)):
        raise UsageError(
            f"--num-steps is {config.num_steps}; it must be more than the {first_step} steps that "
            "this run has already made"
        )
    forget_summary(config)
    together(lambda: keep_config(config))
    train_step = steps.train.lower(state, abstract_minibatch(config, workers)).compile()
    corrupt = CorruptImages(config, dataset, first_step, config.workdir / "corrupt_images.jsonl")
    report = Report(config, timeline, last_step, log, display, corrupt, first_step)
    times = CheckpointTimes(config, timeline)

    for minibatch in on_devices(
        training_minibatches(dataset, config, workers, first_step, last_step, timeline), workers
    ):
        state, metrics = train_step(state, minibatch)
        step += 1
        report.update(step, metrics, minibatch.corrupt)
        if report.ends_epoch(step):
            record = report.read()
            labels, classes = predict(
                state.params, state.batch_stats, steps, dataset, config, workers
            )
            corrupt.meet_in_evaluation(step, labels)
            record |= error_rates(labels, classes) | {"data/corrupt_images": len(corrupt)}
            report.write(record)
            report.leave_out(step)
        stopping = stop.reached(step)
        if stopping or step == last_step or times.is_due(step):
            report.write(report.read())
            log.sync()  # a run that goes on from the checkpoint has all records before it
            checkpoints.save(step, state, log.errors)
            report.leave_out(step)
        if stopping:
            break
    checkpoints.close()
    summary = {
        "dataset": dataset.name,
        "top1_error_median_last5": top1_error_median_last5(log.records, timeline),
        "num_steps": step,
        "num_examples_seen": timeline.num_examples_seen(step),
        "params_digest": params_digest(state.params),
    }

    def write() -> None:
        if jax.process_index() == 0:
            title = f"{config.recipe}: {config.model}"
            plot_curves(log.records, config.workdir / "curves.png", title)
            if step == last_step:
                write_whole(config.workdir / "summary.json", json.dumps(summary, indent=2) + "\n")

    together(write)
    if step < last_step:
        display.say(f"stopped after step {step} of {last_step} and saved; the same command goes on")
        return STOPPED
    display.say(outcome(config.workdir, summary))
    return DONE
