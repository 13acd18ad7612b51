"""What README, docs, examples and help tell people to type can be typed. Nothing of it is run."""

import ast
import importlib
import re

import pytest

from documented_pages import Block, Typed, blocks, in_blocks, in_comments, lines_of
from typed_commands import (
    ROOT,
    all_commands,
    complaints,
    in_help,
    in_sentences,
    unknown_keys,
    unknown_options,
    wrong_settings,
)

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
NO_COMMANDS = {
    ("README.md", "prompts ─ demonstrations"): "a drawing",
    ("README.md", "src/karat/"): "a list of folders",
}
"""Blocks without a language that are not commands: page, first words, why."""
APART = {
    "curl": "its address is that of a server that runs; test_web_api.py signs in by it",
    "export": "of the shell; the command whose answer it keeps is parsed",
    "bench/work": "made by the bench, not tracked",
}
"""Programs and paths that are not looked into, and why."""
TOLD = {"docs/LOG.md": "of what was typed on its day; programs of then may be gone"}
"""Pages whose sentences are not looked into, and why."""
LANGUAGES = {
    "": "commands", "console": "commands",
    "yaml": "a configuration: it is built", "python": "its imports are carried out",
    "pycon": "run by test_sandbox_world.py", "json": "rows of a file", "csv": "rows of a file",
}  # fmt: skip
"""What a block is, by the word after its fence."""


def of_language(page: str, *languages: str) -> list[Block]:
    found = [block for block in blocks(PAGES[page]) if block.language in languages]
    return [block for block in found if not any(apart(page, block, one) for one in NO_COMMANDS)]


def apart(page: str, block: Block, excepted: tuple[str, str]) -> bool:
    return page == excepted[0] and block.lines[0].startswith(excepted[1])


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_can_be_typed(page):
    told = [] if page in TOLD else list(in_sentences(page, PAGES[page]))
    assert complaints([*in_blocks(page, of_language(page, "", "console")), *told], APART) == []


@pytest.mark.parametrize("page", PAGES)
def test_every_configuration_of_a_page_can_be_built(page):
    assert wrong_settings(page, of_language(page, "yaml")) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page not in TOLD])
def test_every_option_and_setting_within_a_sentence_is_there(page):
    assert [*unknown_options(page, PAGES[page]), *unknown_keys(page, PAGES[page])] == []


def test_the_commands_of_examples_and_of_the_help_can_be_typed():
    paths = sorted((ROOT / "examples").glob("*.yaml"))
    shown = [one for path in paths for one in in_comments(path.name, path.read_text(encoding="utf-8"))]
    assert complaints([*shown, *in_help()], APART) == []
    assert {one.place.split(":")[0] for one in shown} == {path.name for path in paths}
    assert [one.place for one in in_help() if "karat " not in one.text] == []


def test_every_command_but_the_server_answers_in_json():
    without = [one.name for one in all_commands() if not any("--json" in param.opts for param in one.params)]
    assert without == ["serve"]


def test_the_commands_that_messages_advise_are_there():
    paths = sorted((ROOT / "src" / "karat").rglob("*.py"))
    advised = [one for path in paths for one in in_sentences(path.name, path.read_text(encoding="utf-8"))]
    assert len(advised) > 40
    assert complaints(one for one in advised if not one.text.startswith("karat {")) == []


def test_every_import_of_a_page_is_there():
    code = ["\n".join(block.lines) for page in PAGES for block in of_language(page, "python")]
    imports = [node for one in code for node in ast.walk(ast.parse(one)) if isinstance(node, ast.ImportFrom)]
    assert len(imports) >= 2
    lost = [
        (at.module, one.name)
        for at in imports
        for one in at.names
        if not hasattr(importlib.import_module(at.module), one.name)
    ]
    assert lost == []


