"""The order of events: open, plan, resume, train, evaluate, save, summarize."""

import contextlib
import dataclasses
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import optax

from train.cluster.agreement import agree, agree_on_data, together
from train.cluster.stop import StopOnSignal
from train.config import Config, JsonObject
from train.data.dataset import open_dataset
from train.data.in_memory import decode_once
from train.data.minibatches import training_minibatches
from train.data.reader import on_devices
from train.errors import UsageError
from train.plan import Plan
from train.run.atomic import write_atomically
from train.run.checkpoint import Checkpoints, CheckpointTimes
from train.run.display import Display, outcome
from train.run.extension import schedule_before
from train.run.manifest import version_change
from train.run.metrics import MetricsLog, results
from train.run.predictions import EvaluationMinibatches, predict, scores
from train.run.report import Report
from train.run.seeds import score_in_words, score_of_seeds
from train.run.terminal import terminal_width, wrapped
from train.run.trained import check_initial, load_initial
from train.run.workdir import (
    SEEDS,
    check_folders,
    claim,
    delete_summary,
    finished,
    keep_config,
    read_summary,
    seed_folder,
    write_summary,
)
from train.step.evaluation import make_evaluation_step
from train.step.examples import abstract_minibatch
from train.step.optimizer import make_optimizer, with_multipliers
from train.step.state import TrainState, abstract_state, initial_state, params_digest, transplant
from train.step.train_step import make_train_step
from train.step.workers import make_workers
from train.timeline import resume_timeline

DONE, STOPPED = 0, 75


