"""Pages with plots: self-contained, and nothing of a user's names is taken for HTML."""

import re
import sys
from html.parser import HTMLParser

import pytest

from tests.vadpipe.bench.bench_kit import CONFIG, bench, config_in
from vadpipe.bench.page import page_of

HOSTILE = "<script>alert('$x^2$')</script>&_\x1b[2J"


class Elements(HTMLParser):
    """Counts elements and keeps the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def run_of(case, settings, rate):
    stages = [
        {
            "name": name,
            "items": 1,
            "bytes": 1 << 20,
            "busy_s": 0.5,
            "starved_s": 0.2,
            "blocked_s": 0.3,
            "kernels_cpu_s": {},
        }
        for name in ("AllocatedExtents", "_Hidden" + HOSTILE, "NullSink")
    ]
    return {
        "case": case, "settings": settings, "read": 1 << 20, "stored": 1, "wall_s": 1.0, "cpu_s": 1.0,
        "mib_per_s": rate, "mib_per_cpu_s": rate, "peak_rss": 1 << 20, "limited_by": HOSTILE, "stages": stages,
        "samples": [[0.5, 1 << 20, 1 << 19, 0], [1.0, 1 << 20, 1 << 20, 1 << 20]],
    }  # fmt: skip


@pytest.fixture
def _plots():
    pytest.importorskip("matplotlib", reason="matplotlib, the extra `bench`, is not installed")


@pytest.mark.slow
@pytest.mark.usefixtures("_plots")
def test_names_of_users_are_text_in_the_page_and_in_the_plots():
    runs = [run_of(f"{HOSTILE}={value}", {HOSTILE: value, "_b": "1"}, 5) for value in ("1", HOSTILE)]
    page = page_of(
        {"kind": "bench run", "about": HOSTILE, "job": HOSTILE, "config": HOSTILE, "results": runs}
    )
    found = Elements(page)
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    links = [value for name, value in found.attributes if name.endswith("href") or name == "src"]
    assert all(value.startswith("#") for value in links)
    assert found.tags.count("svg") == 5  # a sweep, and two plots of each case
    assert found.text.count("alert('$x^2$')") > 10
    assert "\x1b" not in page
    assert "_Hidden" in re.sub(r"\s", "", found.text)  # matplotlib leaves labels out that begin so


@pytest.mark.slow
@pytest.mark.usefixtures("_plots")
def test_a_run_writes_its_page(tmp_path, capsys):
    config, page = config_in(tmp_path), tmp_path / "page.html"
    code, out, err = bench(capsys, "run", config, "--vary", "level=1,3", "-q", "--html", page)
    assert code == 0, err
    assert "level=3" in out
    found = Elements(page.read_text())
    assert "Throughput by level" in found.text
    assert "limited by" in found.text
    for share in ("busy", "starved", "blocked", "(limits)"):
        assert share in found.text


@pytest.mark.slow
@pytest.mark.usefixtures("_plots")
def test_kernels_and_sources_have_pages(tmp_path, capsys):
    config, page = config_in(tmp_path), tmp_path / "page.html"
    for words, told in (
        (["kernels", "--size", 1], "blake3, keyed"),
        (
            ["source", config, "--depths", "1,2", "--sizes", "64KiB", "--amount", 1],
            "64.0 KiB: depth x size / latency",
        ),
    ):
        code, _, err = bench(capsys, *words, "--html", page)
        assert code == 0, err
        found = Elements(page.read_text())
        assert told in found.text
        assert found.tags.count("svg") == 1


def test_without_matplotlib_nothing_is_measured_and_the_remedy_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = bench(capsys, "run", config_in(tmp_path, CONFIG), "--html", tmp_path / "page.html")
    assert (code, out) == (2, "")
    assert "matplotlib, which is not installed. Run: pip install 'vadpipe[bench]'" in err
    assert not (tmp_path / "captures").exists()
    assert not (tmp_path / "page.html").exists()
