"""The walls of the house: floors, pure modules, sizes, names, tolerances, and what must not be imported.

Reads the sources; runs none of them, but for one question that only an interpreter can answer.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "karat"
# Where a room stands; imports go down only, and rooms of one floor do not know one another.
FLOORS = {
    "ledger": 1, "lm": 1, "sandbox": 1,
    "prompts": 2, "sft": 2, "feedback": 2, "reward": 2, "policy": 2,
    "evaluate": 3, "audit": 4, "report": 5,
    "pipeline": 6, "batches": 6, "talk": 6, "cli": 7, "__main__": 8,
}  # fmt: skip
# Tensors, arrays and records only: no disk, no network, no accelerator.
PURE = {
    "statements", "segments", "reading", "fitting", "edits", "feedback_columns", "feedback_likelihood",
    "records", "choice", "ranking", "ratings", "belief", "overopt", "probes", "tensors", "stats", "resampling",
    "forecasts", "figures", "errors", "ledger.lineage", "ledger.excuses", "lm.chat", "lm.trees", "lm.attention", "lm.flex_trees", "lm.losses", "lm.sampling", "lm.shapes", "lm.memory", "lm.rotation", "lm.narrow", "lm.narrow_logprobs", "lm.logits", "lm.tiled_attention", "lm.tiled_logprobs",
    "prompts.splits", "sft.loss", "feedback.tasks", "feedback.record.merkle", "feedback.quality.agreement", "feedback.quality.reliability", "reward.posterior",
    "reward.calibration", "reward.latents", "reward.prediction", "reward.contributions", "reward.objectives", "reward.gate", "policy.advantages", "policy.objectives", "policy.kl", "policy.shaping",
    "policy.group_advantages", "policy.vote_curve", "policy.preference_objectives", "policy.implicit_q", "policy.selection",
    "feedback.detect.evidence", "feedback.detect.pool", "feedback.detect.habits", "feedback.detect.collusion", "feedback.detect.triggers", "feedback.detect.traits",
    "feedback.snapshot_check", "feedback.detect.marks", "feedback.detect.outsourcing", "feedback.detect.sketches", "feedback.detect.sybils", "feedback.detect.detectors",
    "reward.thresholds", "reward.held_out", "reward.robustness", "reward.length_use", "reward.attack", "sandbox.rewording", "sandbox.marking",
    "policy.controllers", "policy.best_of_n", "evaluate.frontiers", "evaluate.table", "evaluate.suites", "audit.attribution", "audit.concepts", "audit.atlas", "audit.known_concepts", "report.figures",
    "feedback.quality.answer_table", "feedback.quality.coefficients", "feedback.quality.ordinal", "feedback.quality.joint_posterior",
    "feedback.quality.expectation", "feedback.quality.consensus", "feedback.quality.drift", "feedback.quality.population", "feedback.quality.slices",
    "feedback.quality.planning", "feedback.quality.learning_curve", "feedback.quality.word_reader", "feedback.quality.arms", "ngrams",
    "arithmetic", "plain_features", "plain_numbers", "aggregator_names", "process_settings", "feedback.strategies",
    "feedback.web.rendering", "feedback.web.forms", "feedback.web.task_view",
    "feedback.web.positions", "feedback.web.cells", "feedback.work.matching",
    "lm.fresh_settings", "reward.settings", "reward.people_settings", "sft.settings",
    "reward.bound", "reward.jury", "reward.linear_votes", "reward.mixtures", "reward.personal", "reward.population",
    "reward.served", "reward.user_em", "reward.users",
    "feedback.quality.trust_region", "feedback.quality.on_trial", "feedback.quality.scale_trial", "reward.distance",
    "feedback.arm_changes",
    "feedback.quality.rater_drift", "feedback.web.answer_words", "feedback.web.charts", "feedback.web.figures",
    "feedback.acquisition", "feedback.allocation", "hamiltonian", "reward.whitened", "reward.hierarchy", "reward.last_layer", "reward.linear_answers", "reward.rated_layer",
    "reward.sampled_layer", "reward.tastes", "reward.channel_answers", "reward.layer_turns", "reward.drawn_answers", "reward.drawn_raters", "reward.population_layer", "reward.objective_layer", "reward.halo",
}  # fmt: skip
EFFECTFUL = {
    "ledger.artifacts", "ledger.manifest", "lm.headers", "lm.loop_identity", "lm.adapter_files", "lm.checksums", "lm.tokenizer_files", "lm.load", "lm.own_numbers", "lm.logprobs", "lm.decoder", "lm.generate", "lm.segments", "lm.loop", "lm.freed_memory", "lm.native", "lm.checkpoints", "lm.sharding", "lm.parallel", "lm.together", "lm.trackers", "lm.endpoint",
    "feedback.store", "feedback.engine", "feedback.baton", "feedback.prepared", "feedback.work.sitting", "feedback.additions", "feedback.submission", "feedback.misfits", "feedback.leases", "feedback.waiting", "feedback.snapshot", "feedback.exchange.importers", "feedback.exchange.answers", "feedback.exchange.exporters",
    "feedback.people.accounts", "feedback.work.adjudication", "feedback.work.assignment", "feedback.work.gates", "feedback.people.care", "feedback.work.check_answers",
    "feedback.work.checks", "feedback.work.check_items", "feedback.documents", "feedback.people.door", "feedback.people.drafts", "feedback.keys", "feedback.openings", "feedback.work.requeue",
    "feedback.people.roles", "feedback.people.sessions", "feedback.people.standing", "feedback.work.turns", "feedback.turnstile", "feedback.upserts",
    "feedback.record.seals", "feedback.record.verification", "feedback.record.erasure", "feedback.record.backup", "feedback.record.bundle",
    "feedback.schema", "prompts.sources", "reward.score", "reward.train", "reward.dense", "reward.mark_quality", "policy.rollout", "policy.ppo", "policy.odd_rewards", "sft.train",
    "policy.group", "policy.online_dpo", "policy.expert", "policy.direct", "policy.ilql", "policy.score_sources", "policy.course", "policy.epochs", "policy.beside",
    "feedback.people.own_record", "feedback.web.task_pages", "feedback.web.person_pages", "feedback.web.page_record",
    "feedback.work.answering", "feedback.client", "feedback.web.access", "feedback.web.account_pages", "feedback.web.api",
    "feedback.web.api_admin", "feedback.web.app", "feedback.web.failures", "feedback.web.first_admin",
    "feedback.web.health", "feedback.web.background", "feedback.web.security", "feedback.web.serve", "feedback.web.signing_in",
    "feedback.web.templates", "feedback.web.lanes",
    "feedback.work.arena", "feedback.record.auditing", "feedback.work.dashboard", "feedback.work.consensus_view", "feedback.work.reward_plan", "feedback.work.vote_outcomes", "feedback.work.who_speaks", "feedback.work.trial", "feedback.work.outlay", "feedback.quality.rater_health",
    "feedback.work.duels", "feedback.work.old_guideline", "feedback.work.rates", "feedback.work.queueing", "feedback.work.reviews", "feedback.work.task_browser", "feedback.people.who_judged", "feedback.work.experiments", "feedback.work.qualifying", "feedback.work.likely_changes", "feedback.work.participants",
    "feedback.web.desk", "feedback.web.admin_pages", "feedback.web.admin_accounts", "feedback.web.admin_documents",
    "feedback.web.admin_checks", "feedback.web.api_checks", "feedback.web.admin_experiments", "feedback.web.admin_plan", "feedback.web.admin_qualification", "feedback.web.admin_quality", "feedback.web.admin_queue", "feedback.web.admin_raters", "feedback.web.admin_record",
    "feedback.web.admin_settings", "feedback.web.arena_pages", "feedback.web.audit_pages", "feedback.web.review_pages",
    "reward.people", "reward.person_file",
    "reward.novelty", "evaluate.suite_files",
    "rowfiles", "destinations", "ranks", "devices", "__main__", "progress", "doctor", "batches", "report.page", "pipeline", "talk.duel", "cli",
}  # fmt: skip
EFFECTS = {"os", "io", "shutil", "subprocess", "socket", "tempfile", "sqlite3", "sqlalchemy", "urllib", "time", "rich"}
FORBIDDEN_NAMES = {"util", "utils", "helper", "helpers", "common", "misc", "tools", "shared", "base"}
LARGEST_TOLERANCE = 1e-3
MOST_LINES, MOST_FUNCTION_LINES, MOST_PARAMETERS = 400, 60, 7


def modules() -> dict[str, ast.Module]:
    """Every module of the package by its name below karat (`ledger.manifest`), parsed."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        found["" if name == "__init__" else name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(name: str) -> set[str]:
    """Dotted names that a module imports anywhere, but for annotations only (`if TYPE_CHECKING`)."""
    found: set[str] = set()
    for node in _walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: line {node.lineno} imports relatively"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def inner_imports(name: str) -> set[str]:
    """Modules of this package that a module imports, by their names below karat."""
    found = set()
    for dotted in imports(name):
        parts = dotted.split(".")
        if parts[0] != "karat":
            continue
        for length in range(len(parts), 1, -1):
            below = ".".join(parts[1:length])
            if below in MODULES:
                found.add(below)
                break
    return found - {name}


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from _walk(child)


