"""The examples: what they need is said where it is asked for, and the votes' files can be made from what is published."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path

import pytest
import yaml

from karat import cli
from karat.feedback.exchange.importers import import_ukp
from karat.feedback.snapshot import write_snapshot
from karat.feedback.store import open_store
from karat.pipeline.votes import VotesSettings, published

EXAMPLES = Path(__file__).parents[2] / "examples"
PAIR = """  <annotatedArgumentPair>
    <id>{a}_{b}</id>
    <arg1><stance>No</stance><text>First &amp; foremost {a}</text><id>{a}</id></arg1>
    <arg2><stance>No</stance><text>Second {b}</text><id>{b}</id></arg2>
    <mTurkAssignments>{votes}</mTurkAssignments>{gold}
  </annotatedArgumentPair>"""
VOTE = """<mTurkAssignment><turkID>{who}</turkID><hitID>HIT{who}</hitID>
  <assignmentAcceptTime>2016-01-31 16:53:19.0 UTC</assignmentAcceptTime>
  <assignmentSubmitTime>2016-01-31 16:59:52.0 UTC</assignmentSubmitTime>
  <value>{value}</value><reason>so</reason></mTurkAssignment>"""


def ukp_files():
    spec = importlib.util.spec_from_file_location("ukp_files", EXAMPLES / "ukp_files.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(path: Path) -> list[dict]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def xml(*pairs: str) -> str:
    return '<?xml version="1.0"?>\n<list>\n' + "\n".join(pairs) + "\n</list>\n"


def test_the_published_corpus_becomes_the_files_that_the_example_reads(tmp_path, capsys):
    source, target = tmp_path / "xml", tmp_path / "ukp"
    source.mkdir()
    said = [VOTE.format(who=who, value=value) for who, value in (("A1", "a1"), ("A2", "a2"), ("A3", "equal"))]
    first = PAIR.format(a="arg1", b="arg2", votes="".join(said), gold="<goldLabel>a2</goldLabel>")
    second = PAIR.format(a="arg1", b="arg3", votes=said[0], gold="")
    (source / "ban-bottles-_no-never.xml").write_text(xml(first, second), encoding="utf-8")
    ukp_files().main([str(source), str(target)])
    assert capsys.readouterr().out == f"{target}: 4 votes, 3 arguments, 2 gold\n"
    vote = rows(target / "votes.jsonl.gz")[1]
    assert vote == {
        "pair": "arg1_arg2", "a": "arg1", "b": "arg2", "annotator": "worker-00002", "choice": "b", "reason": "so",
        "task": "task-00002", "accepted_at": "2016-01-31T16:53:19Z", "submitted_at": "2016-01-31T16:59:52Z",
    }  # fmt: skip
    assert rows(target / "arguments.jsonl.gz")[0] == {
        "id": "arg1", "topic": "ban-bottles-", "stance": "no-never", "text": "First & foremost arg1",
    }  # fmt: skip
    names = yaml.safe_load((EXAMPLES / "ukp.yaml").read_text(encoding="utf-8"))["votes"]
    files = {key: target / Path(names[key]).name for key in ("path", "texts", "consensus")}
    with open_store(tmp_path / "k.db") as store:
        assert import_ukp(store, files["path"], files["texts"]).n_new == 4
        snapshot = write_snapshot(store, tmp_path / "votes")
        assert len(snapshot.annotators) == 3
    better = [pair.preferred for pair in published(VotesSettings(format="ukp", **files), snapshot)]
    assert better.count(None) == 1
    assert len(better) == 2
    with pytest.raises(SystemExit, match=r"found no \.xml in .*; expected the folder UKPConvArg1-full-XML"):
        ukp_files().main([str(tmp_path), str(target)])


@pytest.mark.parametrize(
    ("file", "says"),
    [
        (xml(PAIR.format(a="x", b="y", votes=VOTE.format(who="A1", value="a9"), gold="")), "is none of a1, a2, equal"),
        (xml(), "found no votes in 1 files of .*; expected the folder UKPConvArg1-full-XML"),
    ],
)
def test_a_corpus_of_another_kind_is_one_line_and_nothing_is_written(tmp_path, file, says):
    (tmp_path / "a_b.xml").write_text(file, encoding="utf-8")
    with pytest.raises(SystemExit, match=says):
        ukp_files().main([str(tmp_path), str(tmp_path / "ukp")])
    assert not (tmp_path / "ukp").exists()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "a_b.xml").write_text(xml(PAIR.format(a="x", b="y", votes=VOTE.format(who="A1", value="a1"), gold="")))
    (tmp_path / "taken").touch()
    with pytest.raises(SystemExit, match=r"ukp_files: .*taken cannot be written"):
        ukp_files().main([str(tmp_path), str(tmp_path / "taken")])


@pytest.mark.parametrize("name", ["hh", "ukp", "people"])
def test_an_example_without_its_files_says_all_that_is_missing_and_its_head_says_where_it_is(
    tmp_path, monkeypatch, capsys, name
):
    monkeypatch.chdir(tmp_path)
    text = (EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")
    content = yaml.safe_load(text)
    section = next(key for key in ("preferences", "votes", "people") if key in content)
    keys = [key for key in ("path", "prompts", "texts", "consensus", "model") if key in content[section]]
    assert cli.main(["run", str(EXAMPLES / f"{name}.yaml")]) == 2
    complaint = capsys.readouterr().err.strip().splitlines()[-1]
    for key in keys:
        assert content[section][key] in complaint
        assert f"--set {section}.{key}=…" in complaint
        assert not Path(content[section][key]).is_absolute()
        assert ".." not in Path(content[section][key]).parts
    if name != "people":  # whose files are one's own
        assert "on GitHub" in text.split("name:")[0]
