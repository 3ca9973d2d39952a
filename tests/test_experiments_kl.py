"""The experiments about the KL: its gradient, exactly and from samples, and accuracy against it."""

import functools
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments import kl_gradients
from experiments.kl.enumeration import all_sequences, enumerate_gradients, random_points
from experiments.kl.sampling import (
    KINDS,
    SEQUENCES,
    TOKENS,
    Gradients,
    batch_gradients,
    bootstrap,
    products,
)
from experiments.kl.terms import DISTINCT, IN_REWARD, REDUCTIONS, TERMS, Quality, Term
from experiments.kl_frontier import KLFrontier, controls, front_shares, on_front
from experiments.kl_gradients import KLGradients
from experiments.lab import experiment as lab_experiment
from experiments.lab.cells import evaluation_directory
from experiments.lab.hole import mentions
from experiments.lab.scales import constant_kl
from experiments.objectives import RATES, Objectives
from experiments.overoptimisation import PAIRS, Overoptimisation
from experiments.overoptimisation import controls as over_controls
from othink_jax import rl
from othink_jax.model.log_probs import completion_logp
from othink_jax.model.vlm import merge
from othink_jax.rewards import RewardExample
from othink_jax.training.losses import make_loss
from othink_jax.training.optimizer import make_kl
from tests.model_cases import make_config, random_case, random_params, to_prompts
from tests.test_experiments_lab import TUNED, finish, made

K1, K2, K3, K3_REVERSE, K3_RATIO = (
    Term(estimator=estimator, gradient=gradient)
    for estimator, gradient in (
        ("k1", "own"),
        ("k2", "own"),
        ("k3", "own"),
        ("k3", "reverse"),
        ("k3", "ratio"),
    )
)


@pytest.fixture(autouse=True)
def tuned(monkeypatch):
    monkeypatch.setattr(lab_experiment, "read_tuned", lambda path: TUNED)


@pytest.fixture(scope="module")
def exact():
    """By term and reduction: on the policy's own samples, and on those of an older policy."""
    points, logits = random_points(1, distances=(1.0,))
    assert [point.off_policy for point in points] == [False, True]
    return enumerate_gradients(logits, terms=(K1, K2, K3, K3_REVERSE, K3_RATIO, IN_REWARD))


def test_every_sequence_is_there_once_and_their_chances_sum_to_one():
    """Of tokens 1 and 2, ended by 0 or by the limit of 3: 1 + 2 + 4 * 3 of them, in 7 contexts."""
    every = all_sequences()
    assert (len(every.tokens), every.contexts) == (15, 7)
    assert len({tuple(row[real]) for row, real in zip(every.tokens, every.mask, strict=True)}) == 15
    _, logits = random_points(1)
    chances = jax.nn.softmax(logits[0, 0])[every.context, every.tokens]
    assert np.where(every.mask, chances, 1.0).prod(axis=1).sum() == pytest.approx(1, abs=1e-6)


def test_in_the_reward_the_kl_of_whole_sequences_is_descended_and_no_term_of_the_loss_does(exact):
    on_policy, off_policy = exact[IN_REWARD, "sum"]
    assert (on_policy.cosine, on_policy.descent) == pytest.approx((1, 1))
    assert on_policy.bias < 1e-9
    assert off_policy.bias > 0.1  # it is the KL of the policy that sampled
    for term in (K1, K2, K3, K3_RATIO):
        assert exact[term, "sum"][0].bias > 0.1


def test_k2_descends_the_kl_of_each_token_and_k1_nothing(exact):
    on_policy, _ = exact[K2, "sum"]
    assert on_policy.cosine_tokens == pytest.approx(1)
    assert on_policy.cosine < 0.999
    noise, _ = exact[K1, "sum"]
    assert (noise.cosine, noise.bias) == pytest.approx((0, 1))
    assert noise.noise > 1
    assert exact[K3, "sum"][0].cosine_tokens < 0.999


def test_k1_climbs_where_an_older_policy_has_sampled(exact):
    assert exact[K1, "sum"][1].descent < -0.1


def test_a_mean_over_each_sequence_gives_k1_a_gradient_that_is_of_the_length_alone(exact):
    assert abs(exact[K1, "sequence"][0].descent) > 1e-3


def test_times_the_ratio_k3_is_k2_but_for_another_sampler(exact):
    for reduction in ("sum", "sequence", "token"):
        ratio, older = exact[K3_RATIO, reduction]
        assert vars(ratio) == pytest.approx(vars(exact[K2, reduction][0]))
        assert vars(older) != pytest.approx(vars(exact[K2, reduction][1]))
        assert exact[K3_REVERSE, reduction] == exact[K2, reduction]


