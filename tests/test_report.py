"""`ffjord-kit report`: one page in one file, whatever the data are called, and what it holds."""

import json
import re
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from commands import call

from ffjord_kit import FFJORD, ImageFFJORD, report
from ffjord_kit.cli import main
from ffjord_kit.estimator.scoring import Evaluation
from ffjord_kit.report import calibration, density, extremes, rounding
from ffjord_kit.report.subject import Rows, Subject

NASTY = "</script><b>x & y"
QUICK = {"schedule": [("flow_matching", 8)], "hidden": (8,), "random_state": 0}


class Page(HTMLParser):
    """The elements of a page, and those that are left open."""

    def __init__(self):
        super().__init__()
        self.tags, self.open, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in ("meta", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def content(text):
    return json.loads(re.search(r'<script type="application/json" id="content">(.*?)</script>', text, re.DOTALL)[1])


def of(model, x, context=None, at=None):
    return Subject.of(model, Rows(x, context), Rows(x, context), at=at, seed=0, on_progress=lambda done, total: None)


@pytest.fixture(scope="module")
def rows():
    return np.random.default_rng(0).normal(size=(120, 2)) * [1.0, 1e4]


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    """A run on a table with a nasty name, and its report."""
    folder = tmp_path_factory.mktemp("report")
    table = pd.DataFrame(rows, columns=["a", NASTY])
    FFJORD(**QUICK).fit(table, run=folder / "run", data={"source": str(folder / "rows.csv"), "rows": None, "seed": 0})
    table.to_csv(folder / "rows.csv", index=False)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(report.page, "examine", lambda *_: {"missing": "here"})  # which takes seconds
        patch.setattr(sys, "argv", ["ffjord-kit", "report", str(folder / "run"), "--out", str(folder / "a.html")])
        main()
    assert not ended.value.code
    return folder


@pytest.fixture(scope="module")
def page(folder):
    return (folder / "a.html").read_text(encoding="utf-8")


def test_a_page_is_whole_and_asks_no_network(page):
    parsed = Page()
    parsed.feed(page)
    assert parsed.open == []
    assert parsed.tags.count("script") == 2
    assert "b" not in parsed.tags
    assert not [name for name, _ in parsed.attributes if name == "src"]
    assert [value for name, value in parsed.attributes if name == "href"] == ["data:,", "#main"]
    assert not re.search(r"https?:|@import|fetch\(|XMLHttpRequest|url\(", page.replace("http-equiv", ""))
    assert "default-src 'none'" in page
    assert len(page.encode()) < 5e6


def test_its_content_is_what_was_computed(page, rows):
    found = content(page)
    assert found == json.loads(json.dumps(found))
    assert found["columns"] == ["a", NASTY]
    assert dict(found["details"])["columns"] == f"a, {NASTY}"
    fitted = np.array(found["points"]["fitted"]).T
    assert np.abs(fitted[:, None] - rows).min(1).max(0) == pytest.approx([0, 0], abs=np.ptp(rows, axis=0).max() / 4000)
    assert np.shape(found["flow"]["x"]) == (len(found["flow"]["times"]), 2, 300)
    names = [each["name"] for each in found["numbers"]]
    assert names[0] == "log-likelihood"
    assert "numerical error" in names


@pytest.mark.parametrize(
    ("argv", "word"),
    [(["a.html"], "--force"), (["a.txt"], ".html"), (["b.html", "--context", "1.0"], "leave --context out")],
)
def test_what_cannot_be_written_is_told_in_one_line(capsys, folder, argv, word):
    before = sorted(folder.iterdir())
    code, _, said = call(capsys, "report", folder / "run", "--out", folder / argv[0], *argv[1:])
    assert (code, said.count("\n")) == (1, 1)
    assert word in said
    assert sorted(folder.iterdir()) == before


def test_a_conditional_model_is_shown_at_one_context():
    rng = np.random.default_rng(0)
    c = rng.uniform(-1, 1, size=(300, 1))
    x = c + 0.1 * rng.normal(size=(300, 1))
    model = FFJORD(**QUICK).fit(x, context=c).model_
    subject = of(model, x, c, at=[0.5])
    draws = subject.draws(50)
    assert "c0 = 0.5" in dict(report.page.summary(subject))["conditional"]
    assert len(density.points(subject, draws)["unseen"][0]) == 200  # the nearest
    few = Subject.of(model, Rows(x[:30], c[:30]), Rows(x, c), at=[0.5], seed=0, on_progress=print)
    assert len(density.points(few, draws)["unseen"][0]) < 30  # none but those as near
    assert np.shape(density.density(subject, draws)["log_prob"]) == (density.CURVE,)
    assert of(model, x, c).at == pytest.approx(np.median(c))


@pytest.mark.slow
def test_checks_come_with_their_curves():
    x = np.random.default_rng(0).normal(size=(120, 1))
    told = []
    found = calibration.examine(of(FFJORD(**QUICK).fit(x).model_, x), lambda done, total: told.append(done <= total))
    assert {each["name"] for each in found["findings"]} >= {"coverage", "generalization"}
    assert found["verdict"] in {each["verdict"] for each in found["findings"]}
    assert np.shape(found["base"]) == (1, len(found["band"])) == (1, len(found["regions"]))
    assert told and all(told)


def test_an_unlikely_row_is_mended_by_one_column():
    x = np.random.default_rng(0).normal(size=(400, 2))
    model = FFJORD(**QUICK).fit(x, columns=["a", "b"]).model_
    assert "need 10 held-out rows" in calibration.examine(of(model, x[:6]), print)["missing"]
    far = Rows(np.vstack([x, [0.0, 9.0]]))
    found = extremes.extremes(Subject.of(model, far, Rows(x), at=None, seed=0, on_progress=print), x)
    worst = found["least"][0]
    assert (worst["row"], worst["cells"]) == (400, ["0", "9"])
    assert "usual if b were" in worst["reason"]
    assert "b is above all usual rows" in worst["reason"]
    assert worst["gains"][0].startswith("b = 9: log p rises by ")
    assert found["most"][0]["gains"] == []
    assert found["most"][0]["log_prob"] >= found["most"][1]["log_prob"] > found["threshold"]


class Line:
    """A model whose log-density is known: b follows a, and c, a number of rooms, is 2 or 3; a is positive."""

    def evaluate(self, x, context=None):
        a, b, c = np.asarray(x).T
        log_prob = -0.5 * a**2 - 50 * (b - a) ** 2 - 100 * (np.abs(c - 2.5) > 0.5)
        return Evaluation(np.where(a > 0, log_prob, -np.inf), np.zeros(len(x)))


def gains_of(row):
    """Words for the gains of a row under `Line`."""
    rng, row = np.random.default_rng(0), np.array(row)
    a = np.abs(rng.normal(size=500))
    usual = np.column_stack([a, a + 0.1 * rng.normal(size=500), rng.integers(2, 4, 500)])
    domain = SimpleNamespace(cells={"c": lambda values: np.array([f"{value:.0f} rooms" for value in values])})
    model = SimpleNamespace(domain=domain, evaluate=Line().evaluate, record={"columns": ["a", "b", "c"]})
    log_prob = Line().evaluate(row[None]).log_prob
    subject = Subject(model, Rows(row[None]), None, log_prob, 0, None, 0)
    known = extremes.Usual(usual, Line().evaluate(usual).log_prob, "rows of the fit")
    return extremes.Changes.of(subject, 0, known).in_words(subject, row, log_prob[0])


def test_the_gain_of_a_column_is_that_of_its_best_value():
    said = gains_of([1.0, 3.0, 2.0])
    gains = [float(re.search(r"rises by ([0-9.]+)", text)[1]) for text in said]
    assert len(said) == 2  # rooms gain nothing
    assert said[0].startswith("b = 3: log p rises by ")
    assert gains[0] == pytest.approx(200, abs=1)  # b at a, all of its square
    assert said[1].startswith("a = 1: ")
    assert gains[1] == pytest.approx(197, abs=2)  # a near b, but less likely by itself
    assert gains_of([1.0, 1.0, 9.0]) == ("c = 9 rooms: log p rises by 100.0 at 2 rooms",)


def test_categories_and_the_least_count_are_not_outside():
    domain = SimpleNamespace(categories={"city": None})
    subject = Subject(
        SimpleNamespace(domain=domain, record={"columns": ["kids", "city"]}), None, None, None, 0, None, 0
    )
    usual = np.column_stack([[0, 0, 0, 1, 2], [1, 2, 2, 2, 2]])
    said = extremes._outside(subject, *extremes._shares(usual, np.array([0.0, 0.0])))
    assert said == "no column is unusual by itself, but their combination is"
    assert extremes._outside(subject, *extremes._shares(usual, np.array([3.0, 0.0]))) == "kids is above all usual rows"
    assert extremes._outside(subject, *extremes._shares(usual, np.array([-1.0, 0.0]))) == "kids is below all usual rows"


@pytest.mark.slow
def test_images_have_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(report.page, "SCORED", 6)
    monkeypatch.setattr("ffjord_kit.report.images.TIMES", np.array([0.0, 1.0]))
    images = np.random.default_rng(0).integers(0, 255, (40, 3, 6, 8), dtype=np.uint8)
    model = ImageFFJORD(**QUICK).fit(images)
    found = content(report.write_report(model, tmp_path / "a.html", images).read_text())
    sheet = found["images"]["unseen"]
    assert [sheet[name] for name in ("height", "width", "channels")] == [6, 8, 3]
    assert len(found["images"]["states"]) == 2
    assert "for tables" in found["checks"]["missing"]
    assert found["numbers"][0]["name"] == "bits per dimension"


def test_what_cannot_be_reported_is_told(tmp_path, rows):
    model = FFJORD(**QUICK, support="positive").fit(np.abs(rows) + 1)
    with pytest.raises(ValueError, match="density 0"):
        report.write_report(model, tmp_path / "a.html", -np.abs(rows) - 1)
    assert list(tmp_path.iterdir()) == []


def test_numbers_are_rounded_to_what_a_picture_shows():
    dates = 1.7e9 + np.arange(0.0, 4.0)
    assert np.abs(np.array(rounding.rounded(dates)) - dates).max() <= 3 / 4000
    assert rounding.rounded(np.array([np.nan, 2.0])) == [None, 2.0]
    assert rounding.rounded(np.full(2, -np.inf)) == [None, None]
