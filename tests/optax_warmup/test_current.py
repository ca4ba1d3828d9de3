"""`current_learning_rate` compared with the applied update, for all kinds of states."""

# Optax types its states as arbitrary trees, and some tests pass invalid arguments.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false, reportOperatorIssue=false

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import optax_warmup as ow

SCHEDULE = ow.gradual_warmup(0.125, 1.125, 4)
RATES = [0.125, 0.375, 0.625, 0.875, 1.125, 1.125]
PARAMS = {"a": np.float32(0.0), "b": np.float32(0.0)}

needs_standard = pytest.mark.usefixtures("standard_promotion")


def sgd(rate=SCHEDULE):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=rate)


def both(mask):
    return {"a": mask, "b": mask}


OPTIMIZERS = {
    "injected": sgd(),
    "chained": optax.chain(optax.clip_by_global_norm(9.0), optax.chain(sgd()), optax.identity()),
    "masked": optax.chain(optax.masked(sgd(), both(True)), optax.identity()),
    "partitioned": optax.partition({"x": sgd(), "y": sgd()}, {"a": "x", "b": "y"}),
    "if_finite": optax.apply_if_finite(sgd(), 3),
    "folded": ow.folded_momentum(SCHEDULE, 0.0),
    "plateau": ow.warmup_then_plateau(0.125, 1.125, 4, patience=9),
    "chained_plateau": optax.chain(optax.identity(), ow.warmup_then_plateau(0.125, 1.125, 4)),
    "injected_adamw": optax.chain(
        optax.inject_hyperparams(lambda learning_rate: optax.scale(-learning_rate))(SCHEDULE)
    ),
}


def run(optimizer, number, **extra):
    """State and step size after each update with a gradient of 1."""
    optimizer = optax.with_extra_args_support(optimizer)
    state = optimizer.init(PARAMS)
    for _ in range(number):
        updates, state = optimizer.update(
            jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS, value=1.0, **extra
        )
        yield state, -float(updates["a"])


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_current_learning_rate_is_that_of_the_last_update(name):
    assert ow.current_learning_rate(OPTIMIZERS[name].init(PARAMS)) == RATES[0]
    for (state, moved), expected in zip(run(OPTIMIZERS[name], 6), RATES, strict=True):
        got = ow.current_learning_rate(state)
        assert got.shape == ()
        assert got.dtype == jnp.float32
        assert float(got) == moved == expected
        assert jax.jit(lambda s: s)(got) == expected


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS) - {"partitioned"}))
def test_inside_jit(name):
    *_, (state, _) = run(OPTIMIZERS[name], 3)
    assert jax.jit(ow.current_learning_rate)(state) == RATES[2]


@needs_standard
def test_from_a_count_and_the_schedule():
    for optimizer in (optax.sgd(SCHEDULE), optax.adam(SCHEDULE)):
        assert ow.current_learning_rate(optimizer.init(PARAMS), SCHEDULE) == RATES[0]
        for (state, _), expected in zip(run(optimizer, 6), RATES, strict=True):
            assert ow.current_learning_rate(state, SCHEDULE) == expected
            assert jax.jit(lambda s: ow.current_learning_rate(s, SCHEDULE))(state) == expected


@needs_standard
def test_accumulation_gives_the_rate_of_the_last_update():
    """With 3 mini-steps per update, the rate changes only with the update."""
    optimizer = optax.MultiSteps(sgd(), every_k_schedule=3)
    state, found = optimizer.init(PARAMS), []
    for _ in range(7):
        _, state = optimizer.update(jax.tree.map(jnp.ones_like, PARAMS), state, PARAMS)
        found.append(float(ow.current_learning_rate(state)))
    assert found == [0.125, 0.125, 0.125, 0.125, 0.125, 0.375, 0.375]


@needs_standard
@pytest.mark.parametrize("order", [1, -1])
def test_the_scale_of_reduce_on_plateau_is_multiplied_in(order):
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
    optimizer = optax.chain(*[sgd(0.5), plateau][::order])
    found = [(float(ow.current_learning_rate(s)), moved) for s, moved in run(optimizer, 6)]
    assert [rate for rate, _ in found] == [moved for _, moved in found]
    assert [rate for rate, _ in found] == [0.5, 0.5, 0.25, 0.25, 0.125, 0.125]


@needs_standard
def test_reduce_on_plateau_inside_inject_hyperparams():
    def factory(learning_rate):
        plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=2)
        return optax.chain(optax.sgd(learning_rate), plateau)

    optimizer = optax.inject_hyperparams(factory)(learning_rate=0.5)
    for state, moved in run(optimizer, 5):
        assert float(ow.current_learning_rate(state)) == moved


def test_several_groups_with_different_rates():
    """Two rates are an error that names both groups; the state of one group gives its rate."""
    optimizer = optax.partition({"x": sgd(0.5), "y": sgd(0.25)}, {"a": "x", "b": "y"})
    *_, (state, _) = run(optimizer, 2)
    with pytest.raises(ValueError, match=r"must hold one learning rate, got 2: .*'x'.*'y'"):
        ow.current_learning_rate(state)
    assert ow.current_learning_rate(state.inner_states["x"]) == 0.5
    assert ow.current_learning_rate(state.inner_states["y"]) == 0.25
    with pytest.raises(ValueError, match="must hold one learning rate, got 2"):
        jax.jit(ow.current_learning_rate)(state)


@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.adam(SCHEDULE), optax.identity()])
def test_states_without_a_rate(optimizer):
    with pytest.raises(
        ValueError, match="opt_state must hold a learning rate: create the optimizer with"
    ):
        ow.current_learning_rate(optimizer.init(PARAMS))


def test_parameters_are_not_mistaken_for_rates():
    """Moments have the names of the parameters, which may be `learning_rate`."""
    params = {"learning_rate": jnp.ones(3), "hyperparams": {"learning_rate": jnp.ones(2)}}
    state = sgd(0.5).init(params)
    assert ow.current_learning_rate(state) == 0.5
    with pytest.raises(ValueError, match="must hold a learning rate"):
        ow.current_learning_rate(optax.adam(0.1).init(params))


def test_hyperparameters_without_a_rate():
    optimizer = optax.chain(optax.inject_hyperparams(optax.clip)(max_delta=1.0), sgd())
    assert ow.current_learning_rate(optimizer.init(PARAMS)) == RATES[0]


def test_inside_a_flax_optimizer():
    """Flax NNX wraps each leaf of the state in its own object."""
    nnx = pytest.importorskip("flax.nnx")
    for transformation in (sgd(), ow.warmup_then_plateau(0.125, 1.125, 4)):
        model = nnx.Linear(2, 2, rngs=nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
        gradient = nnx.grad(lambda model: jnp.mean(model(jnp.ones((1, 2))) ** 2))(model)
        for expected in RATES[:3]:
            optimizer.update(model, gradient, value=jnp.float32(1.0))
            rate = ow.current_learning_rate(optimizer.opt_state)
            assert isinstance(rate, jax.Array)
            assert rate == expected
