"""FFJORD as scikit-learn knows an estimator, and as a density that has to be one."""

import copy
import math
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from ffjord_kit import FFJORD, DensityModel

QUICK = {"schedule": [("flow_matching", 20)], "hidden": (16,), "random_state": 0}
LEARNT = {"schedule": [("flow_matching", 400)], "hidden": (32,), "learning_rate": 0.01, "random_state": 0}


def two_clouds(n, seed=0):
    """Two round clouds on the plane, around (-1.5, 0) and (1.5, 0)."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 2)) * 0.6 + 1.5 * np.sign(rng.normal(size=(n, 1))) * [1, 0]


X = two_clouds(400)


@pytest.fixture(scope="module")
def model():
    return FFJORD(**LEARNT, validate_every=50).fit(X)


# Weights change the random batches of a fit, and so its map to the base, as repeated rows do in another way.
RANDOM = {
    f"check_sample_weight_equivalence_on_{kind}_data": "weighted and repeated rows make other random batches"
    for kind in ("dense", "sparse")
}
GAPS = {"check_estimators_pickle": "transform takes rows without missing cells, and this check has some"}


@parametrize_with_checks(
    [FFJORD(schedule=[("flow_matching", 20)], hidden=(16,), random_state=0)],
    expected_failed_checks=lambda _: {**RANDOM, **GAPS},
)
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)


def test_a_pipeline_counts_in_the_units_after_its_scaler():
    pipeline = make_pipeline(StandardScaler(), FFJORD(**QUICK)).fit(X)
    plain = FFJORD(**QUICK).fit(X)
    shift = np.log(X.std(0)).sum()
    assert pipeline.score_samples(X) == pytest.approx(plain.score_samples(X) + shift, abs=1e-4)
    assert pipeline.score(X) == pytest.approx(pipeline.score_samples(X).mean())


@pytest.mark.slow
def test_cross_validation_and_grid_search_choose_by_the_likelihood():
    assert np.isfinite(cross_val_score(FFJORD(**QUICK), X[:100], cv=2)).all()
    fast = {**QUICK, "schedule": [("flow_matching", 150)], "ema_decay": 0.9}
    search = GridSearchCV(FFJORD(**fast), {"learning_rate": [1e-6, 2e-2]}, cv=2).fit(X[:200])
    assert search.best_params_ == {"learning_rate": 2e-2}
    assert np.isfinite(search.score(X[:9]))


@pytest.mark.slow
def test_a_clone_has_the_fields_and_nothing_learnt(model):
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert [name for name in vars(fresh) if name.endswith("_")] == []


def test_a_pickled_model_is_the_same_model(model):
    same = pickle.loads(pickle.dumps(model))
    assert np.array_equal(same.score_samples(X[:9]), model.score_samples(X[:9]))
    assert np.array_equal(same.sample(9, random_state=1), model.sample(9, random_state=1))


LAYOUTS = {
    "reversed rows": lambda x: x[::-1].copy()[::-1], "reversed columns": lambda x: x[:, ::-1].copy()[:, ::-1],
    "by columns": np.asfortranarray, "every second": lambda x: np.repeat(x, 2, axis=0)[::2], "lists": np.ndarray.tolist,
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_may_lie_in_memory_as_they_like(model, layout):
    assert model.score_samples(LAYOUTS[layout](X[:9])) == pytest.approx(model.score_samples(X[:9]), abs=1e-9)
    other = FFJORD(**{**QUICK, "schedule": [("flow_matching", 1)]})
    samples = other.fit(LAYOUTS[layout](X), context=LAYOUTS[layout](X)).sample(9, context=X[:9], random_state=0)
    assert other.sample(9, context=LAYOUTS[layout](X[:9]), random_state=0) == pytest.approx(samples, abs=1e-9)


@pytest.mark.parametrize("loaded", [False, True])
def test_columns_of_a_frame_are_checked_by_name_on_the_way_back_in(tmp_path, loaded):
    frame = pd.DataFrame(X, columns=["width", "height"])
    model = FFJORD(**QUICK).fit(frame, run=tmp_path / "run")
    model = FFJORD.load(tmp_path / "run") if loaded else model
    assert list(model.config_["columns"]) == ["width", "height"]
    assert model.score_samples(frame).shape == (400,)
    with pytest.raises(ValueError, match="feature names should match"):
        model.score_samples(frame[["height", "width"]])


def test_the_same_seed_gives_the_same_weights_and_samples():
    a, b, other = (FFJORD(**{**QUICK, "random_state": seed}).fit(X) for seed in (0, 0, 1))
    weights = [torch.cat([p.flatten() for p in m.flow_.parameters()]) for m in (a, b, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert np.array_equal(a.sample(5, random_state=2), b.sample(5, random_state=2))
    assert not np.array_equal(a.sample(5, random_state=2), a.sample(5, random_state=3))


def test_a_seed_that_was_not_given_is_told_and_gives_the_same_again():
    first = FFJORD(**{**QUICK, "random_state": None}).fit(X)
    second = FFJORD(**{**QUICK, "random_state": first.seed_}).fit(X)
    assert np.array_equal(first.score_samples(X[:9]), second.score_samples(X[:9]))


def test_a_row_scores_the_same_alone_and_in_any_company(model):
    together = model.score_samples(X[:50])
    alone = np.concatenate([model.score_samples(row[None]) for row in X[:10]])
    assert np.abs(alone - together[:10]).max() < 1e-9
    beside_an_outlier = model.score_samples(np.vstack([X[:10], [[30.0, -30.0]]]))[:10]
    assert np.abs(beside_an_outlier - together[:10]).max() < 1e-9


def test_a_sentinel_among_good_rows_has_a_finite_density_and_leaves_the_others_alone():
    model = FFJORD(**QUICK, fourier_features=4).fit(X)
    together = model.score_samples(np.vstack([X[:10], [[1e5, 1e5], [-1e8, 0.0]]]))
    assert np.isfinite(together).all()
    assert together[10:].max() < -1e6
    assert np.abs(together[:10] - model.score_samples(X[:10])).max() < 1e-9


def test_offset_and_scale_of_the_columns_change_the_density_by_their_volume_alone():
    scale, offset = np.array([1000.0, 0.01]), np.array([1e6, -5.0])
    plain, moved = FFJORD(**QUICK).fit(X), FFJORD(**QUICK).fit(X * scale + offset)
    shift = np.log(scale).sum()
    assert moved.score_samples(X * scale + offset) == pytest.approx(plain.score_samples(X) - shift, abs=1e-3)
    samples = (moved.sample(20, random_state=1) - offset) / scale
    assert samples == pytest.approx(plain.sample(20, random_state=1), abs=1e-3)


def test_the_rows_that_trained_and_those_held_out_are_all_rows_once(model):
    kept, held_out = model.split(X)
    assert (len(kept), len(held_out)) == (360, 40)
    both = np.concatenate([kept, held_out])
    assert np.array_equal(both[np.lexsort(both.T)], X[np.lexsort(X.T)])
    assert -model.score(held_out) == pytest.approx(model.history_.best_nll, abs=1e-2)


def test_a_small_table_is_split_too_given_as_lists():
    kept, held_out = FFJORD(**QUICK).fit(X[:20].tolist()).split(X[:20].tolist())
    assert (kept.shape, held_out.shape) == ((20, 2), (0, 2))


def plane(low, high, count):
    axis = np.linspace(low, high, count)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    return points, (axis[1] - axis[0]) ** 2


def test_the_density_of_a_fitted_model_integrates_to_one(model):
    points, area = plane(-6.0, 6.0, 60)
    assert np.exp(model.score_samples(points)).sum() * area == pytest.approx(1.0, abs=1e-3)


def test_the_fitted_density_is_close_to_the_truth(model):
    test = two_clouds(1000, seed=1)
    clouds = [-((test - [centre, 0.0]) ** 2).sum(1) / (2 * 0.6**2) for centre in (-1.5, 1.5)]
    gap = np.logaddexp(*clouds) - np.log(2 * 2 * np.pi * 0.6**2) - model.score_samples(test)
    assert -2 * gap.std() / math.sqrt(1000) < gap.mean() < 0.15


def test_samples_have_the_density_that_the_model_says(model):
    n = 1500
    drawn = model.score_samples(model.sample(n, random_state=1))
    with torch.no_grad():
        _, together = model.flow_.sample_with_log_prob(n, generator=torch.Generator().manual_seed(2))
    gap = drawn.mean() - together.numpy().mean()
    assert abs(gap) < 4 * math.hypot(drawn.std(), together.numpy().std()) / math.sqrt(n)


def test_a_draft_is_close_to_the_score(model):
    for time in (0.5, 1.0):
        gap = np.abs(model.draft(X, time=time) - model.score_samples(X, time=time))
        assert gap.mean() < 0.05
        assert gap.max() < 0.2


def test_at_time_zero_the_density_is_the_base_seen_through_the_scaling(model):
    kept, _ = model.split(X)
    z = (X - kept.mean(0)) / kept.std(0)
    base = -0.5 * (z**2).sum(1) - math.log(2 * math.pi) - np.log(kept.std(0)).sum()
    assert model.score_samples(X, time=0.0) == pytest.approx(base, abs=1e-9)
    assert np.abs(model.score_samples(X, time=1.0) - base).max() > 0.1


def precise(model):
    """The same model, integrated until nothing moves."""
    return copy.deepcopy(model).set_params(tolerance=1e-8)


def test_a_trajectory_carries_the_density_of_its_time(model):
    model = precise(model)
    way = model.trajectory(20, frames=5, random_state=1)
    assert (way.times.tolist(), way.x.shape, way.log_prob.shape) == ([0, 0.25, 0.5, 0.75, 1], (5, 20, 2), (5, 20))
    for i in (0, 2, 4):
        scored = model.score_samples(way.x[i], time=way.times[i])
        assert way.log_prob[i] == pytest.approx(scored, abs=1e-5)


def test_the_progress_bar_runs_and_tells_the_phases(capsys):
    FFJORD(**{**QUICK, "schedule": [("flow_matching", 4), ("mle", 1)]}, verbose=True).fit(X[:30])
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "flow_matching" in shown.err
    assert "mle" in shown.err


def conditional_rows(n, seed=0):
    rng = np.random.default_rng(seed)
    context = rng.uniform(-1.0, 1.0, size=(n, 1))
    return 2.0 * context + 0.3 * rng.normal(size=(n, 1)), context


@pytest.fixture(scope="module")
def conditional():
    y, context = conditional_rows(500)
    return FFJORD(**LEARNT).fit(y, context=context)


def test_a_conditional_model_follows_its_context(conditional):
    for c in (-0.8, 0.0, 0.8):
        samples = conditional.sample(400, context=[c], random_state=0)
        assert abs(samples.mean() - 2.0 * c) < 0.15
        assert 0.2 < samples.std() < 0.45
    y, context = conditional_rows(500, seed=1)
    truth = -0.5 * ((y - 2 * context) / 0.3) ** 2 - math.log(0.3 * math.sqrt(2 * math.pi))
    assert conditional.score(y, context=context) > truth.mean() - 0.2
    assert conditional.score(y, context=-context) < truth.mean() - 2.0


def test_a_context_may_be_one_row_for_all_or_one_for_each(conditional):
    conditional = precise(conditional)
    contexts = np.linspace(-1, 1, 4)[:, None]
    each = conditional.sample(4, context=contexts, random_state=1)
    assert np.array_equal(each, conditional.sample(4, context=contexts[:, 0], random_state=1))
    assert conditional.sample(4, context=[0.5], random_state=1).shape == (4, 1)
    way = conditional.trajectory(4, frames=3, context=contexts, random_state=1)
    assert way.x[-1] == pytest.approx(conditional.sample(4, context=contexts, random_state=1), abs=1e-5)
    assert way.log_prob[-1] == pytest.approx(conditional.score_samples(way.x[-1], context=contexts), abs=1e-5)


def test_one_context_serves_as_many_samples_as_it_has_values():
    model = FFJORD(**QUICK).fit(X, context=X)
    repeated = model.sample(2, context=[[0.1, 0.2], [0.1, 0.2]], random_state=0)
    assert np.array_equal(model.sample(2, context=[0.1, 0.2], random_state=0), repeated)


GRIDS = {
    "real": lambda u: (u, np.ones_like(u)),
    "positive": lambda u: (np.exp(u - 1), np.exp(u - 1)),
    "bounded": lambda u: (np.tanh(u), 1 / np.cosh(u) ** 2),
}
BOUNDED = ("bounded", -1, 1)
U = np.linspace(-9.0, 9.0, 61)


@pytest.mark.slow
@pytest.mark.parametrize("support", ["positive", BOUNDED, ["positive", BOUNDED], ["real", "positive"]], ids=str)
def test_a_density_on_a_support_lives_there_and_integrates_to_one(support):
    entries = support if isinstance(support, list) else [support]
    words = [entry if isinstance(entry, str) else entry[0] for entry in entries]
    z = np.random.default_rng(1).normal(size=(200, len(words)))
    x = np.stack([GRIDS[word](column)[0] for word, column in zip(words, z.T, strict=True)], axis=1)
    model = FFJORD(**{**QUICK, "schedule": [("flow_matching", 60)]}, support=support).fit(x)
    axes, slopes = zip(*(GRIDS[word](U) for word in words), strict=True)
    points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(words))
    volumes = np.prod(np.meshgrid(*slopes, indexing="ij"), axis=0).ravel() * (U[1] - U[0]) ** len(words)
    assert (np.exp(model.score_samples(points)) * volumes).sum() == pytest.approx(1.0, abs=1e-3)
    for word, column in zip(words, model.sample(300, random_state=0).T, strict=True):
        assert word == "real" or column.min() > (0 if word == "positive" else -1)
        assert word != "bounded" or column.max() < 1


MLE = {"schedule": [("mle", 2)], "solver": "rk4", "solver_steps": 2}
ROUND_TRIPS = {
    "standardize": {}, "whiten": {"scaling": "whiten"}, "none": {"scaling": "none"}, "blocks": {"blocks": 2},
    "support": {"support": ["positive", ("bounded", -9, 9)]}, "conditional": {"context": X[:40, :1]},
    "other network": {"dynamics": "concat_squash", "activation": "softplus", "hidden": (8, 4)},
    "maximum likelihood": {**MLE, "regularizers": {"kinetic": 0.1}},
    "adjoint": {
        "schedule": [("mle", 1)], "adjoint": "adjoint", "trace": "orthogonal", "probes": 2, "train_tolerance": 1e-2,
    },
    "potential": {"dynamics": "potential", "hidden": (8, 4), "schedule": [("mle", 1)], "regularizers": {"hjb": 0.1}},
    "learned end time": {**MLE, "end_time": 0.5, "learn_end_time": True},
    "checkpointed, steered": {
        "schedule": [("mle", 1)],
        "adjoint": "checkpointed",
        "steer": 0.5,
        "train_tolerance": 1e-2,
    },
}  # fmt: skip


@pytest.mark.parametrize("options", ROUND_TRIPS)
def test_every_kind_of_model_comes_back_from_a_folder_to_the_bit(tmp_path, options):
    fields = {**QUICK, "schedule": [("flow_matching", 4)], **ROUND_TRIPS[options]}
    given, x = {"context": fields.pop("context", None)}, np.abs(X[:40]) + 0.1
    model = FFJORD(**fields).fit(x, **given)
    model.save(tmp_path / "run")
    loaded = FFJORD.load(tmp_path / "run")
    assert loaded.get_params() == model.get_params()
    assert np.array_equal(loaded.score_samples(x, **given), model.score_samples(x, **given))
    samples = [m.sample(40, **given, random_state=1) for m in (model, loaded)]
    assert np.array_equal(*samples)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"scaling": "whiten"}, {"scaling": "none"}, {"blocks": 2}])
def test_other_scalings_and_more_blocks_learn_the_density_as_well(options):
    fields = {**LEARNT, "schedule": [("flow_matching", 150)], "ema_decay": 0.95}
    slanted = X @ [[0.8, 0.6], [-0.6, 0.8]]
    plain, other = (FFJORD(**fields, **more).fit(slanted) for more in ({}, options))
    assert other.score(slanted[:200]) == pytest.approx(plain.score(slanted[:200]), abs=0.2)
    assert np.cov(other.sample(300, random_state=0).T) == pytest.approx(np.cov(slanted.T), abs=0.6)


def test_a_row_outside_the_support_has_no_density_and_costs_the_others_nothing():
    x = np.abs(X) + 0.1
    model = FFJORD(**{**QUICK, "support": "positive"}).fit(x)
    mixed = np.concatenate([x[:3], [[-1.0, 1.0], [0.0, 1.0]]])
    assert np.array_equal(model.score_samples(mixed)[:3], model.score_samples(x[:3]))
    assert np.all(np.isneginf(model.score_samples(mixed)[3:]))
    assert np.all(np.isneginf(model.draft(mixed)[3:]))


def test_numbers_of_numpy_are_fields_too_and_can_be_saved(tmp_path):
    options = {**QUICK, "hidden": (np.int64(8),), "batch_size": np.int64(64)}
    FFJORD(**options).fit(X, run=tmp_path / "run")
    assert FFJORD.load(tmp_path / "run").hidden == (8,)


def test_a_config_that_cannot_be_written_leaves_the_run_that_was_there(tmp_path):
    FFJORD(**QUICK).fit(X, run=tmp_path / "run")
    before = {path.name for path in (tmp_path / "run").iterdir()}
    with pytest.raises(TypeError, match="text, numbers and lists"):
        FFJORD(**QUICK).fit(X, run=tmp_path / "run", force=True, data={"source": object()})
    assert {path.name for path in (tmp_path / "run").iterdir()} == before


def test_columns_of_a_frame_are_taken_by_their_names(tmp_path):
    x = np.random.default_rng(0).normal(size=(60, 3)) * [1, 10, 100]
    frame = pd.DataFrame(x, columns=["mass", "velocity", "energy"])
    turned = frame[["energy", "mass", "velocity"]]
    for data, columns in ((frame, None), (x, frame.columns)):  # from Python, and as the command line fits
        FFJORD(**QUICK).fit(data, columns=columns, run=tmp_path / "run", force=True)
        model = DensityModel.load(tmp_path / "run")
        assert np.array_equal(model.score_samples(turned), model.score_samples(x))
    assert np.array_equal(FFJORD.load(tmp_path / "run").score_samples(turned), model.score_samples(x))
    with pytest.raises(ValueError, match="X lacks columns of the fit: mass; it has energy, velocity"):
        model.score_samples(frame[["energy", "velocity"]])


def test_the_fitted_flow_is_solved_as_reports_are():
    x = np.random.default_rng(0).normal(size=(60, 2))
    model = FFJORD(**QUICK).fit(x)
    log_prob = model.flow_().log_prob(torch.tensor(x))
    assert np.array_equal(log_prob.numpy(), model.score_samples(x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_fit_without_gradients_around_it_is_the_same(mode):
    x = np.random.default_rng(0).normal(size=(60, 2))
    options = {"schedule": [("flow_matching", 5), ("mle", 2)], "hidden": (8,), "random_state": 0}
    with mode():
        inside = FFJORD(**options).fit(x)
    assert np.array_equal(inside.score_samples(x), FFJORD(**options).fit(x).score_samples(x))


def test_the_network_sees_rows_as_they_are_as_far_as_those_of_the_fit_reach(tmp_path):
    x = np.random.default_rng(0).normal(size=(300, 2))
    x[0, 1] = 40.0  # deviations grow to 2.5, so that this is at 15
    model = FFJORD(hidden=(8,), schedule=[("flow_matching", 2)], validation_fraction=0, random_state=0).fit(x)
    (field,) = (each.dynamics for each in model.flow_.transforms)
    assert field.reach[0] == 5.0
    assert 10 < float(field.reach[1]) < 20
    model.save(tmp_path / "run")
    assert FFJORD.load(tmp_path / "run").flow_.transforms[0].dynamics.reach.tolist() == field.reach.tolist()