def run(
    config: Config,
    *,
    optimizer: Callable[..., optax.GradientTransformation] = make_optimizer,
    start: Callable[..., TrainState] = initial_state,
) -> int:
    """Train in the workdir, from the point where an earlier run stopped.

    Args:
        config: configuration of the run.
        optimizer: factory with the signature of `make_optimizer`; experiments pass their own.
        start: factory with the signature of `initial_state`. Neither override is recorded in the
            workdir.

    Returns:
        The exit code: `DONE`, or `STOPPED` by a signal after saving.

    Raises:
        UsageError: if the configuration is impossible. Nothing has been trained then.
        RunError: if the run cannot continue.
    """
    experiment, workdir = config.experiment, config.output.workdir

    # Reject an impossible configuration before a folder is created.
    agree(config)
    together(lambda: check_folders(config))
    together(lambda: check_initial(config))
    dataset = together(lambda: open_dataset(config))
    fingerprint = dataset.fingerprint
    agree_on_data(dataset.name, fingerprint)
    experiment.large_minibatch_recipe(len(dataset.train))
    workers = make_workers(config)

    with contextlib.ExitStack() as stack, StopOnSignal() as stop:
        # Lock the workdir, find the newest intact checkpoint, and plan from there.
        differences = together(lambda: stack.enter_context(claim(config, fingerprint)))
        folder = (workdir / "checkpoints").absolute()
        checkpoints = stack.enter_context(Checkpoints(folder, config, fingerprint))
        step = checkpoints.newest_step
        timeline = resume_timeline(experiment, len(dataset.train), checkpoints.phases, step)
        plan = Plan(config=config, dataset=dataset, workers=workers, timeline=timeline)
        if timeline.phases[-1].first_step == step >= plan.last_step:
            raise UsageError(
                f"--workdir {workdir} holds a run that has no steps left for a batch size of "
                f"{experiment.batch_size} after step {step}; a finished run cannot change"
            )
        num_examples = len(dataset.train)
        before = together(
            lambda: schedule_before(config, timeline, checkpoints.phases, num_examples, step)
        )
        display = stack.enter_context(Display(plan.last_step))
        for line in checkpoints.moved:
            display.say(line)
        if differences:
            display.say(f"the data has changed: {'; '.join(differences)}")
        if summary := finished(config, plan.last_step):
            display.say(f"already {outcome(workdir, summary)}")
            return DONE
        if before is not None:
            display.say(f"--extend changes the schedule after step {step}. Before:")
            display.say(f"{before.describe(display.width)}\n\nFrom now on:")
        display.say(plan.describe(display.width))

        # Restore the state, or initialize it.
        transformation = optimizer(
            timeline.schedule(),
            experiment.optimizer,
            momentum=experiment.momentum,
            weight_decay=experiment.weight_decay,
        )
        transformation = with_multipliers(transformation, experiment)
        arguments = (experiment, dataset.num_classes, transformation, workers)
        state = checkpoints.restore(abstract_state(*arguments))
        if state is None:
            network = load_initial(experiment, workers, display.say)
            state = start(*arguments)
            state = state if network is None else transplant(network, into=state)
        if step:
            display.say(f"resuming after step {step}")
            if change := version_change(folder / str(step)):
                display.say(change)
        log = stack.enter_context(contextlib.closing(MetricsLog(workdir, step)))
        if differences and step >= timeline.num_steps:
            raise UsageError(
                f"--workdir {workdir} holds a run of {step} steps, but its schedule on the changed "
                f"data has only {timeline.num_steps}; restore the data or choose another --workdir"
            )
        if step > plan.last_step or (step == plan.last_step and not log.is_evaluated(step)):
            raise UsageError(
                f"--num-steps is {config.machine.num_steps}; it must be more than the {step} steps "
                "that this run has completed"
            )
        delete_summary(config)
        together(lambda: keep_config(config, fingerprint, step, differences))

        # Compile while small images are decoded.
        with ThreadPoolExecutor(1) as pool:
            decoding = pool.submit(decode_once, config, dataset, display.say)
            train_step = make_train_step(*arguments, on_nonfinite=config.machine.on_nonfinite)
            train_step = train_step.lower(state, abstract_minibatch(experiment, workers)).compile()
            plan = dataclasses.replace(plan, dataset=together(decoding.result))
        evaluation_step = make_evaluation_step(experiment, dataset.num_classes, workers)
        test = EvaluationMinibatches(plan)

        # The clocks start here: compiling and decoding are not training.
        report = Report(plan, log, display, step)
        times = CheckpointTimes(config, timeline)
        minibatches = training_minibatches(plan, step, plan.last_step)
        for minibatch in on_devices(minibatches, workers):
            # Dispatch this step; while it runs, read the metrics of the previous one.
            state, metrics = train_step(state, minibatch)
            step += 1
            report.queue(step, metrics)
            if plan.ends_epoch(step):
                record = report.read()
                predictions = predict(test, evaluation_step, state.network)
                report.write(record | scores(predictions, dataset.num_classes))
                report.restart_clock(step)
            stopping = stop.reached(step)
            if stopping or step == plan.last_step or times.is_due(step):
                report.write(report.read())
                log.sync()  # a resumed run must find every record up to its checkpoint
                checkpoints.save(step, state, timeline.phases, log.errors)
                report.restart_clock(step)
            if stopping:
                break
        checkpoints.close()

        def plot() -> None:
            if jax.process_index() == 0:
                # Imported late: matplotlib takes a fifth of the time to start.
                from train.run.plots import plot_curves

                title = f"{experiment.recipe}: {experiment.model}"
                plot_curves(log.records, workdir / "curves.png", title)

        together(plot)
        if step < plan.last_step:
            display.say(
                f"stopped after step {step} of {plan.last_step} and saved; the same command resumes"
            )
            return STOPPED
        summary = {
            "dataset": dataset.name,
            "dataset_version": dataset.version,
            "fingerprint": None if fingerprint is None else fingerprint.short,
            **results(log.records, timeline),
            "num_steps": step,
            "num_examples_seen": timeline.num_examples_seen(step),
            "params_digest": params_digest(state.network.params),
        }
        together(lambda: write_summary(workdir, summary))
        display.say(outcome(workdir, summary))
        return DONE


def run_seeds(config: Config) -> int:
    """Run each of `config.output.seeds` in its own folder, then write seeds.json.

    The score is the paper's: mean and standard deviation over runs with different seeds (section
    5.1).

    Returns:
        The exit code of the first run that did not finish, else `DONE`.
    """
    workdir, summaries = config.output.workdir, dict[int, JsonObject]()
    for seed in config.output.seeds:
        folder = workdir / seed_folder(seed)
        if (code := run(config.replace(seed=seed, seeds=(), workdir=folder))) != DONE:
            return code
        summaries[seed] = read_summary(folder)
    if jax.process_index() == 0:
        score = score_of_seeds(summaries)
        write_atomically(workdir / SEEDS, json.dumps(score, indent=2) + "\n")
        line = f"{score_in_words(score)}: {workdir / SEEDS}"
        print(wrapped(line, terminal_width()))
    return DONE
