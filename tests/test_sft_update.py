"""One update of supervised fine-tuning: a mean over tokens, however they are divided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from othink_jax import rl
from othink_jax.config import OptimizerConfig, ParallelConfig
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import merge
from othink_jax.training.optimizer import make_optimizer
from othink_jax.training.parallel import make_parallel
from othink_jax.training.state import TrainState
from othink_jax.training.update import sft_update
from othink_jax.types import SFTBatch
from tests.model_cases import VOCAB, load_hub, make_config, random_case, random_params, to_prompts
from tests.peers import make_peer, run_peer
from tests.toy_policy import numpy_toy_logp, toy_batch, toy_logp, toy_params

# Its state is the gradient, and parameters stay: a difference of parameters would be rounded.
KEEP_GRADIENT = optax.GradientTransformation(
    lambda params: jax.tree.map(jnp.zeros_like, params),
    lambda gradient, state, params: (jax.tree.map(jnp.zeros_like, gradient), gradient),
)


def answers(prompts=8, **settings):
    """Of one to five tokens; one is empty."""
    batch = toy_batch(prompts=prompts, group=1, **settings)
    return SFTBatch(prompts=batch.prompts, completions=batch.completions, mask=batch.mask)


ONE = ParallelConfig()
FAST_TO_COMPILE = {"xla_backend_optimization_level": 0}


def updated(batch, params, *, parallel=ONE, logp_fn=toy_logp, micro_batches=1):
    """Gradient and metrics of one update, on the host."""
    spread = make_parallel(parallel)
    step = functools.partial(
        sft_update, logp_fn=logp_fn, tx=KEEP_GRADIENT, micro_batches=micro_batches
    )
    state = spread.replicate(TrainState.create(params, KEEP_GRADIENT))
    state, metrics = spread.compile_update(step)(state, spread.shard(batch))
    state = jax.device_get(spread.unreplicate(state))
    assert state.step == 1
    return state.opt_state, {name: float(value) for name, value in metrics.items()}


def loss_by_hand(params, batch):
    return -numpy_toy_logp(params, batch)[batch.mask].sum() / batch.mask.sum()


def test_an_update_descends_the_mean_over_all_tokens():
    """Against central differences of the mean, written out for a policy written out."""
    with jax.enable_x64(True):
        batch = answers(prompts=3, length=4)
        params = {name: np.float64(x) for name, x in toy_params().items()}
        gradient, metrics = updated(batch, params)
        assert metrics.keys() == {"loss", "grad_norm", "finite"}
        assert metrics["finite"] == 1
        np.testing.assert_allclose(metrics["loss"], loss_by_hand(params, batch), rtol=1e-6)
        norm = np.sqrt(sum(np.sum(x**2) for x in gradient.values()))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-6)
        rng = np.random.default_rng(0)
        for _ in range(8):
            direction = {name: rng.normal(0, 1, x.shape) for name, x in params.items()}
            shifted = [
                loss_by_hand({k: params[k] + sign * 1e-6 * direction[k] for k in params}, batch)
                for sign in (1, -1)
            ]
            slope = sum(np.sum(gradient[k] * direction[k]) for k in params)
            np.testing.assert_allclose(slope, (shifted[0] - shifted[1]) / 2e-6, atol=1e-7)


DIVISIONS = [
    (ONE, 2),
    (ONE, 4),
    (ParallelConfig(strategy="pmap", devices=2), 1),
    (ParallelConfig(strategy="pmap", devices=4), 2),
    (ParallelConfig(strategy="mesh", devices=4), 2),
]


@pytest.mark.parametrize(("parallel", "micro_batches"), DIVISIONS)
def test_pieces_and_devices_make_the_update_of_one_batch(parallel, micro_batches):
    """In float64: a mean of the means of parts, of 3 to 18 tokens, is off by percents."""
    with jax.enable_x64(True):
        batch = answers()
        params = jax.tree.map(np.float64, toy_params())
        gradient, metrics = updated(batch, params)
        parts, part_metrics = updated(batch, params, parallel=parallel, micro_batches=micro_batches)
    for name, whole in gradient.items():
        np.testing.assert_allclose(parts[name], whole, rtol=0, atol=1e-14)
    assert part_metrics == pytest.approx(metrics, rel=1e-6)


def test_what_stands_in_the_padding_does_not_matter():
    batch, params = answers(), toy_params()
    clean = updated(batch, params)

    def with_junk(params, batch):
        return jnp.where(batch.mask, toy_logp(params, batch), jnp.nan)

    gradient, metrics = updated(batch, params, logp_fn=with_junk)
    assert metrics == clean[1]
    jax.tree.map(np.testing.assert_array_equal, gradient, clean[0])


def test_a_loss_that_is_not_finite_is_reported():
    def certain(params, batch):
        return toy_logp(params, batch) - jnp.inf

    assert updated(answers(), toy_params(), logp_fn=certain)[1]["finite"] == 0


def test_an_optimizer_without_a_kl_weight_holds_none_and_makes_its_step():
    tx = make_optimizer(OptimizerConfig(learning_rate=0.01), None, 10)
    state = TrainState.create(toy_params(), tx)
    with pytest.raises(ValueError, match="put carry_kl_coef"):
        rl.kl_coef(state.opt_state)
    update = jax.jit(functools.partial(sft_update, logp_fn=toy_logp, tx=tx))
    batch, losses = answers(), []
    for _ in range(10):
        state, metrics = update(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses == sorted(losses, reverse=True)


# The model


@pytest.fixture(scope="module")
def peer_gradient(tmp_path_factory):
    """Loss and gradient of transformers, one example at a time as its Trainer accumulates them."""
    config = make_config(
        heads=2, kv_heads=1, section=(1, 2, 1), depth=1, vision_depth=1, tied=False
    )
    rng = np.random.default_rng(3)
    layouts = ([(2, 3)], [], [(1, 1), (3, 1)], [(1, 2)])
    cases = [random_case(rng, config, grids) for grids in layouts]
    completions = [rng.integers(0, 80, length).astype(np.int32) for length in (7, 1, 4, 2)]
    peer = make_peer(config).requires_grad_(True)
    place = tmp_path_factory.mktemp("peer")
    peer.save_pretrained(place / "model")
    count = sum(map(len, completions))
    loss = 0.0
    for case, completion in zip(cases, completions, strict=True):
        logits = run_peer(peer, config, case, completion.tolist()).logits
        labels = torch.tensor([[-100] * len(case.tokens) + completion.tolist()])
        own = peer.loss_function(
            logits=logits, labels=labels, vocab_size=VOCAB, num_items_in_batch=count
        )
        own.backward()
        loss += own.item()
    for parameter in peer.parameters():
        parameter.data = parameter.grad
    peer.save_pretrained(place / "gradient")
    return config, cases, completions, place, loss


def test_loss_and_gradient_of_every_leaf_are_those_of_transformers(peer_gradient):
    """Of four examples with different images and lengths, in two pieces."""
    config, cases, completions, place, loss = peer_gradient
    graphdef, _ = random_params(config)
    mask = np.arange(8) < np.array([len(completion) for completion in completions])[:, None]
    tokens = np.full(mask.shape, 99, np.int32)
    tokens[mask] = np.concatenate(completions)
    batch = SFTBatch(
        prompts=to_prompts(config, cases, tokens=40),
        completions=tokens[:, None],
        mask=mask[:, None],
    )

    def logp_fn(params, batch):
        model = merge(graphdef, params)
        return completion_logp(model, batch.prompts, batch.completions, chunk=5)

    step = functools.partial(sft_update, logp_fn=logp_fn, tx=KEEP_GRADIENT, micro_batches=2)
    state = TrainState.create(load_hub(place / "model", config), KEEP_GRADIENT)
    state, metrics = jax.jit(step, compiler_options=FAST_TO_COMPILE)(state, batch)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    expected = load_hub(place / "gradient", config)

    def compare(path, own, theirs):
        largest = np.abs(theirs).max()
        assert largest > 1e-4
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-5 * largest, err_msg=str(path))

    jax.tree.map_with_path(compare, state.opt_state, expected)
