"""A reference that follows the policy, in the state of the optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from othink_jax import rl

PARAMS = {"w": jnp.array([1.0, -2.0]), "b": jnp.bfloat16(0.5)}


def run(tx, updates, params=PARAMS):
    """The reference after each update of plain gradient descent, and the policy."""
    state, found = tx.init(params), []
    update = jax.jit(tx.update)
    for number in range(updates):
        gradient = jax.tree.map(lambda x, n=number: jnp.full_like(x, 0.1 * (n + 1)), params)
        steps, state = update(gradient, state, params)
        params = optax.apply_updates(params, steps)
        found.append((rl.reference_params(state), params))
    return found


def test_it_is_a_copy_of_the_policy_after_every_so_many_updates():
    found = run(optax.chain(optax.sgd(1.0), rl.moving_reference(3)), 7)
    for number, (reference, policy) in enumerate(found, start=1):
        last = number // 3 * 3
        expected = found[last - 1][1] if last else PARAMS
        jax.tree.map(np.testing.assert_array_equal, reference, expected)
        assert not np.array_equal(reference["w"], policy["w"]) or number == last


def test_it_is_a_moving_average_with_a_share_of_the_policy():
    found = run(optax.chain(optax.sgd(1.0), rl.moving_reference(1, 0.25)), 4)
    expected = np.array([1.0, -2.0])
    for reference, policy in found:
        expected = expected + 0.25 * (np.asarray(policy["w"]) - expected)
        np.testing.assert_allclose(reference["w"], expected, rtol=1e-6)
        assert reference["b"].dtype == jnp.bfloat16


@pytest.mark.parametrize(
    ("numbers", "said"),
    [({"every": 0}, "every must be"), ({"mix": 0.0}, "mix must be"), ({"mix": 1.5}, "mix must be")],
)
def test_a_number_out_of_range_is_refused(numbers, said):
    with pytest.raises(ValueError, match=said):
        rl.moving_reference(**numbers)


def test_a_state_without_a_reference_says_so():
    with pytest.raises(ValueError, match="must carry one reference, found 0"):
        rl.reference_params(optax.sgd(1.0).init(PARAMS))
