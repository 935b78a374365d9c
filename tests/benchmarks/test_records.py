"""Files of records and generated parts of pages."""

from __future__ import annotations

import json
import subprocess

import pytest

from benchmarks import records


def test_records_take_the_place_of_their_like(tmp_path):
    file = tmp_path / "results" / "records.json"
    for value, seed in ((1, 0), (2, 1), (3, 0)):
        records.merge(file, {"name": "a", "seed": seed, "value": value}, ("name", "seed"))
    assert [record["value"] for record in json.loads(file.read_text())["records"]] == [3, 2]


def test_a_page_keeps_what_is_outside_its_markers(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    for _ in range(2):
        records.write_between(page, "<!-- x:begin -->", "<!-- x:end -->", "new\n")
        assert page.read_text() == "before\n<!-- x:begin -->\nnew\n<!-- x:end -->\nafter\n"
    with pytest.raises(ValueError, match="once each, in this order"):
        records.write_between(page, "<!-- y:begin -->", "<!-- x:end -->", "new")


def test_a_table_has_as_many_cells_as_heads():
    assert records.table(["a", "b"], [["1", "2"]]) == ["| a | b |", "|---|---|", "| 1 | 2 |"]
    with pytest.raises(ValueError, match=r"rows must have 2 cells like the heads, got \['1'\]"):
        records.table(["a", "b"], [["1"]])


@pytest.mark.parametrize("folder", ["simjax", "benchmarks", "experiments"])
def test_a_record_says_if_code_differs_from_its_commit(folder, tmp_path, monkeypatch):
    code = tmp_path / folder / "module.py"
    code.parent.mkdir()
    code.write_text("x = 1\n")
    who = ("-c", "user.name=a", "-c", "user.email=a@b")
    for words in (("init", "-q"), ("add", "."), (*who, "commit", "-q", "-m", "x")):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(records, "ROOT", tmp_path)
    assert records.commit()["changed_since"] is False
    (tmp_path / folder / "results.json").write_text("{}")
    assert records.commit()["changed_since"] is False or folder == "simjax"
    code.write_text("x = 2\n")
    assert records.commit()["changed_since"] is True
