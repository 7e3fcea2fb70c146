"""Images through the estimator: what it takes and gives, whose noise is whose, and what it refuses."""

import pickle
import shutil

import numpy as np
import pytest
import torch

from ffjord_kit import FFJORD, ImageFFJORD
from ffjord_kit.diagnostics.outliers import GRADIENT_SOLVER
from ffjord_kit.noise import per_row_noise
from ffjord_kit.ode import AdaptiveSolver
from ffjord_kit.run import RunError
from ffjord_kit.trace import ExactTrace, PerRowTrace

TINY = {"hidden": (8,), "schedule": [("flow_matching", 8)], "batch_size": 16, "tolerance": 1e-3, "random_state": 0}


def pictures(n=60, shape=(5, 4), seed=0):
    """Bright or dark images, by their label."""
    rng, labels = np.random.default_rng(seed), np.arange(n) % 2
    levels = rng.normal(60 + 120 * labels.reshape(-1, *[1] * len(shape)), 20, (n, *shape))
    return np.clip(levels, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="module")
def grey():
    return ImageFFJORD(**TINY).fit(pictures()[0])


@pytest.fixture(scope="module")
def conditional(tmp_path_factory):
    """A model of labelled images, and its run."""
    x, labels = pictures(shape=(3, 4, 4))
    run = tmp_path_factory.mktemp("images") / "run"
    return ImageFFJORD(**TINY, context_dropout=0.2, flip=True).fit(x, context=labels, run=run), run


@pytest.mark.slow
def test_defaults_suit_the_shape(grey):
    now = grey.model_.config.fields
    assert (now.dynamics, now.scaling, now.time_density, now.batch_size) == ("unet", "logit", "likelihood", 16)
    usual = ImageFFJORD(schedule=[("flow_matching", 1)], hidden=(8,)).fit(pictures()[0])
    assert usual.model_.config.fields.batch_size == 64
    assert grey.event_shape_ == (1, 5, 4) and grey.n_features_in_ == 20


@pytest.mark.slow
def test_samples_are_images_of_the_shape_of_the_fits(grey, conditional):
    drawn = grey.sample(6, random_state=1)
    assert drawn.dtype == np.uint8 and drawn.shape == (6, 5, 4)
    assert np.array_equal(drawn, grey.sample(6, random_state=1))
    assert conditional[0].sample(3, context=1, random_state=1).shape == (3, 3, 4, 4)
    coarse = ImageFFJORD(**TINY, bits=3).fit(pictures()[0])
    assert not (coarse.sample(5, random_state=0) % 32).any()


@pytest.mark.slow
def test_scores_are_each_images_own(grey):
    x = pictures(seed=5)[0][:7]
    scores = grey.score_samples(x)
    assert np.array_equal(scores, grey.score_samples(x))
    assert grey.score_samples(x[3:4]) == pytest.approx(scores[3:4], abs=0.05)  # the solver's error
    assert grey.bits_per_dim(x).values.numpy() == pytest.approx(-scores / 20 / np.log(2), abs=5e-3)


@pytest.mark.slow
def test_more_draws_never_raise_the_bound_by_more_than_chance(grey):
    x = pictures(16, seed=6)[0]
    one, many = (grey.bits_per_dim(x, draws=draws, probes=8) for draws in (1, 6))
    assert many.mean < one.mean + 3 * one.standard_error
    assert "6 draws of uniform noise, 8 probes" in str(many)


@pytest.mark.slow
def test_errors_are_those_of_solver_and_trace(grey):
    x = pictures(seed=7)[0][:5]
    found = grey.certify(x)
    exact = grey.certify(x, probes=20)  # as many as pixels: the exact trace
    assert not exact.trace_error.any()
    assert (np.abs(found.log_prob - exact.log_prob) <= found.error + exact.error).all()


def test_a_run_is_loaded_as_it_was(conditional):
    (model, run), x = conditional, pictures(9, (3, 4, 4), seed=3)
    loaded = ImageFFJORD.load(run)
    assert np.array_equal(loaded.score_samples(x[0], context=x[1]), model.score_samples(x[0], context=x[1]))
    assert np.array_equal(
        loaded.sample(4, context=[0, 1, 0, 1], random_state=2), model.sample(4, context=[0, 1, 0, 1], random_state=2)
    )
    assert loaded.model_.domain == model.model_.domain


