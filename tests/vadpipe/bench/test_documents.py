"""Tables of figures, and `vadpipe bench compare`."""

import json

import pytest

from tests.vadpipe.bench.bench_kit import bench, document
from vadpipe.bench.documents import limited_by, median_lines, spread


def result(case, rate, cpu_s=2.0, by="Compress"):
    return {
        "case": case,
        "mib_per_s": rate,
        "mib_per_cpu_s": rate,
        "wall_s": 1.0,
        "cpu_s": cpu_s,
        "peak_rss": 3 << 20,
        "stored": 0,
        "limited_by": by,
    }


def written(directory, name, *results, kind="bench run", **facts):
    place = directory / name
    place.write_text(json.dumps({"kind": kind, "about": "a machine", "results": results, **facts}))
    return place


def test_a_table_has_the_median_and_the_spread_of_each_case():
    rows = [result("a", 100), result("b", 5), result("a", 300), result("a", 120, by="Digest")]
    lines = median_lines({"kind": "bench run", "results": rows})
    assert lines[0].split("  ")[0] == "CASE"
    assert "120 (100-300)" in lines[1]
    assert lines[1].endswith("Compress (also Digest)")
    assert lines[2].split()[:2] == ["b", "5"]


def test_a_single_value_has_no_spread():
    assert (spread([], 1), spread([2.04], 1), spread([1, 2, 4], 0)) == ("", "2.0", "2 (1-4)")
    assert limited_by([result("a", 1, by="Digest")]) == "Digest"


def test_files_are_compared_pair_by_pair(tmp_path, capsys):
    before = written(tmp_path, "a.json", result("x", 100), result("x", 200), result("gone", 1), to="null")
    after = written(tmp_path, "b.json", result("x", 150), result("x", 100), result("x", 9), to="store")
    found = document(capsys, "compare", before, after)
    rates = next(row for row in found["results"] if row["figure"] == "mib_per_s")
    assert rates["ratios"] == [1.5, 0.5]
    assert (rates["median"], rates["least"], rates["most"]) == (1.0, 0.5, 1.5)
    assert "stored" not in [row["figure"] for row in found["results"]]  # nothing was stored
    assert {row["case"] for row in found["results"]} == {"x"}

    code, out, _ = bench(capsys, "compare", before, after)
    assert code == 0
    assert "note: to differs: null; store" in out
    assert "note: only one file has the case gone" in out
    assert "x     MIB/S       1.000  0.500-1.500      2" in out


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "cannot be read: No such file"),
        ("{", "is no JSON document"),
        (b"\xff\xfe\x00", "is no JSON document"),
        ("[]", "is no result of a benchmark"),
        ('{"kind": ["bench run"], "results": []}', "is no result of a benchmark"),
        ('{"kind": "bench run", "results": []}', "is no result of a benchmark"),
        ('{"kind": "bench run", "results": [{"case": 1}]}', "is no result of a benchmark"),
        ('{"kind": "bench run", "results": [{"case": "a", "wall_s": "1"}]}', "is no result of a benchmark"),
        ('{"ok": false, "exit_code": 1, "errors": []}', "is no result of a benchmark"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, capsys, content, told):
    good, bad = written(tmp_path, "good.json", result("x", 1)), tmp_path / "bad.json"
    if content is not None:
        bad.write_bytes(content if isinstance(content, bytes) else content.encode())
    for pair in ((good, bad), (bad, good)):
        code, out, err = bench(capsys, "compare", *pair)
        assert (code, out) == (2, "")
        assert told in err
        assert "Traceback" not in err


def test_results_of_different_benchmarks_are_refused(tmp_path, capsys):
    run = written(tmp_path, "run.json", result("x", 1))
    kernels = written(tmp_path, "kernels.json", {"case": "x", "mib_per_cpu_s": 1}, kind="bench kernels")
    code, _, err = bench(capsys, "compare", run, kernels)
    assert code == 2
    assert "Results of `bench run` cannot be compared with those of `bench kernels`." in err


def test_files_without_a_common_case_are_refused(tmp_path, capsys):
    code, _, err = bench(
        capsys, "compare", written(tmp_path, "a", result("x", 1)), written(tmp_path, "b", result("y", 1))
    )
    assert code == 2
    assert "no case in common: x and y" in err
