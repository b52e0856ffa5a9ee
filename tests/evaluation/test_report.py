"""The report is one page whose files all exist, with every mode's numbers on it."""

import html.parser
import shutil

import av
import pytest

from motus_jax.errors import UserError
from motus_jax.evaluation import charts, report
from motus_jax.modes import MODES


class Page(html.parser.HTMLParser):
    """Collects ids, links and open tags."""

    VOID = ("meta", "img", "br", "use", "path", "line", "circle", "polyline", "link")

    def __init__(self, text):
        super().__init__()
        self.ids, self.sources, self.links, self.open = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.sources += [attributes["src"]] if "src" in attributes else []
        self.links += [attributes["href"]] if tag == "a" else []
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def written(evaluated, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("copy") / "run"
    shutil.copytree(evaluated, workdir)
    return report.write_report(workdir)


def test_page_is_whole_and_refers_to_nothing_outside(written):
    text = written.read_text()
    page = Page(text)
    assert page.open == []
    assert set(MODES) | {"overview", "cycle", "closed_loop", "training", "facts"} <= page.ids
    assert all(link.removeprefix("#") in page.ids for link in page.links)
    assert len(page.sources) > 5
    assert all((written.parent / source).is_file() for source in page.sources)
    assert "http" not in text.replace("http://www.w3.org", "")


def test_page_shows_the_numbers(written):
    text = written.read_text()
    assert "5 of 5 jobs beat their baselines" in text
    assert text.count("<video") == 3 * len(MODES)
    assert "shoulder [rad]" in text
    assert "gripper [open fraction]" in text
    assert "80 %</b><small>49 % to 94 %" in text
    # The clock of the run: 190 s until the restart, then 150 s.
    assert "5 min 40 s" in text


def test_world_model_video_has_three_columns_and_rests_at_its_end(written):
    with av.open(str(written.parent / "media" / "world_model_0.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.width == 3 * 32 * 3 + 2 * 6
        assert sum(1 for _ in container.decode(stream)) == 3 + 4


def test_writing_again_replaces_the_report(written):
    (written.parent / "stale.txt").write_text("old")
    assert report.write_report(written.parent.parent) == written
    assert not (written.parent / "stale.txt").exists()


def test_run_that_was_not_evaluated(tmp_path):
    with pytest.raises(UserError, match=r"metrics.json not found: run .*motus_jax.evaluate"):
        report.write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]), (17.2, 31.9, [20, 25, 30]), (-0.011, 0.012, [-0.01, -0.005, 0, 0.005, 0.01])],
)
def test_ticks_are_round_and_inside(low, high, expected):
    assert charts.nice_ticks(low, high) == pytest.approx(expected)


def test_logarithmic_ticks():
    assert charts.log_ticks(-2.1, -0.6) == pytest.approx([0.01, 0.02, 0.05, 0.1, 0.2])
    assert charts.log_ticks(-4, 0) == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1])


def test_numbers_are_short():
    assert [charts.number(value) for value in (None, 0, 31.4159, 0.00123, 123456.7)] == [
        "–",
        "0",
        "31.4",
        "0.00123",
        "123,457",
    ]
