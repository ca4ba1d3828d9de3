"""The configuration: validation, serialization, and the fields that a resumed run may change."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from train.config import Config, Experiment, Machine, Output
from train.errors import UsageError, flag
from train.recipes import RECIPES, digits, fashion_mnist
from train.run.workdir import differing_fields

CLUSTER = {"coordinator_address": "localhost:1234", "num_processes": 2, "process_id": 1}

# A different value, of the right type, for every field.
OTHER: dict[str, Any] = {
    "recipe": "another", "workdir": Path("elsewhere"), "dataset": "mnist", "data": "synthetic",
    "data_dir": Path("data"),
    "model": "resnet18", "image_size": 16, "augmentation": "shift-flip", "mean": (0.4,),
    "std": (0.5,), "num_workers": 16, "batch_size_per_worker": 8, "num_epochs": 45.5,
    "num_steps": 7, "warmup": "none", "warmup_epochs": 2.5, "milestones": (10, 20),
    "base_learning_rate": 0.2, "base_batch_size": 32, "optimizer": "lars",
    "scaling": "sqrt", "momentum": 0.8, "weight_decay": 5e-5,
    "init_from": Path("trained"), "freeze_batch_stats": True, "freeze_stages": 2,
    "head_learning_rate_multiplier": 2.5, "accumulation_steps": 2, "dtype": "bfloat16", "seed": 3,
    "seeds": (1, 2), "log_every_steps": 5, "checkpoint_every_epochs": 3, "num_devices": 2,
    "num_reader_threads": 3, "num_reader_processes": 2, "prefetch_steps": 4,
    "max_decoded_gb": 0.5,
    "checkpoint_every_steps": 4, "checkpoint_every_minutes": 1.5, "keep_checkpoints": 2,
    "on_nonfinite": "skip", "max_nonfinite_steps": 3,
    "compilation_cache_dir": Path("compiled"), "allow_batch_size_change": True, "extend": True,
    "noise_scale": True, "allow_data_change": True, "coordinator_timeout_seconds": 60, **CLUSTER,
}  # fmt: skip

# Fields that a resumed run may change; all others belong to the experiment.
CHANGEABLE_FIELDS = {
    "workdir", "data_dir", "accumulation_steps", "log_every_steps", "checkpoint_every_epochs",
    "num_steps", "num_devices", "num_reader_threads", "num_reader_processes", "prefetch_steps",
    "max_decoded_gb", "checkpoint_every_steps", "checkpoint_every_minutes", "keep_checkpoints",
    "on_nonfinite", "max_nonfinite_steps", "compilation_cache_dir",
    "seeds", "allow_batch_size_change", "allow_data_change", "extend",
    "coordinator_timeout_seconds", *CLUSTER,
}  # fmt: skip


def usage_error(**changes: Any) -> str:
    with pytest.raises(UsageError) as error:
        digits().replace(**changes)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("value", [0, -3])
@pytest.mark.parametrize(
    "field",
    [
        "num_workers", "batch_size_per_worker", "accumulation_steps",
        "log_every_steps", "checkpoint_every_epochs", "num_steps", "num_devices",
        "num_reader_threads", "prefetch_steps",
    ],
)  # fmt: skip
def test_counts_must_be_at_least_one(field: str, value: int):
    expected = f"--{field.replace('_', '-')} is {value}; it must be at least 1"
    assert usage_error(**{field: value}) == expected


def test_num_processes_must_be_at_least_one():
    message = usage_error(**CLUSTER | {"num_processes": 0, "process_id": 0})
    assert message == "--num-processes is 0; it must be at least 1"


def test_num_reader_processes_must_not_be_negative():
    assert digits().replace(num_reader_processes=0).machine.num_reader_processes == 0
    message = usage_error(num_reader_processes=-1)
    assert message == "--num-reader-processes is -1; it must be at least 0"


def test_max_nonfinite_steps_must_not_be_negative():
    assert digits().replace(max_nonfinite_steps=0).machine.max_nonfinite_steps == 0
    message = usage_error(max_nonfinite_steps=-1)
    assert message == "--max-nonfinite-steps is -1; it must be at least 0"


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_are_32_bit_numbers(seed: int):
    assert usage_error(seed=seed) == f"--seed is {seed}; it must be from 0 to 4294967295"
    # All seeds are checked before the first run starts.
    assert usage_error(seeds=(0, seed)) == f"--seeds is {seed}; it must be from 0 to 4294967295"


def test_several_seeds_must_differ():
    assert usage_error(seeds=(1, 2, 1)) == "--seeds is 1 2 1; the seeds must differ"


@pytest.mark.parametrize("seed", [0, 2**32 - 1])
def test_smallest_and_largest_seed_are_allowed(seed: int):
    assert digits().replace(seed=seed).experiment.seed == seed


def test_images_are_at_least_8_pixels_wide():
    assert usage_error(image_size=7) == "--image-size is 7; it must be at least 8"
    assert digits().replace(image_size=8).experiment.image_size == 8


@pytest.mark.parametrize("missing", CLUSTER)
def test_cluster_flags_must_be_given_together(missing: str):
    message = usage_error(**CLUSTER | {missing: None})
    assert message.startswith("--coordinator-address, --num-processes and --process-id belong ")


@pytest.mark.parametrize("process_id", [-1, 2])
def test_process_id_must_be_less_than_num_processes(process_id: int):
    assert usage_error(**CLUSTER | {"process_id": process_id}) == (
        f"--process-id is {process_id}; it must be at least 0 and less than --num-processes, 2"
    )


def test_all_cluster_flags_together_are_accepted():
    assert digits().replace(**CLUSTER).machine.process_id == 1


def test_epochs_are_converted_to_steps_of_the_data_set():
    recipe = digits().experiment.large_minibatch_recipe(num_examples=1437)
    assert (recipe.batch_size, recipe.steps_per_epoch) == (128, 11)  # 11 x 128 = 1408 <= 1437
    assert (recipe.num_steps, recipe.warmup_steps) == (990, 55)
    assert recipe.milestone_steps == (330, 660, 880)
    assert recipe.peak_learning_rate == pytest.approx(0.1, rel=1e-6)


def test_every_schedule_flag_reaches_the_recipe():
    changes: dict[str, Any] = {
        "num_workers": 4, "batch_size_per_worker": 5, "num_epochs": 8.5, "warmup": "constant",
        "warmup_epochs": 1.5, "milestones": (3, 4.5), "base_learning_rate": 0.3,
        "base_batch_size": 10, "scaling": "sqrt",
    }  # fmt: skip
    recipe = digits().replace(**changes).experiment.large_minibatch_recipe(num_examples=100)
    assert {name: getattr(recipe, name) for name in changes} == changes


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_epochs": 3}, "--warmup-epochs"),
        ({"num_epochs": 1e-6, "warmup": "none"}, "--num-epochs"),
        ({"milestones": (2,)}, "--milestones"),
        ({"milestones": (30, 30.001)}, "--milestones"),
        ({"num_workers": 1000}, "--num-workers"),
        ({"base_batch_size": 1024, "warmup": "gradual"}, "--warmup"),
    ],
)
def test_impossible_schedule_is_a_one_line_usage_error(changes: dict[str, Any], named: str):
    config = digits().replace(**changes)
    with pytest.raises(UsageError, match=rf"^{named}\b") as error:
        config.experiment.large_minibatch_recipe(num_examples=1437)
    assert "\n" not in str(error.value)
    assert "_" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_epochs": math.nan}, "--num-epochs is nan; it must be more than 0 and finite"),
        ({"num_epochs": 0}, "--num-epochs is 0; it must be more than 0"),
        ({"warmup_epochs": -1.0}, "--warmup-epochs is -1; it must be at least 0"),
        ({"warmup_epochs": math.inf}, "--warmup-epochs is inf; it must be at least 0 and finite"),
        ({"base_learning_rate": -0.1}, "--base-learning-rate is -0.1; it must be more than 0"),
        ({"base_batch_size": 0}, "--base-batch-size is 0; it must be at least 1"),
        ({"weight_decay": -1e-4}, "--weight-decay is -0.0001; it must be at least 0"),
        ({"momentum": 1.0}, "--momentum is 1; it must be at least 0 and less than 1"),
        ({"milestones": (30, 20)}, "--milestones is 30 20; epochs must increase, as in 20 30"),
        ({"milestones": (-1,)}, "--milestones is -1; each epoch must be more than 0 and finite"),
        ({"mean": ()}, "--mean has 0 numbers; it must have 1 for gray images or 3 for RGB"),
        ({"mean": (124.0,)}, "--mean is 124; each number must be from 0 to 1"),
        ({"std": (0.0,)}, "--std is 0; each number must be more than 0 and at most 1"),
        (
            {"std": (0.1, 0.2, 0.3)},
            "--std has 3 number(s) and --mean has 1; both must have 1 for gray images or 3 for RGB",
        ),
        (
            {"coordinator_address": "localhost", "num_processes": 2, "process_id": 0},
            "--coordinator-address is 'localhost'; it must be host:port of process 0, with a free "
            "port from 1 to 65535, such as node1:12345",
        ),
        (
            {"optimizer": "lamb", "momentum": 0.8},
            "--momentum is 0.8, but lamb has none to set; leave it out, or choose --optimizer sgd "
            "or lars",
        ),
    ],
)
def test_a_value_outside_its_bounds_is_named_with_its_flag(changes: dict[str, Any], message: str):
    assert usage_error(**changes) == message


@pytest.mark.parametrize(
    ("changes", "warmup"),
    [
        ({}, "gradual"),
        ({"init_from": Path("trained")}, "constant"),
        ({"init_from": Path("trained"), "warmup": "gradual"}, "gradual"),
        ({"init_from": Path("trained"), "base_batch_size": 128}, "none"),
    ],
)
def test_fine_tuning_with_large_batches_uses_constant_warmup(changes: dict[str, Any], warmup: str):
    config = digits().replace(**changes)
    assert config.experiment.large_minibatch_recipe(num_examples=1437).resolved_warmup == warmup


def test_flag_is_the_field_name_with_hyphens():
    assert flag("batch_size_per_worker") == "--batch-size-per-worker"


def test_this_file_has_another_value_for_every_field():
    """A new field must be added to OTHER, so that the tests below cover it."""
    assert OTHER.keys() == digits().to_dict().keys()


@pytest.mark.parametrize("name", RECIPES)
def test_configuration_survives_a_json_round_trip(name: str):
    config = RECIPES[name]()
    assert Config.from_json(config.to_json()) == config


def test_every_field_survives_a_json_round_trip():
    config = digits().replace(**OTHER)
    assert Config.from_json(config.to_json()) == config
    assert json.loads(config.to_json()).keys() == OTHER.keys()


def test_configuration_does_not_differ_from_itself():
    assert differing_fields(digits(), digits().to_json()) == []


@pytest.mark.parametrize("field", OTHER)
def test_resumed_run_may_change_machine_but_not_experiment(field: str):
    before = digits() if field not in CLUSTER else digits().replace(**CLUSTER)
    changes = {field: OTHER[field]} if field not in CLUSTER else dict.fromkeys(CLUSTER)
    now = before.replace(**changes)
    differences = differing_fields(now, before.to_json())
    if field in CHANGEABLE_FIELDS:
        assert differences == []
    else:
        written = [json.loads(config.to_json())[field] for config in (before, now)]
        words = [
            " ".join(map(str, value)) if isinstance(value, list) else str(value)
            for value in written
        ]
        assert differences == [f"{flag(field)} was {words[0]} and is now {words[1]}"]


def test_parts_of_a_configuration_share_no_fields():
    parts = [
        {field.name for field in dataclasses.fields(part)} for part in (Experiment, Machine, Output)
    ]
    assert parts[1] | parts[2] == CHANGEABLE_FIELDS
    assert sum(map(len, parts)) == len(set.union(*parts))


def test_an_unknown_field_cannot_be_replaced():
    with pytest.raises(TypeError, match="no field learning_rate"):
        digits().replace(learning_rate=1)


def test_differing_numbers_are_shown_as_one_would_type_them():
    changed = digits().replace(num_epochs=120.0, milestones=(30.0, 60.5))
    assert differing_fields(changed, digits().to_json()) == [
        "--milestones was 30 60 80 and is now 30 60.5",
        "--num-epochs was 90 and is now 120",
    ]


def test_all_differing_fields_are_listed():
    now = digits().replace(seed=1, num_workers=16, num_devices=4)
    assert differing_fields(now, digits().to_json()) == [
        "--num-workers was 8 and is now 16",
        "--seed was 0 and is now 1",
    ]


def test_int_and_float_of_equal_value_do_not_differ():
    now = digits().replace(num_epochs=90.0, milestones=(30.0, 60.0, 80.0))
    assert differing_fields(now, digits().to_json()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"architectures": ["BertModel"]}'])
def test_json_without_a_configuration_is_a_value_error(text: str):
    with pytest.raises(ValueError):  # noqa: PT011  messages of the json module vary
        differing_fields(digits(), text)


def test_field_missing_from_the_file_has_its_default():
    saved = json.loads(fashion_mnist().to_json())
    for name in ("optimizer", "momentum", "weight_decay", "scaling"):
        del saved[name]
    assert differing_fields(fashion_mnist(), json.dumps(saved)) == []
    assert Config.from_json(json.dumps(saved)) == fashion_mnist()
    changed = fashion_mnist().replace(optimizer="lars")
    assert differing_fields(changed, json.dumps(saved)) == ["--optimizer was sgd and is now lars"]
    changed = fashion_mnist().replace(momentum=0.5, weight_decay=0.0, scaling="sqrt")
    assert differing_fields(changed, json.dumps(saved)) == [
        "--momentum was 0.9 and is now 0.5",
        "--scaling was linear and is now sqrt",
        "--weight-decay was 0.0001 and is now 0",
    ]
