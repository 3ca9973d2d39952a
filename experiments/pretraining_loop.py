"""Training loop of both pre-training phases: prefetched batches, Adam, and progress lines."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

WARMUP_STEPS = 100
DECAY_SHARE = 0.3  # of the updates, at the end: linear decay of the learning rate to 0

_T = TypeVar("_T")


def _ahead(make_batch: Callable[[int], _T], steps: int) -> Iterator[_T]:
    """Batches 0, 1, ... in order; the next two are made while one is trained on."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting = [pool.submit(make_batch, step) for step in range(2)]
        for step in range(steps):
            yield waiting.pop(0).result()
            waiting.append(pool.submit(make_batch, step + 2))


def _optimizer(peak: float, steps: int) -> optax.GradientTransformation:
    decay = round(steps * DECAY_SHARE)
    rate = optax.join_schedules(
        [
            optax.linear_schedule(0.0, peak, WARMUP_STEPS),
            optax.constant_schedule(peak),
            optax.linear_schedule(peak, 0.0, decay),
        ],
        [WARMUP_STEPS, steps - decay],
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate, b2=0.98))


def fit(
    name: str,
    params: _T,
    loss_fn: Callable[..., Float[Array, ""]],
    make_batch: Callable[[int], tuple[Any, ...]],
    *,
    steps: int,
    learning_rate: float,
) -> _T:
    """Minimise `loss_fn(params, *batch)`: warm-up, a long constant rate, a linear decay to 0.

    Args:
      name: of the phase, for progress lines.
      params: a pytree; its arrays are donated.
      loss_fn: differentiable.
      make_batch: the batch of a step, a function of the step alone.
      steps: updates.
      learning_rate: the constant rate.
    """
    tx = _optimizer(learning_rate, steps)

    @jax.jit(donate_argnums=(0, 1))
    def update(params: Any, opt_state: Any, *batch: Any) -> tuple[Any, Any, Array]:
        loss, gradient = jax.value_and_grad(loss_fn)(params, *batch)
        updates, opt_state = tx.update(gradient, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    opt_state, losses, start = tx.init(params), [], time.perf_counter()
    for step, batch in enumerate(_ahead(make_batch, steps), start=1):
        params, opt_state, loss = update(params, opt_state, *batch)
        losses.append(loss)
        if step % 100 == 0:
            recent = float(jnp.mean(jnp.stack(losses[-100:])))
            seconds = time.perf_counter() - start
            print(f"{name}: step {step}  loss {recent:.4f}  {seconds:.0f} s", flush=True)
    return params