@pytest.mark.slow
def test_a_class_tells_and_guidance_tells_more(conditional):
    model, _ = conditional
    plain, strong = (model.sample(20, context=1, random_state=0, guidance=w) for w in (1.0, 4.0))
    assert (plain != strong).any()
    with pytest.raises(ValueError, match="fitted with labels and context_dropout"):
        ImageFFJORD(**TINY).fit(*pictures()[:1], context=pictures()[1]).sample(2, context=0, guidance=2.0)
    for context, came in (
        (2, "got 2 to 2"),
        ([0, 1, 0], r"got int64 of shape \(3,\)"),
        (None, "got none"),
        ("a", "got <U1"),
    ):
        with pytest.raises(
            ValueError, match=f"context must be a label, or 2 of them, whole numbers from 0 to 1; {came}"
        ):
            model.sample(2, context=context)


@pytest.mark.parametrize("form", [float, bool, lambda labels: labels[:, None]])
def test_labels_may_be_of_any_kind_of_numbers(form):
    x, labels = pictures(20)
    assert (
        ImageFFJORD(**TINY)
        .fit(x, context=form(labels) if form not in (float, bool) else labels.astype(form))
        .model_.domain.classes
        == 2
    )


@pytest.mark.parametrize(
    ("labels", "text"),
    [
        (np.arange(20) - 1, "labels must be 0 to 999; got -1 to 18"),
        (np.arange(20) * 10**9, "labels must be 0 to 999; got 0 to 1.9e"),
        (np.array(["cat"] * 20), r"whole numbers from 0; got <U3: pass np.unique\(labels, return_inverse=True\)"),
        (np.array([1]), "context must have shape"),
    ],
)
def test_labels_that_are_none_are_refused(labels, text):
    with pytest.raises(ValueError, match=text):
        ImageFFJORD(**TINY).fit(pictures(20)[0], context=labels)


@pytest.mark.slow
def test_the_axis_of_one_channel_is_optional(grey):
    x = pictures(3)[0]
    assert np.array_equal(grey.score_samples(x), grey.score_samples(x[:, None]))
    with_axis = ImageFFJORD(**TINY).fit(pictures()[0][:, None])
    assert np.array_equal(with_axis.score_samples(x), with_axis.score_samples(x[:, None]))
    assert with_axis.sample(2).shape == (2, 1, 5, 4)


def test_a_fitted_model_is_pickled():
    model = ImageFFJORD(**{**TINY, "dynamics": "convolution"}).fit(pictures()[0])
    x = pictures(3)[0]
    assert np.array_equal(pickle.loads(pickle.dumps(model)).score_samples(x), model.score_samples(x))


def test_a_few_images_hold_none_out():
    model = ImageFFJORD(**TINY).fit(pictures(12)[0])
    assert len(model.split(pictures(12)[0])[1]) == 0 and model.history_.best_nll is None


@pytest.mark.slow
def test_a_conditional_model_is_a_classifier(conditional, grey):
    x, labels = pictures(10, (3, 4, 4), seed=12)
    found = conditional[0].class_probabilities(x)
    assert found.shape == (10, 2) and found.sum(1) == pytest.approx(1)
    scores = [conditional[0].score_samples(x[:2], context=label) for label in (0, 1)]
    assert np.log(found[:2, 0] / found[:2, 1]) == pytest.approx(scores[0] - scores[1], abs=1e-2)
    with pytest.raises(ValueError, match="fitted with context=labels"):
        grey.class_probabilities(x)


@pytest.mark.slow
def test_likelihood_trains_images_by_few_steps_that_are_made_again():
    model = ImageFFJORD(schedule=[("flow_matching", 4), ("mle", 2)], hidden=(8,), batch_size=8, random_state=0).fit(
        pictures(24)[0]
    )
    now = model.model_.config.fields
    assert (now.solver, now.solver_steps, now.adjoint) == ("rk4", 4, "checkpointed")
    assert any("solver_error" in record for record in model.history_.records)  # the guard looks on
    adaptive = ImageFFJORD(solver="dopri5", schedule=[("mle", 1)], hidden=(8,)).fit(pictures(8)[0])
    assert adaptive.model_.config.fields.solver_steps is None


