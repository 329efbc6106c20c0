"""Report: what a person reads, and what survives being written down."""

import dataclasses
import io
from html.parser import HTMLParser

import pytest
import rich.console
from hypothesis import given
from hypothesis import strategies as st

from mla_compiler import KVPool, report_store
from mla_compiler import report as registry
from mla_compiler.errors import ReportError
from mla_compiler.ir import Site
from mla_compiler.pool import memory
from mla_compiler.report import Report
from mla_compiler.report_table import change, merge_names, pass_times, ranges, rows

from .reports import LAYER, LEFT, layers, mixed

sites = st.builds(Site, **{
    field.name: st.text() if field.type == "str" else st.integers(0, 2**60)
    for field in dataclasses.fields(Site)
})
metas = st.dictionaries(st.text(), st.one_of(st.integers(-(2**53), 2**53), st.text(), st.booleans(), st.none()))


def test_fused_and_left_are_all_there_is():
    report = mixed()
    assert (len(report), len(report.fused), report.left) == (31, 30, (LEFT,))
    assert [*report.fused, *report.left] == list(report)


def test_print_shows_what_matters(capsys):
    print(mixed())
    shown = capsys.readouterr().out
    for text in (
        "30 of 31 attentions fused", "model.layers.0-29.self_attn  x30", "llama/modeling_llama.py:248", "(j <= i) & M0[b, j]",
        "0 <= j < i + 1", "score 0.125*s", "3 query heads share a KV head", "60 → 30 GFLOP", "120 → 60 MB", "left",
        "dropout is active; found 0.1 <&> [bold]", "model.py:41", "compiled in 9.3 s", "0 graph breaks", "[1, 3, 64, 32]",
    ):
        assert text in shown
    assert "\x1b" not in shown


def test_the_memory_of_pools_has_a_table():
    pool = KVPool(2, 1, 4, tokens=1024, page=16, format="int8")
    pool.extend([pool.allocate()], 24)
    (row,) = (row for row in memory() if row["pool"] == str(pool.geometry))
    report = Report(meta={"memory": [row]})
    shown, reserved = report.text(width=200), 1024 * 2 * 2 * (4 + 4)
    sizes = f"{reserved // 1024} KiB", "1 KiB", "768 B", "256 B"
    for text in ("2 layers, 1 x 4, float32, pages of 16 in int8", "high water", *sizes):
        assert text in shown and text in report.html()
    assert Report.from_json(report.json()) == report
    assert "KV pool" not in mixed().text() + mixed().html()


def test_every_site_has_its_row_if_asked():
    text = mixed().text(width=160, every=True)
    assert all(f"model.layers.{k}.self_attn" in text for k in range(30))


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_text_fits_the_width(width):
    assert max(map(len, mixed().text(width=width).splitlines())) <= width


def test_rich_renders_the_same_words_in_colour():
    out = io.StringIO()
    rich.console.Console(file=out, width=120, force_terminal=True).print(mixed())
    assert "30 of 31 attentions fused" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_nothing_found_says_so():
    assert str(Report()) == "flashmla: no attention found"


def test_a_lost_report_does_not_say_that_nothing_was_found():
    shown = " ".join(str(Report(meta={"lost": True})).split())
    assert "whose report is gone" in shown
    assert "TORCHINDUCTOR_FORCE_DISABLE_CACHES=1" in shown


def test_pass_times_are_in_order():
    assert pass_times(Report(meta={"passes": {"find": 0.0291, "emit": 0.5}})) == "find 29.1 ms, emit 500.0 ms"
    assert pass_times(Report()) == ""


def test_only_like_sites_share_a_row():
    other = dataclasses.replace(LAYER, index=7, layer="model.layers.7.self_attn", predicate="j <= i")
    grouped = rows([*layers(3), other, LEFT])
    assert [[site.index for site in row.sites] for row in grouped] == [[0, 1, 2], [7], [30]]


