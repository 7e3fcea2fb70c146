"""What is shown of a fitted model, a certificate and a trajectory: HTML that parses and carries the numbers."""

from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from ffjord_kit import FFJORD
from ffjord_kit.cli.output import print_rows
from ffjord_kit.display import PATHS, html_table, svg_paths

VOID = {"input", "br", "img", "link", "meta", "hr"}


class Pairs(HTMLParser):
    """Read the rows of tables, and hold that every element is closed in order."""

    def __init__(self, html):
        super().__init__()
        self.open, self.texts, self.pairs = [], {}, {}
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        if tag in ("th", "td"):
            self.texts[tag] = ""

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "td" and "th" in self.texts:
            self.pairs[self.texts["th"]] = self.texts["td"]

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td"):
            self.texts[self.open[-1]] += data


def read(html):
    pairs = Pairs(html)
    assert pairs.open == []
    assert len(html) < 100_000
    return pairs.pairs


@pytest.fixture(scope="module")
def model():
    x = np.random.default_rng(0).normal(size=(60, 2))
    return FFJORD(schedule=[("flow_matching", 10)], hidden=(8,), random_state=0).fit(x, columns=["a<b", "c"])


def test_an_estimator_shows_its_fields_and_what_the_fit_has_given(model):
    shown = model._repr_mimebundle_()["text/html"]
    pairs = read(model.model_._repr_html_())
    assert pairs["data"] == "60 rows of a<b, c"
    assert pairs["density"] == "of the continuous flow"
    assert pairs["held-out NLL"].startswith(f"{model.history_.best_nll:.4f} ± ")
    assert shown.endswith(model.model_._repr_html_())
    assert model._repr_html_().endswith(model.model_._repr_html_())
    assert "Fitted model" not in FFJORD()._repr_html_()


def test_a_model_in_few_steps_shows_them_and_its_receipt():
    shown = read(FFJORD.pretrained("moons").model_._repr_html_())
    assert " steps of " in shown["density"]
    assert shown["receipt"].startswith("holds: ")


def test_a_certificate_shows_the_mean_and_the_errors(model):
    certified = model.certify(np.zeros((3, 2)), error=1e-3)
    shown = read(certified._repr_html_())
    assert shown["mean log-density"].startswith(f"{certified.log_prob.mean():.4f} ± ")
    assert f"largest {certified.error.max():.1e} nats" in shown["error of a row"]
    assert shown["requested error"] == "met by 3 rows"


def test_a_certificate_of_a_row_outside_the_support_shows_minus_infinity(model):
    certified = model.certify(np.zeros((3, 2)))
    outside = certified._replace(log_prob=np.array([-1.0, -np.inf, -2.0]))
    assert read(outside._repr_html_())["mean log-density"] == "-inf nats"


def test_a_trajectory_shows_its_ends_and_its_paths(model):
    path = model.trajectory(5, frames=3, random_state=0)
    shown = path._repr_html_()
    assert read(shown)["paths"] == "5, in 2 columns, at 3 times from 0 to 1"
    assert read(shown)["mean log-density at the data"] == f"{path.log_prob[-1].mean():.4f} nats"
    drawing = ElementTree.fromstring(shown[shown.index("<svg") :])
    assert len(drawing.findall(".//{*}polyline")) == 5
    assert len(drawing.findall(".//{*}circle")) == 10


@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_drawing_is_light_and_stays_in_its_frame(d):
    drawing = ElementTree.fromstring(
        svg_paths(np.linspace(0, 1, 50), np.random.default_rng(0).normal(size=(500, 999, d)))
    )
    lines = drawing.findall(".//{*}polyline")
    assert len(lines) == PATHS
    places = np.array([[place.split(",") for place in line.get("points").split()] for line in lines], dtype=float)
    assert places.min() >= 0
    assert (places <= [float(drawing.get("width")), float(drawing.get("height"))]).all()


def test_a_table_escapes_what_it_holds():
    assert "&lt;script&gt;" in html_table("<script>", {})


def test_a_terminal_shows_a_long_name_whole(capsys):
    name = "a" * 300
    print_rows([("columns", name)])
    assert "".join(capsys.readouterr().out.split()) == f"columns{name}"