def test_strided_images_are_taken_where_they_lie():
    x = pictures(20, (4, 4, 3))[0].transpose(0, 3, 1, 2)
    model = ImageFFJORD(**TINY).fit(x)
    assert np.shares_memory(model.model_.domain.images(x).numpy(), x)
    assert np.array_equal(model.model_.domain.images(x[:, :, ::-1]).numpy(), x[:, :, ::-1])


def test_states_lead_from_noise_to_the_samples(grey):
    assert np.array_equal(*grey.states(2, [0.0, 0.0]))  # one noise, whatever the seed
    states = grey.states(3, [0.0, 0.5, 1.0], random_state=4)
    assert states.shape == (3, 3, 5, 4)
    assert np.array_equal(np.clip(np.floor(states[-1]), 0, 255).astype(np.uint8), grey.sample(3, random_state=4))


def test_ways_between_data_begin_and_end_at_them(grey, conditional):
    x = pictures(seed=8)[0]
    way = grey.interpolate(x[:2], x[2:4], steps=5)
    assert way.shape == (2, 5, 5, 4)
    assert np.array_equal(way[:, 0], x[:2]) and np.array_equal(way[:, -1], x[2:4])
    same = grey.interpolate(x[:2], x[:2], steps=3)
    assert np.abs(same[:, 1].astype(int) - x[:2]).max() <= 1  # there and back, to a level at its edge
    x, labels = pictures(4, (3, 4, 4))
    way = conditional[0].interpolate(x[:1], x[1:2], steps=3, contexts=(labels[:1], labels[1:2]))
    assert way.shape == (1, 3, 3, 4, 4)
    with pytest.raises(ValueError, match="pairs of data and 3 steps or more; got 1, 2, 3"):
        conditional[0].interpolate(x[:1], x[1:3], steps=3)


def test_the_split_is_that_of_the_fit(grey):
    train, held_out = grey.split(pictures()[0])
    assert (len(train), len(held_out)) == (54, 6)


def test_scales_leave_pixels_behind_and_learn_by_likelihood_alone():
    model = ImageFFJORD(dynamics="convolution", hidden=(4,), scales=2, max_seconds=0.5, batch_size=8, random_state=0)
    model.fit(pictures(24, (4, 4))[0])
    assert model.config_["chosen"]["schedule"][0][0] == "mle"
    assert np.isfinite(model.score(pictures(3, (4, 4))[0]))


@pytest.mark.slow
def test_images_stay_bytes_and_are_not_copied():
    x = pictures(64, (1, 4, 4))[0]
    x.flags.writeable = False
    ImageFFJORD(**TINY).fit(x)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (np.zeros((4, 5, 5)), r"uint8 of 0 to 255; got float64: scale them"),
        (np.zeros((4, 9, 5, 3), np.uint8), r"channels come last, pass X.transpose\(0, 3, 1, 2\)"),
        (np.zeros((1, 5, 5), np.uint8), "images must be 2 or more; got 1"),
        (np.zeros((0, 5, 5), np.uint8), r"shape \(n >= 1, 5, 5\); got \(0, 5, 5\)"),
    ],
)
def test_what_are_no_images_is_refused(x, text):
    with pytest.raises(ValueError, match=text):
        ImageFFJORD(**TINY).fit(x)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"dynamics": "residual"}, "dynamics must be one of convolution, unet; got 'residual'"),
        ({"scaling": "whiten"}, "scaling must be one of logit, plain; got 'whiten'"),
        ({"activation": "tanh"}, "dynamics='unet' has its own activation"),
        ({"hidden": (12,)}, "hidden must be widths that are multiples of 8"),
        ({"bits": 9}, "bits must be 1 to 8; got 9"),
        ({"alpha": 0.5}, "alpha must lie between 0 and 1/2; got 0.5"),
        ({"scales": 2, "dynamics": "convolution"}, "flow matching moves every pixel to the end"),
        (
            {"scales": 2, "schedule": [("mle", 1)], "dynamics": "convolution"},
            "2 scales need sides that are multiples of 4; got 5 x 4",
        ),
    ],
)
def test_fields_that_do_not_suit_images_are_refused(fields, text):
    with pytest.raises(ValueError, match=text):
        ImageFFJORD(**{**TINY, **fields}).fit(pictures()[0])