@given(st.lists(sites, max_size=6), st.integers(40, 150))
def test_any_report_renders_and_every_site_is_in_a_row(found, width):
    numbered = [dataclasses.replace(site, index=index) for index, site in enumerate(found)]
    assert sorted(site.index for row in rows(numbered) for site in row.sites) == list(range(len(found)))
    report = Report(tuple(numbered))
    assert report.text(width)
    assert report.html()


@given(st.sets(st.integers(0, 50), min_size=1))
def test_ranges_name_every_number_once(numbers):
    spelled = []
    for part in ranges(sorted(numbers)).split(","):
        first, _, last = part.partition("-")
        spelled += range(int(first), int(last or first) + 1)
    assert spelled == sorted(numbers)


def test_names_merge_where_one_number_differs():
    assert merge_names(["h.0.attn", "h.1.attn", "h.3.attn"]) == "h.0-1,3.attn"
    assert merge_names(["a.1.b.2", "a.2.b.3"]) == "a.1.b.2, ..."
    assert merge_names(["x", "y"]) == "x, ..."
    assert merge_names(["same"]) == "same"


def test_change_names_its_unit():
    assert change(6e10, 3e10, "FLOP") == "60 → 30 GFLOP"
    assert change(1500, 1, "B") == "1.5 → 0.001 kB"
    assert change(12, 12, "B") == "12 → 12 B"


@given(st.lists(sites, max_size=3), metas)
def test_json_round_trip(found, meta):
    report = Report(tuple(found), meta)
    assert Report.from_json(report.json()) == report


@pytest.mark.parametrize("text", ["", "[]", "{}", "3", '{"format": 1}', '{"format": 0, "sites": [], "meta": {}}',
                                  '{"format": 1, "meta": {}, "sites": [{"colour": "red"}]}'])
def test_what_is_no_report_is_refused(text):
    with pytest.raises(ReportError, match="not a flashmla report"):
        Report.from_json(text)


class _Counter(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows = 0
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.rows += tag == "tr"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_html_has_a_row_for_every_site_and_escapes():
    page, parsed = mixed().html(), _Counter()
    parsed.feed(page)
    assert parsed.rows == 1 + 31
    assert parsed.open == []
    assert "0.1 &lt;&amp;&gt; [bold]" in page


def test_store_gives_back_what_was_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    assert report_store.load("k1") is None
    path = report_store.save("k1", mixed())
    assert path.is_relative_to(tmp_path)
    report_store.save("k1", mixed())
    found = report_store.load("k1")
    assert found.sites == mixed().sites
    assert found.meta == {**mixed().meta, "cached": True}
    assert "from the compile cache" in str(found)
    assert [each.name for each in path.parent.iterdir()] == ["k1.json"]


def test_store_names_the_file_it_cannot_read(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    path = report_store.save("k1", mixed())
    path.write_text("{")
    with pytest.raises(ReportError, match=r"k1\.json(?s:.*)delete"):
        report_store.load("k1")


@pytest.mark.parametrize("key", ["", "../up", "a b", "a/b"])
def test_store_keys_are_plain(key):
    with pytest.raises(ValueError, match="letters, digits"):
        report_store.save(key, Report())


def test_merged_numbers_sites_through_and_adds_seconds():
    merged = Report.merged([mixed(), Report((LAYER,), {"passes_s": 0.2, "compile_s": 1.0})], graph_breaks=2)
    assert [site.index for site in merged] == list(range(32))
    assert merged.meta == {"graphs": 2, "graph_breaks": 2, "passes_s": 0.51, "compile_s": 10.3, "device": "cpu"}
    assert Report.merged([]).meta == {"graphs": 0}


def test_recorded_reports_are_told_in_order(monkeypatch):
    monkeypatch.setattr(registry, "_RECORDED", [])
    first, second = registry.record(mixed()), registry.record(Report())
    assert registry.reports() == (first, second)
