"""Networks and bases of a user's own in FFJORD: fitted, cloned, saved, and asked for on loading."""

import json

import numpy as np
import pytest
import torch
from commands import call
from sklearn.base import clone
from torch import nn
from torch.distributions import Independent, Laplace

from ffjord_kit import FFJORD, Circle, DensityModel
from ffjord_kit.distributions import StandardNormal

QUICK = {"schedule": [("flow_matching", 3)], "hidden": (6,), "random_state": 0}
ROWS = np.random.default_rng(0).normal(size=(40, 2))


class Swirl(nn.Module):
    """A plain module with the signature of the menu."""

    def __init__(self, event_shape, *, context_dim=0, hidden=(6,)):
        super().__init__()
        size = event_shape[0]
        self.net = nn.Sequential(nn.Linear(size + 1 + context_dim, hidden[0]), nn.Tanh(), nn.Linear(hidden[0], size))

    def forward(self, t, x, context=None):
        time = torch.as_tensor(t, dtype=x.dtype).expand(len(x)).reshape(-1, 1)
        return self.net(torch.cat([x, time, *([] if context is None else [context])], dim=1))


def laplace(scale=1.0):
    return Independent(Laplace(torch.zeros(2), torch.full((2,), scale)), 1)


OWN = {
    "a class": {"dynamics": Swirl}, "a module": {"dynamics": Swirl((2,))}, "a distribution": {"base": laplace()},
    "a class of bases": {"base": StandardNormal}, "a base": {"base": StandardNormal((2,))},
}  # fmt: skip


FAST = ("a class", "a distribution")


@pytest.mark.parametrize(
    "kind", [*FAST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OWN if kind not in FAST)]
)
def test_a_model_with_own_objects_is_saved_and_loaded(kind, tmp_path):
    own = OWN[kind]
    model = clone(FFJORD(**QUICK, **own)).fit(ROWS)
    model.save(tmp_path / "run")
    ((name, value),) = own.items()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["estimator"][name]["import_path"]
    with pytest.raises(ValueError, match=rf"fitted with {name} of your own, .*: pass it in Python, .* {name}=\.\.\.\)"):
        FFJORD.load(tmp_path / "run")
    same = FFJORD.load(tmp_path / "run", **own)
    assert same.get_params()[name] is value
    assert np.array_equal(same.score_samples(ROWS), model.score_samples(ROWS))


def test_the_users_module_is_copied():
    module = Swirl((2,))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = FFJORD(**QUICK, dynamics=module, blocks=2).fit(ROWS, context=None)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())
    assert model.flow_.transforms[0].dynamics is not model.flow_.transforms[1].dynamics


def test_another_base_than_that_of_the_fit_is_refused(tmp_path, capsys):
    FFJORD(**QUICK, base=laplace()).fit(ROWS).save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"was fitted with base .*Independent \(log-density -2.38.*; got .* -3.2"):
        DensityModel.load(tmp_path / "run", base=laplace(2.0))
    with pytest.raises(ValueError, match="was not fitted with dynamics of your own: leave dynamics= out"):
        FFJORD.load(tmp_path / "run", dynamics=Swirl)
    code, _, err = call(capsys, "sample", tmp_path / "run", "--out", tmp_path / "x.npy")
    assert code == 1 and "loading never imports code" in err


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dynamics": 5}, "dynamics must be a word of the menu, a class, a function or a module; got 5"),
        ({"dynamics": nn.Linear}, r"dynamics must take \(event_shape, hidden=, context_dim=\); .*Linear does not"),
        ({"dynamics": lambda shape, **_: None}, "dynamics must make a torch module; .* made NoneType"),
        ({"base": 3.0}, "base must be a word of the menu, a Base or a torch distribution; got 3.0"),
        ({"base": StandardNormal((3,))}, r"base must have events of shape \(2,\); got \(3,\)"),
        ({"dynamics": Swirl, "columns": {"x0": Circle(360)}}, "x0: circles and spheres need dynamics derived from"),
        ({"dynamics": Swirl, "subsets": True}, "subsets=True takes dynamics="),
    ],
)
def test_what_is_no_network_or_base_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        FFJORD(**QUICK, **fields).fit(ROWS)
