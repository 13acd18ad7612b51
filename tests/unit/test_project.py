"""The project's own files agree with one another."""

import re
import stat
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def names(requirements: list[str]) -> list[str]:
    return [re.split(r"[<>=!~\[ ]", requirement)[0].lower().replace("_", "-") for requirement in requirements]


def declared() -> list[str]:
    extras = [requirement for extra in PROJECT["optional-dependencies"].values() for requirement in extra]
    return names([*PROJECT["dependencies"], *extras])


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def test_every_dependency_has_a_line_and_a_pin():
    page = (ROOT / "docs" / "decisions" / "0001-dependencies.md").read_text(encoding="utf-8")
    said = set(re.findall(r"[a-z0-9-]+", page.split("**Decided against.**")[0].lower()))
    assert [name for name in declared() if name not in said] == []
    assert [name for name in declared() if name not in names(pins())] == []


def test_constraints_hold_names_and_versions_only():
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in pins())
    assert "torch==2.13.0" in pins()
    assert len(set(names(pins()))) == len(pins())


def test_no_index_address_is_written_down():
    for name in ("Makefile", ".ci/run", "constraints.txt", "pyproject.toml"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert not re.search(r"https?://|--(extra-)?index-url|--find-links", text), name


def test_the_ci_lints_and_then_runs_exactly_make_test():
    path = ROOT / ".ci" / "run"
    lines = path.read_text(encoding="utf-8").splitlines()
    assert path.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make test"]


def test_the_licence_is_the_one_declared():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_index_of_the_docs_names_every_page_and_every_link_leads_somewhere():
    pages = sorted((ROOT / "docs").glob("*.md"))
    links = {
        page: re.findall(r"\]\(([^)\s#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        for page in [ROOT / "README.md", *pages]
    }
    listed = links[ROOT / "docs" / "README.md"]
    assert [page.name for page in pages if page.name not in listed and page.name != "README.md"] == []
    lost = {
        f"{page.name}: {link}"
        for page, found in links.items()
        for link in found
        if not link.startswith("http") and not (page.parent / link).exists()
    }
    assert lost == set()