def test_every_block_is_of_a_known_kind_and_every_exception_is_needed():
    every = [(page, block) for page in PAGES for block in blocks(PAGES[page])]
    assert {block.language for _, block in every} == set(LANGUAGES)
    assert [one for one in NO_COMMANDS if not any(apart(page, block, one) for page, block in every)] == []
    text = "\n".join(PAGES.values())
    assert [one for one in APART if not re.search(rf"^(\$ )?{one} |`{one}`", text, flags=re.MULTILINE)] == []
    assert [page for page in TOLD if page not in PAGES] == []
    assert len(list(in_blocks("README.md", of_language("README.md", "", "console")))) > 20


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("karat runn config.yaml", "no such command 'runn'"),
        ("karat run config.yaml --sedes 0-4", "No such option: --sedes"),
        ("karat run", "Missing argument 'CONFIG'"),
        ("karat people", "a command is missing"),
        ("karat demo --fault gravity", "no-kl"),
        ("karat run examples/nowhere.yaml", "examples/nowhere.yaml is not there"),
        ("karat run config.yaml --set ppo.reward.kl=0.05", "unknown configuration key 'ppo.reward.kl'"),
        ("karat run config.yaml --set ppo.reward.kl_coef=little", "ppo.reward.kl_coef: found 'little'"),
        ("karat run config.yaml --sweep ppo.reward.kl=0.05,0.1", "unknown configuration key"),
        ("karat run config.yaml --sweep algorithm=ppo,sarsa", "algorithm: found 'sarsa'"),
        ("karat run config.yaml --seeds 4-0", "--seeds 4-0"),
        ("karat run examples/ukp.yaml --set votes.pth=…", "unknown configuration key 'votes.pth'"),
        ("karat run examples/people.yaml --set peple.prompts=p.jsonl", "unknown configuration key 'peple'"),
        ("karat reward --store k.db --model m --out r --set ppo.n_iterations=2", "unknown configuration key 'ppo'"),
        ("karat collect --model m --prompts p --budget soon", "soon"),
        ("karat collect --model m --prompts p --kind comparison,vote", "--kind vote"),
        ('karat experiment judged.db scale --arm "binary: lvels = 2"', "lvels"),
        ("karat serve judged.db && karat seel judged.db", "no such command 'seel'"),
        ("export KARAT_TOKEN=$(karat people tken karat.db boss)", "no such command 'tken'"),
        ("karat serve judged.db \\\n    --prot 80", "No such option: --prot"),
        ("make tset", "make knows no tset"),
        ("make bench WORK=poetry", "no row poetry"),
        ('make demo DEMO="--sede 1"', "No such option: --sede"),
        ("python -m bench --lnog gao", "no option --lnog"),
        ("python bench/nowhere.py", "bench/nowhere.py is not there"),
        ("python -m bench.score_study --metod rloo", "no option --metod"),
        ("torchrun --nproc 4 -m karat run CONFIG --fsdq", "torchrun has no option --nproc"),
        ("torchrun --nproc-per-node 4 -m karat run CONFIG --fsdq", "No such option: --fsdq"),
        ("accelerate launch --many_gpu -m karat run CONFIG", "accelerate has no option --many_gpu"),
        ("kraat run config.yaml", "kraat is no program"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_a_block_is_named(planted, said):
    page = f"# Page\n\n```\n# see\nkarat verify runs/demo   # right\n{planted}\n```\n"
    found = complaints(in_blocks("page.md", blocks(page)), APART)
    assert len(found) == 1
    assert found[0].startswith("page.md:6: ")
    assert said in found[0]


@pytest.mark.parametrize(
    ("planted", "said"),
    [
        ("`karat serve --prot`", "No such option: --prot"),
        ("`karat reward --set devise=…`", "unknown configuration key 'devise'"),
        ("`karat doctor CONFIG [--set key=value] [--jsno]`", "No such option: --jsno"),
        ("`KARAT_DATA=… python -m bench.gpu_rows`", "bench.gpu_rows is not there"),
        ("`bench/nowhere.py`", "bench/nowhere.py is not there"),
        ("`accelerate launch --many_gpu`", "no option --many_gpu"),
    ],
)
def test_what_is_wrong_in_a_sentence_is_named(planted, said):
    right = "`karat run` or `karat score --person`, `karat reward --set device=…`, `karat doctor CONFIG [--json]`, `karat checks`"
    found = complaints(in_sentences("page.md", f"Type {right}\nand {planted}."))
    assert len(found) == 1
    assert found[0].startswith("page.md:2: ")
    assert said in found[0]


def test_options_and_settings_that_nothing_has_are_named():
    right = "`--fsdp` of `karat run`, `--quick`, `--num_processes`, `ppo.update.learning_rate: 1e-3`, `reward.ensemble: {models: M}`"
    assert unknown_options("page.md", f"{right}\n`--fsdq 3`, `--json`") == ["page.md:2: --fsdq"]
    assert unknown_keys("page.md", f"{right}\n`ppo.update.rate: 1`, `watch.odd=0`, `high: 5`") == [
        "page.md:2: ppo.update.rate: 1", "page.md:2: watch.odd=0",
    ]  # fmt: skip


def test_a_prompt_parts_what_is_typed_from_what_is_answered():
    page = "```console\n$ karat serve \\\n  judged.db\nkarat serves judged.db\n$ karat seal judged.db\n```\n"
    found = [text for block in blocks(page) for _, text in lines_of(block)]
    assert [" ".join(text.split()) for text in found] == ["karat serve judged.db", "karat seal judged.db"]


def test_what_is_wrong_in_a_configuration_is_named():
    page = "```yaml\nppo: {reward: {kl: 1}}\n```\n```yaml\n# rounds: two\nrounds: 3\n```\n```yaml\nkind: rating\nhihg: 5\n```\n"
    found = wrong_settings("page.md", blocks(page))
    assert [line.split(": ")[0] for line in found] == ["page.md:2", "page.md:5", "page.md:9"]
    assert complaints([Typed("page.md:1", "karat init config.yaml", True)]) == []
