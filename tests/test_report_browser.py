"""A report in a real browser: nothing overflows, no error is logged, and sliders follow the keyboard."""

import shutil

import numpy as np
import pytest

from ffjord_kit import FFJORD, report

webdriver = pytest.importorskip("selenium.webdriver")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
CHECKS = {
    "verdict": "fair", "rows": 9, "probability": [0.1, 0.9], "band": [0.1, 0.1], "regions": [0, 0.2], "base": [[0, 0]],
    "findings": [{"name": "tails", "verdict": "fair", "measured": 60 * "9", "remedy": "look"}],
}  # fmt: skip
INK = "return document.getElementById('paths').toDataURL()"
OVER = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rows = np.random.default_rng(0).normal(size=(120, 3))
    names = ["a", "</script><b>" + 40 * "x", "c"]
    model = FFJORD(schedule=[("flow_matching", 8)], hidden=(8,), random_state=0).fit(rows, columns=names)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report.page, "examine", lambda *_: CHECKS)  # which takes seconds
        return report.write_report(model, tmp_path_factory.mktemp("page") / "a.html", rows, X_train=rows)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def element(browser, name):
    return browser.find_element("id", name)


def press(browser, name, *keys):
    element(browser, name).send_keys(*keys)


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (400, "dark")])
def test_a_page_is_used_by_keyboard(browser, page, width, scheme):
    from selenium.webdriver.common.keys import Keys

    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    browser.implicitly_wait(5)
    data = browser.execute_script(INK)
    press(browser, "time", Keys.HOME)
    assert "t = 0.00" in element(browser, "time").get_attribute("aria-valuetext")
    noise = browser.execute_script(INK)
    press(browser, "time", Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert "t = 0.02" in element(browser, "time").get_attribute("aria-valuetext")
    assert len({data, noise, browser.execute_script(INK)}) == 3
    assert "No brush" in element(browser, "brushed").text
    press(browser, "brush-from", *[Keys.ARROW_RIGHT] * 40)
    assert "Within a from" in element(browser, "brushed").text
    assert browser.execute_script(OVER) <= 0
    assert browser.get_log("browser") == []