def fast(function):
    """Compiled in half the time, to the same numbers."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def model():
    """Policy and reference, a prompt, a completion of two tokens; gradients with one of them real
    and with both."""
    config = make_config(heads=2, kv_heads=1, section=(1, 2, 1))
    graphdef, policy = random_params(config, seed=0)
    _, reference = random_params(config, seed=1)
    case = random_case(np.random.default_rng(0), config, (), words=2)
    prompts = to_prompts(config, [case], slots=0)
    completion = jnp.array([[[7, 5]]], jnp.int32)
    gradients = fast(functools.partial(batch_gradients, graphdef))
    masks = [jnp.array([[[True, both]]]) for both in (False, True)]
    short, long = (gradients(policy, reference, prompts, completion, mask) for mask in masks)

    def logp_of(params, tokens):
        model = merge(graphdef, params)
        return completion_logp(model, prompts, jnp.asarray(tokens), chunk=999)

    def gradient(loss):
        return ravel_pytree(fast(jax.grad(loss))(policy)["text"])[0]

    size = config.text.vocab_size
    return policy, reference, size, completion, logp_of, gradient, short, long


@pytest.mark.slow
def test_the_true_gradient_of_a_model_is_that_of_the_whole_vocabularys_kl(model):
    """Of the first token alone; with a second one, the first answers for its KL as well."""
    policy, reference, size, completion, logp_of, gradient, short, long = model
    every_token = np.arange(size)[None, :, None]

    def first_kl(params):
        logp, ref_logp = (logp_of(one, every_token) for one in (params, reference))
        return (jnp.exp(logp) * (logp - ref_logp)).sum()

    rows, kl = short
    np.testing.assert_allclose(kl, fast(first_kl)(policy), rtol=1e-4)
    np.testing.assert_allclose(rows[TOKENS], gradient(first_kl), atol=1e-5)
    np.testing.assert_allclose(rows[SEQUENCES], rows[TOKENS], atol=1e-6)

    rows, both = long
    first_logp = gradient(lambda params: logp_of(params, completion)[0, 0, 0])
    assert both - kl > 0.1
    expected = (both - kl) * first_logp
    np.testing.assert_allclose(rows[SEQUENCES] - rows[TOKENS], expected, atol=2e-5)


@pytest.mark.slow
def test_gradients_of_a_models_terms_are_those_of_the_loss(model):
    policy, reference, _, completion, logp_of, gradient, _, long = model
    ref_logp, old_logp = (
        fast(lambda one: logp_of(one, completion))(params) for params in (reference, policy)
    )

    def loss(params, **settings):
        given = (logp_of(params, completion), old_logp, ref_logp, jnp.zeros((1, 1)))
        mask = jnp.ones((1, 1, 2), bool)
        return rl.policy_loss(*given, mask, kl_coef=1.0, **settings)[0].value

    k2 = gradient(functools.partial(loss, kl_term=rl.own_gradient(rl.kl_k2)))
    np.testing.assert_allclose(long[0][KINDS.index((K2, "sequence"))], k2, atol=1e-5)
    settings = {"kl_in_reward": True, "reduce": rl.sum_over_tokens}
    in_reward = gradient(functools.partial(loss, **settings))
    np.testing.assert_allclose(long[0][KINDS.index((IN_REWARD, "sum"))], in_reward, atol=1e-5)


def noisy(mean_of_k2: float, batches: int = 40, size: int = 10_000) -> Gradients:
    """True gradients of length 1, k2 along them as far as told, in noise five times as long.

    The noise of a batch is the same in all of them.
    """
    rng = np.random.default_rng(0)
    rows = np.repeat(rng.normal(size=(batches, 1, size)), len(KINDS) + 2, axis=1) / 20
    rows[:, :, 0] += 1.0
    rows[:, KINDS.index((K2, "sum")), 0] += mean_of_k2 - 1.0
    return Gradients(rows=rows.astype(np.float32), length=5.0, kl=0.1, size=4)


def test_the_noise_that_a_batch_shares_with_itself_is_not_taken_for_a_direction():
    """Of one batch, the product of a gradient and the true one is 26 by the noise alone."""
    found = products(noisy(mean_of_k2=0.5), (K2, "sum"))
    assert found.quality().descent == pytest.approx(0.5, abs=0.1)
    assert found.quality().cosine > 0.9
    assert found.quality().noise == pytest.approx(5 * 4**0.5, rel=0.1)
    low, high = bootstrap(found, draws=200)["descent"]
    assert low < 0.5 < high
    assert high - low < 1
    upward = products(noisy(mean_of_k2=-0.5), (K2, "sum")).quality()
    assert upward.cosine < -0.9


def test_a_mean_over_tokens_is_compared_with_nats_a_token():
    found = products(noisy(mean_of_k2=1.0), (K2, "token")).quality()
    assert found.descent == pytest.approx(5.0, rel=0.2)  # the same rows, of five tokens a sequence


def test_the_gradients_are_told_in_one_table_with_a_verdict_a_term(tmp_path, monkeypatch):
    experiment = made(KLGradients, tmp_path)
    values = {"cosine": 0.5, "cosine_tokens": 0.5, "descent": 0.4, "bias": 0.6, "noise": 3.0}
    plain = Quality(**values)
    by_term = {
        IN_REWARD: Quality(**values | {"cosine": 1.0}),
        K2: Quality(**values | {"cosine_tokens": 1.0}),
        K1: Quality(**values | {"descent": 0.0}),
    }

    def enumerated(logits):
        kinds = itertools.product(TERMS, REDUCTIONS)
        return {(term, way): [by_term.get(term, plain)] * len(logits) for term, way in kinds}

    monkeypatch.setattr(kl_gradients, "enumerate_gradients", enumerated)
    monkeypatch.setattr(KLGradients, "_sampled", lambda self, seed: noisy(1.0, batches=6, size=10))
    monkeypatch.setattr(KLGradients, "draws", 20)
    monkeypatch.setattr(KLGradients, "policies", 2)
    result = experiment.result()
    answer, by_distance, by_seed = result.tables
    verdicts = {row[0]: row[2] for row in answer.rows}
    assert len(answer.rows) == len(KINDS) == 27
    assert verdicts["k1 in the reward"] == "yes"
    assert verdicts["k2"] == "that of each token"
    assert verdicts["k1"] == "no, it is noise"
    assert verdicts["k3"] == "not exactly"
    assert answer.rows[0][3] == "0.50 (0.50 to 0.50)"
    assert len(by_distance.rows) == len(DISTINCT) * 2 * 4
    assert len(by_seed.rows) == len(DISTINCT) * 2
    record = json.loads(json.dumps(result.numbers))
    assert len(record["embedded"]) == 27 * 2
    assert record["enumerated"][0]["gradient"] == "own"
    assert len(record["enumerated"]) == 27
    assert len(record["points"]) == 4 * 2 * experiment.policies
    assert record["enumerated"][0]["noise"] == [3.0] * len(record["points"])


def metrics(root, cell, kl: float) -> None:
    rows = [{"kl": kl, "clip_fraction": 0.25}] * 20
    (root / cell.name / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_each_objective_has_the_learning_rate_that_the_validation_split_chose(tmp_path):
    experiment = made(Objectives, tmp_path)
    root = experiment.options.root
    trials = experiment.trials()
    assert len({cell.name for cell in trials}) == len(rl.OBJECTIVES) * len(RATES) * 2
    for cell in trials:
        chosen = RATES[1] if cell.train.loss.objective == "gspo" else RATES[2]
        finish(root, cell, 0.6 if cell.train.optimizer.learning_rate == chosen else 0.4)
    base, *trained = experiment.cells()
    assert experiment.rates["gspo"] == RATES[1]
    assert {experiment.rates[name] for name in rl.OBJECTIVES if name != "gspo"} == {RATES[2]}
    assert not {cell.name for cell in trained} & {cell.name for cell in trials}
    finish(root, base, 0.2)
    for cell in trained:
        make_loss(cell.train.loss)
        assert cell.train.inner_updates == 2
        finish(root, cell, 0.5 if cell.train.loss.objective == "ppo" else 0.4)
        metrics(root, cell, kl=0.05)
    result = experiment.result()
    table, greedy, _, rates = result.tables
    assert [row[0] for row in table.rows] == ["base", *rl.OBJECTIVES]
    assert table.rows[1][:3] == ["ppo", "0.0001", "50.0 (50.0 to 50.0)"]
    assert table.rows[1][-2:] == ["25.0", "0.05"]
    assert greedy.rows[0][:2] == ["dual_clip - ppo", "-10.0 (-10.0 to -10.0)"]
    assert len(greedy.rows) == len(rl.OBJECTIVES) - 1
    assert sum(row[-1] == "chosen" for row in rates.rows) == len(rl.OBJECTIVES)


def test_a_point_is_on_the_front_unless_another_one_beats_it():
    """As accurate at a smaller KL, or more accurate at the same; equals do not beat each other."""
    kl = np.array([0.1, 0.2, 0.3, 0.1, 0.1])
    accuracy = np.array([0.5, 0.4, 0.9, 0.5, 0.3])
    assert on_front(kl, accuracy).tolist() == [True, False, True, True, False]


def test_what_is_less_accurate_than_the_base_is_on_no_front():
    """The second point is ahead of the first with one seed of two: in a quarter of the draws."""
    kl = np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]])
    accuracy = np.array([[0.5, 0.9], [0.8, 0.3], [0.1, 0.1]])
    front, shares = front_shares(kl, accuracy, base=0.2, draws=4000)
    assert front.tolist() == [True, False, False]
    assert shares == pytest.approx([1, 0.25, 0], abs=0.03)


def test_every_control_of_the_kl_weight_is_shown_by_its_kl_and_accuracy(tmp_path):
    experiment = made(KLFrontier, tmp_path)
    root = experiment.options.root
    base, *trained = experiment.cells()
    labels = [label for family in controls().values() for label in family]
    assert len(labels) == 6 + 3 + 3 * 2
    assert len({cell.name for cell in trained}) == len(labels) * 2 * 2
    finish(root, base, 0.2)
    for cell in trained:
        make_kl(cell.train.kl, 10)
        largest = cell.train.kl == constant_kl(1.0)
        finish(root, cell, 0.5)
        metrics(root, cell, kl=0.01 if largest else 0.09)
    result = experiment.result()
    assert len(result.tables) == 4
    rows = {row[0]: row for row in result.tables[0].rows}
    assert rows["constant 1"][1:3] == ["0.010 (0.010 to 0.010)", "50.0 (50.0 to 50.0)"]
    assert [label for label, row in rows.items() if row[4] == "yes"] == ["constant 1"]
    assert rows["dual to 0.02"][5] == "0"
    assert result.numbers["kl"]["geometry"]["constant 1"] == pytest.approx([0.01, 0.01])
    assert result.figure is not None


def overoptimised(root, cell, kl: float) -> None:
    """20 steps, in which the truth is highest in the middle and the proxy rises."""
    rows = [
        {"kl": kl * n / 20, "reward_mentions": n / 20, "reward_accuracy": 0.6 - abs(n - 10) / 50}
        for n in range(20)
    ]
    (root / cell.name / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))


def test_proxy_and_truth_stand_side_by_side_for_every_control(tmp_path):
    experiment = made(Overoptimisation, tmp_path)
    root = experiment.options.root
    base, *trained = experiment.cells()
    labels = [label for family in over_controls().values() for label in family]
    assert len({cell.name for cell in trained}) == len(labels) * 2 == (4 + 3 + 2) * 2
    assert {label for pair in PAIRS for label in pair} < set(labels)
    for cell in (base, *trained):
        (test,) = cell.tests
        assert test.reward.functions == ("experiments.lab.hole:mentions", "format")
        finish(root, cell, 0.2 if cell is base else 0.5)
        file = evaluation_directory(root, cell, test) / "predictions.jsonl"
        rows = [json.loads(line) | {"rewards": {"mentions": 0.9}} for line in file.open()]
        file.write_text("\n".join(map(json.dumps, rows)))
    for cell in trained:
        make_kl(cell.train.kl, 10)
        assert cell.train.steps == 200
        overoptimised(root, cell, kl=0.1 if cell.train.kl == constant_kl(0.25) else 0.4)
    result = experiment.result()
    after, training, pairs = result.tables
    rows = {row[0]: row for row in after.rows}
    assert rows["base"][2] == "90.0"
    assert rows["base"][3].startswith("20.0 ")
    assert rows["constant 0.25"][1] == "0.092 (0.092 to 0.092)"
    assert [label for label, row in rows.items() if row[5] == "yes"] == ["constant 0.25"]
    found = training.rows[0]
    assert found[:2] == ["constant 0.001", "6"]
    assert found[2].startswith("41.0 ")
    assert found[3].startswith("59.0 ")
    assert found[4].startswith("43.0 ")
    assert found[-1].startswith("-16.0 ")
    assert [row[0] for row in pairs.rows][-1] == "Eq. 3, 0.1 to 0.4 - constant 0.25"
    assert result.figure is not None


def test_the_hole_is_a_number_that_is_mentioned_and_not_answered():
    example = RewardExample(question="How many?", answer="3")
    assert mentions("<think>1 2 3 4</think> <answer>4</answer>", example)
    assert not mentions("<think>13</think> <answer>4</answer>", example)