def room(name: str) -> str:
    """The first part of a module's name."""
    return name.split(".")[0]


def floor(name: str) -> int:
    """The floor of a module's room; the top-level modules stand on floor 0."""
    return FLOORS.get(room(name), 0)


def test_every_room_has_its_floor():
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and list(path.glob("*.py"))}
    assert folders <= set(FLOORS)


def test_imports_go_down_only():
    wrong = [
        f"{name} imports {other}"
        for name in MODULES
        if name
        for other in inner_imports(name)
        if other and room(other) != room(name) and floor(other) >= floor(name) > 0
    ]
    wrong += [
        f"{name} imports {other}"
        for name in MODULES
        if floor(name) == 0
        for other in inner_imports(name)
        if floor(other)
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_no_cycles():
    graph = {name: inner_imports(name) for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " → ".join([*path[path.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_pure_modules_import_nothing_effectful():
    wrong = []
    for name in sorted(PURE & set(MODULES)):
        inner = {other for other in inner_imports(name) if other in EFFECTFUL or room(other) in EFFECTFUL}
        outer = {dotted.split(".")[0] for dotted in imports(name)} & EFFECTS
        wrong += [f"{name} imports {other}" for other in sorted(inner | outer)]
    assert not wrong, "\n".join(wrong)
    assert not PURE & EFFECTFUL


def test_no_drawer_for_everything():
    wrong = [name for name in MODULES if FORBIDDEN_NAMES & set(name.replace("_", ".").split("."))]
    assert not wrong, "\n".join(wrong)


def test_modules_are_short_and_say_what_they_know():
    long = {
        path.relative_to(ROOT).as_posix(): n
        for path in SOURCE.rglob("*.py")
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long, long
    silent = [name for name, tree in MODULES.items() if tree.body and not ast.get_docstring(tree)]
    assert not silent, "\n".join(silent)


def test_functions_are_short_and_take_few_parameters():
    long, greedy = {}, {}
    for name, tree in MODULES.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            start = node.body[1].lineno if ast.get_docstring(node) and len(node.body) > 1 else node.lineno
            if node.end_lineno - start + 1 > MOST_FUNCTION_LINES:
                long[f"{name}.{node.name}"] = node.end_lineno - start + 1
            arguments = [a.arg for a in (*node.args.posonlyargs, *node.args.args)]
            n = len([argument for argument in arguments if argument not in ("self", "cls")])
            # A command's parameters are its options; typer reads them from the signature.
            if n > MOST_PARAMETERS and room(name) != "cli":
                greedy[f"{name}.{node.name}"] = n
    assert not long, long
    assert not greedy, greedy


def test_every_public_name_and_field_is_described():
    silent = []
    for name, tree in MODULES.items():
        if room(name) == "feedback" and "migrations" in name:
            continue
        for node in tree.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                if not ast.get_docstring(node):
                    silent.append(f"{name}.{node.name}")
                if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                    silent += [f"{name}.{node.name}.{field}" for field in _silent_fields(node)]
    assert not silent, "\n".join(silent)


def _silent_fields(node: ast.ClassDef) -> list[str]:
    silent = []
    for position, entry in enumerate(node.body):
        if isinstance(entry, ast.AnnAssign) and isinstance(entry.target, ast.Name):
            below = node.body[position + 1] if position + 1 < len(node.body) else None
            text = (
                isinstance(below, ast.Expr)
                and isinstance(below.value, ast.Constant)
                and isinstance(below.value.value, str)
            )
            if not text and not entry.target.id.startswith("_"):
                silent.append(entry.target.id)
    return silent


def test_no_test_allows_more_than_a_thousandth():
    wrong = []
    for path in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            named = ast.unparse(node.func).split(".")[-1]
            values = [
                keyword.value for keyword in node.keywords if keyword.arg in ("rtol", "atol", "abs", "rel", "tol")
            ]
            if named == "approx":
                values += node.args[1:]
            wrong += [
                f"{path.relative_to(ROOT)}:{node.lineno} allows {value.value}"
                for value in values
                if isinstance(value, ast.Constant)
                and isinstance(value.value, int | float)
                and value.value > LARGEST_TOLERANCE
            ]
    assert not wrong, "\n".join(wrong)


def test_the_tests_reference_implementations_do_not_call_the_product():
    wrong = [
        path.name
        for path in (ROOT / "tests" / "reference").glob("*.py")
        if any(
            "karat" in line
            for line in path.read_text(encoding="utf-8").splitlines()
            if line.startswith(("import", "from"))
        )
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    "first",
    [
        "import karat.cli, karat.progress, karat.doctor",
        "import karat.ledger.manifest, karat.ledger.lineage, karat.report.page, karat.report.card",
        "import karat.feedback.store, karat.feedback.exchange.importers, karat.feedback.snapshot, karat.feedback.tasks",
        "import karat.feedback.web.serve, karat.feedback.client",
        "import karat.cli; karat.cli.main(['verify', '--help'])",
        "import karat.pipeline.settings, karat.pipeline.votes_settings, karat.pipeline.configured",
    ],
)
def test_commands_that_need_no_model_do_not_wait_for_torch(first: str):
    code = f"import sys\n{first}\nprint([name for name in ('torch', 'transformers') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_the_same_tensors_make_the_same_file():
    """`save_file` writes several entries of metadata in another order each time; `add_header_metadata` does not."""
    wrong = [
        f"{name}: line {node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "save_file"
        for metadata in [*node.args[2:], *[keyword.value for keyword in node.keywords if keyword.arg == "metadata"]]
        if not (isinstance(metadata, ast.Dict) and len(metadata.keys) == 1)
    ]
    assert not wrong, "\n".join(wrong)
