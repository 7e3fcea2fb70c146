"""Other floats in the network while it is trained: what comes out is float32, near enough, and nothing stays behind."""

import pytest
import torch
from ffjord_kit.training.precision import PRECISIONS, all_digits, precise

from ffjord_kit import CNF, FFJORD, ExactTrace, Flow, HutchinsonTrace, Integration, ResidualDynamics, Solver, datasets
from ffjord_kit.images import UNetDynamics

FIELDS = {"schedule": "flow_matching:300,mle:10", "hidden": (32, 32), "random_state": 0, "batch_size": 256}


def flow():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        dynamics = ResidualDynamics((2,), hidden=(16,))
        for parameter in dynamics.parameters():
            torch.nn.init.normal_(parameter, std=0.2)  # an untrained one is at rest
    return Flow([CNF(dynamics, (2,), solver=Solver("euler", steps=3))])


@pytest.mark.parametrize("trace", [ExactTrace(), HutchinsonTrace()])
def test_the_network_runs_in_bf16_and_all_else_in_float32(trace, generator):
    seen, made = [], flow()
    layer = next(m for m in made.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 32)
    layer.register_forward_hook(lambda module, given, found: seen.append(found.dtype))
    x = torch.randn(50, 2, generator=generator)

    def solved():
        return made.evaluate_log_prob(x, integration=Integration(trace, generator=torch.Generator().manual_seed(0)))

    with torch.no_grad():
        plain, _ = solved()
        assert set(seen) == {torch.float32}
        seen.clear()
        with precise(made, "bf16"):
            coarse, moved = solved()
    assert set(seen) == {torch.bfloat16}
    assert {coarse.dtype, moved.x.dtype, moved.log_det.dtype} == {torch.float32}
    assert 0 < (coarse - plain).abs().mean() < 0.05


def test_gradients_are_float32_and_the_field_is_plain_again(generator):
    dynamics = UNetDynamics((1, 4, 4), hidden=(8,))
    made, x = Flow([CNF(dynamics, (1, 4, 4))]), torch.randn(3, 1, 4, 4, generator=generator)
    torch.nn.init.normal_(dynamics.outward.weight, generator=generator)
    before = dict(vars(dynamics))
    with precise(made, "bf16"):
        velocity = dynamics(torch.tensor(0.3), x)
        velocity.square().sum().backward()
    assert velocity.dtype == torch.float32
    assert {p.grad.dtype for p in dynamics.parameters()} == {torch.float32}
    assert vars(dynamics).keys() == before.keys()
    assert (velocity - dynamics(torch.tensor(0.3), x)).abs().max() > 0


def test_what_compilation_put_there_stays_there():
    made = flow()
    own = made.layers[0].dynamics.forward
    made.layers[0].dynamics.forward = own
    with pytest.raises(RuntimeError, match="in between"), precise(made, "bf16"):
        assert made.layers[0].dynamics.forward is not own
        raise RuntimeError("in between")
    assert vars(made.layers[0].dynamics)["forward"] is own
    assert "push" not in vars(made.layers[0].dynamics)


def test_the_settings_of_tensor_cores_are_put_back():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        with pytest.raises(RuntimeError, match="in between"), precise(flow(), "tf32"):
            assert torch.get_float32_matmul_precision() == "high"
            assert torch.backends.cudnn.allow_tf32
            raise RuntimeError("in between")
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == (before[0], False)
    finally:
        torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.slow
def test_training_in_bf16_is_as_good_to_its_error():
    x = datasets.load("moons", rows=2000, seed=0).x
    plain = FFJORD(**FIELDS).fit(x[:1500])
    coarse = FFJORD(**FIELDS, precision="bf16").fit(x[:1500])
    difference = coarse.score_samples(x[1500:]) - plain.score_samples(x[1500:])
    assert 0 < abs(difference.mean()) < 4 * difference.std() / len(difference) ** 0.5 + 0.02
    assert {p.dtype for p in coarse.flow_.parameters()} == {torch.float64}  # as it reports
    assert not {"forward", "push"} & set(vars(coarse.flow_.layers[-1].dynamics))


def test_an_unknown_word_is_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="precision must be one of float32, tf32, bf16; got 'half'"):
        FFJORD(precision="half").fit(datasets.load("moons", rows=80, seed=0).x, run=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="precision must be one of"), precise(flow(), "half"):
        pass
    assert PRECISIONS[0] == FFJORD().precision


def test_float32_has_all_its_digits_and_what_was_set_is_left_as_it_was():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    flow = Flow([CNF(ResidualDynamics((2,), hidden=(4,)), (2,))])
    for word, short in (("float32", False), ("tf32", True)):
        with precise(flow, word):
            assert torch.backends.cudnn.allow_tf32 is short
    with all_digits():
        assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == ("highest", False)
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before
