"""`ffjord-kit look`: one page on what training did, and the shape of a loss."""

import numpy as np
import pytest
import torch
from commands import call
from torch import nn

from ffjord_kit.diagnostics import WeightLoss, loss_shape

POINTS = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)


def saddle(net):
    """Least squares, with the sign of the second weight's curvature turned round."""
    w = net.weight[0]
    return 0.5 * (w[0] ** 2 - 4 * w[1] ** 2)


def test_a_saddle_is_told_from_a_minimum():
    net = nn.Linear(2, 1, bias=False).double()
    bowl = loss_shape(WeightLoss(net, lambda net: net(POINTS).square().sum() / 2))
    turned = loss_shape(WeightLoss(net, saddle))
    assert (round(bowl.lowest, 6), round(bowl.largest, 6), bowl.finding.verdict) == (1.0, 4.0, "good")
    assert (round(turned.lowest, 6), round(turned.largest, 6), turned.finding.verdict) == (-4.0, 1.0, "bad")
    assert "train longer" in turned.finding.remedy


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("look")
    np.savetxt(
        folder / "rows.csv", np.random.default_rng(0).normal(size=(300, 2)), delimiter=",", header="a,b", comments=""
    )
    call_ok = ("fit", folder / "rows.csv", "--schedule", "flow_matching:30", "--hidden", "8", "--out", folder / "run")
    return folder, call_ok


@pytest.mark.slow
def test_the_page_holds_every_finding_and_its_pictures(run, capsys):
    folder, fit = run
    assert call(capsys, *fit)[0] == 0
    code, shown, _ = call(capsys, "look", folder / "run", "--out", folder / "page")
    page = (folder / "page" / "index.html").read_text()
    assert code == 0
    for part in ("shape of the loss", "an adversary", "scales", "neurons", "the least likely row"):
        assert part in shown
        assert part in page
    pictures = {path.name for path in (folder / "page").glob("*.png")}
    assert pictures == {"landscape.png", "steepest.png", "hessian.png", "scales.png", "neurons.png"}
    assert all(f'src="{name}"' in page for name in pictures)
    code, _, said = call(capsys, "look", folder / "run", "--out", folder / "page")
    assert (code, said.count("\n")) == (1, 1)
    assert "--force" in said


def test_a_run_of_images_is_refused_in_one_line(capsys, tmp_path):
    from ffjord_kit import ImageFFJORD

    images = np.random.default_rng(0).integers(0, 255, (40, 1, 8, 8), dtype=np.uint8)
    ImageFFJORD(schedule=[("flow_matching", 2)], hidden=(8,), random_state=0).fit(images).save(tmp_path / "run")
    code, _, said = call(capsys, "look", tmp_path / "run", "--out", tmp_path / "page")
    assert (code, said.count("\n")) == (1, 1)