def test_tables_and_images_have_an_estimator_each():
    table, images = np.random.default_rng(0).normal(size=(20, 2)), pictures()[0]
    with pytest.raises(ValueError, match=r"FFJORD is for tables .*: use ImageFFJORD for images"):
        FFJORD().fit(images)
    with pytest.raises(ValueError, match=r"ImageFFJORD is for images .*: use FFJORD for tables"):
        ImageFFJORD().fit(table)
    for kind, field in ((FFJORD, "flip"), (ImageFFJORD, "support")):
        with pytest.raises(TypeError, match=field):
            kind(**{field: True})


def test_requests_that_only_tables_have_are_refused(grey):
    x = pictures()[0]
    for ask in (lambda: grey.model_.trajectory(), lambda: grey.model_.reflow(x), lambda: grey.model_.diagnose(x)):
        with pytest.raises(ValueError, match="is for tables, and this model is of images"):
            ask()
    with pytest.raises(ValueError, match=r"images must have shape \(n >= 1, 5, 4\); got \(2, 4, 5\)"):
        grey.score(x[:2].transpose(0, 2, 1))


def test_a_config_whose_images_make_no_sense_is_refused(conditional, tmp_path):
    shutil.copytree(conditional[1], tmp_path / "run")
    config = (tmp_path / "run/config.json").read_text()
    for old, new in (
        ('"bits": 8,\n    "classes"', '"bits": 80,\n    "classes"'),
        ("3,\n      4,", "300000,\n      4,"),
    ):
        assert old in config
        (tmp_path / "run/config.json").write_text(config.replace(old, new))
        with pytest.raises(RunError, match=r"config\.json|does not fit"):
            ImageFFJORD.load(tmp_path / "run")


def test_own_noise_is_seeded_by_the_row_and_differs_where_one_comes_again():
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0], [1.0, 2.0]])
    u = per_row_noise(x, 2, "a")
    assert torch.equal(per_row_noise(x[1:2], 2, "a"), u[:, 1:2]) and torch.equal(per_row_noise(x[:1], 2, "a"), u[:, :1])
    assert not torch.equal(u[:, 0], u[:, 2]) and not torch.equal(per_row_noise(x, 2, "b"), u)
    many = PerRowTrace(1).draw(torch.randn(4000, 2, generator=torch.Generator().manual_seed(0)))[0]
    assert torch.allclose(many.T @ many / 4000, torch.eye(2), atol=0.08)


def test_scores_of_outliers_are_those_of_their_definitions():
    x = np.random.default_rng(0).normal(size=(300, 2)) * [1.0, 3.0]
    model = FFJORD(schedule=[("flow_matching", 200)], hidden=(16,), random_state=0).fit(x)
    rows = np.array([[0.0, 0.0], [6.0, 20.0], [1.0, -2.0]])
    found = model.outlier_scores(rows, reference=-3.0)
    log_prob = model.score_samples(rows)
    assert found["likelihood"] == pytest.approx(-log_prob)
    assert found["typicality"] == pytest.approx(np.abs(log_prob + 3.0))
    points, scaling = torch.tensor(rows), model.flow_.preprocess.transforms[0]
    slope = model.flow_.score(points, solver=AdaptiveSolver(rtol=1e-8, atol=1e-8)) * scaling.scale
    assert found["gradient"] == pytest.approx(slope.norm(dim=1).numpy(), rel=0.02, abs=0.01)
    assert found["gradient"].argmax() == found["likelihood"].argmax() == 1
    assert GRADIENT_SOLVER.adjoint == "checkpointed" and isinstance(model.model_.config.reporting.trace, ExactTrace)


@pytest.mark.slow
def test_scores_of_outliers_tell_dark_images_from_striped_ones(grey):
    x, odd = pictures(seed=9)[0][:6], np.tile(np.array([0, 255], np.uint8), (6, 5, 2))
    progress = []
    reference = grey.score(x)
    watch = {"reference": reference, "on_progress": lambda *n: progress.append(n)}
    scores = [grey.outlier_scores(part, **watch) for part in (x, odd)]
    assert all(set(found) == {"likelihood", "typicality", "gradient"} for found in scores)
    assert scores[1]["likelihood"].min() > scores[0]["likelihood"].max()
    assert progress[-1] == (6, 6)
