"""Mutation testing of the core: which changes of the code does no test notice?

python tests/mutation.py vadpipe/repository/runs.py [--sample 100] [--seed 0] [--again]

The changes are mutmut's, and each statement that can be left out is left out too. The tests run as follows, in
place of mutmut's own runner, which leaves decorated functions alone, and so every context manager:

1. pytest imports and collects the tests of TESTS once.
2. A forked process runs them, and notes for each which lines of the file it runs.
3. For each mutant a forked process exchanges the code of the one function and runs the tests that come to the
   changed lines, the fastest first, up to the first that fails.

So a mutant costs as much as the tests that stop it. Left out: messages (arguments of exceptions and log lines),
annotations, default values and what runs at import.

A mutant is killed (a test fails), ended (the tests did not end in time, a hang that a test notices), or it
survives; no test may come to its lines (unreached).
`build/mutation/FILE.jsonl` has a line for each.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import gc
import itertools
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import coverage
import libcst as cst
import pytest
from libcst.metadata import MetadataWrapper, ParentNodeProvider, PositionProvider
from mutmut.mutation.mutators import mutation_operators

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "build" / "mutation"

REPOSITORY = ("tests/vadpipe/repository", "tests/sinks", "tests/test_path.py")
VDDK = ("tests/vadpipe/vddk", "tests/vadpipe/vsphere/vm/test_left_behind.py")

# The tests that say what a file has to do, with the slow ones.
TESTS = {
    "pipeline/contracts.py": (
        "tests/pipeline/test_runner.py",
        "tests/pipeline/test_joints.py",
        "tests/pipeline/test_composition.py",
        "tests/pipeline/test_lift.py",
        "tests/pipeline/test_blocking.py",
        "tests/stages",
    ),
    "sinks/restoring.py": ("tests/sinks", "tests/vadpipe/repository/test_points.py"),
    "vadpipe/repository/into_repository.py": (*REPOSITORY, "tests/stages"),
    "vadpipe/repository/point.py": REPOSITORY,
    "vadpipe/repository/runs.py": REPOSITORY,
    "vadpipe/repository/store.py": REPOSITORY,
    "vadpipe/vddk/client.py": VDDK,
    "vadpipe/vddk/connection.py": VDDK,
    "vadpipe/vddk/requests.py": VDDK,
}

# A test may take this many times as long as without a change, and so much more, on a machine that does other work.
PATIENCE = 8.0
PATIENCE_S = 15.0

# A mutant that survives would run every test that comes to its lines. So long tests judge none; of the others those
# of the file's own test module first, the fastest first, up to so many seconds in all.
LONGEST_S = 2.5
BUDGET_S = 3.0


@dataclass(frozen=True)
class Mutant:
    """A change of one function: its whole file with the change, and where that is."""

    function: str
    first: int
    last: int
    source: str
    change: str


class _Mutants(cst.CSTVisitor):
    """Collects (node, changed node, function, first line, last line)."""

    METADATA_DEPENDENCIES = (PositionProvider, ParentNodeProvider)

    def __init__(self) -> None:
        self.found: list[tuple[cst.CSTNode, cst.CSTNode | cst.RemovalSentinel, str, int, int]] = []
        self._names: list[str] = []
        self._depth = 0  # of functions
        self._function = ""

    def visit_ClassDef(self, node: cst.ClassDef) -> bool:  # noqa: N802
        self._names.append(node.name.value)
        return True

    def leave_ClassDef(self, original_node: cst.ClassDef) -> None:  # noqa: N802
        self._names.pop()

    def on_visit(self, node: cst.CSTNode) -> bool:
        if isinstance(node, cst.FunctionDef):
            self._depth += 1
            if self._depth == 1:
                self._function = ".".join([*self._names, node.name.value])
        if isinstance(node, (cst.Annotation, cst.Decorator, cst.Parameters)) or _is_message(node):
            self._leave_out(node)
            return False
        if self._depth:
            for changed in _changes(node):
                self._add(node, changed)
        return super().on_visit(node)

    def on_leave(self, original_node: cst.CSTNode) -> None:
        super().on_leave(original_node)
        if isinstance(original_node, cst.FunctionDef):
            self._depth -= 1

    def _leave_out(self, node: cst.CSTNode) -> None:
        """A raise or a log line: its words are not judged, that it is there is."""
        parent = self.get_metadata(ParentNodeProvider, node, None)
        if self._depth and isinstance(node, cst.Raise):
            self._add(node, cst.Pass())
        if self._depth and isinstance(node, cst.Call) and isinstance(parent, cst.Expr):
            self._add(parent, cst.Expr(cst.Ellipsis()))

    def _add(self, node: cst.CSTNode, changed: cst.CSTNode | cst.RemovalSentinel) -> None:
        place = self.get_metadata(PositionProvider, node, None)
        above: cst.CSTNode | None = node
        while place is None and above is not None:
            above = self.get_metadata(ParentNodeProvider, above, None)
            place = self.get_metadata(PositionProvider, above, None) if above is not None else None
        if place is not None:
            self.found.append((node, changed, self._function, place.start.line, place.end.line))


def _is_message(node: cst.CSTNode) -> bool:
    if isinstance(node, cst.Raise):
        return isinstance(node.exc, cst.Call)
    function = node.func if isinstance(node, cst.Call) else None
    if isinstance(function, cst.Name) and function.value == "sink_errors":
        return True  # place and verb of a message
    return (
        isinstance(function, cst.Attribute)
        and isinstance(function.value, cst.Name)
        and function.value.value in ("log", "library_log")
    )


def _changes(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    if isinstance(node, cst.BaseString):
        yield from itertools.islice(_operated(node), 1)  # one changed spelling of a word is enough
        return
    yield from _operated(node)
    if isinstance(node, cst.Expr) and isinstance(node.value, (cst.Call, cst.Await)):
        yield cst.Expr(cst.Ellipsis())
    if isinstance(node, (cst.AugAssign, cst.Return)) and not (isinstance(node, cst.Return) and node.value):
        yield cst.Pass()
    if isinstance(node, cst.Raise) and node.exc is None:
        yield cst.Pass()
    if isinstance(node, cst.If):
        yield node.with_changes(test=cst.Name("False"))
        yield node.with_changes(test=cst.Name("True"))
    if (
        isinstance(node, cst.With)
        and not node.asynchronous
        and len(node.items) == 1
        and not node.items[0].asname
    ):
        yield node.with_changes(
            items=[cst.WithItem(cst.parse_expression("__import__('contextlib').nullcontext()"))]
        )


def _operated(node: cst.CSTNode) -> Iterator[cst.CSTNode]:
    for kind, operator in mutation_operators:
        if isinstance(node, kind):
            yield from operator(node)


def mutants(path: Path) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines."""
    source = path.read_text()
    wrapper = MetadataWrapper(cst.parse_module(source), unsafe_skip_copy=True)
    visitor = _Mutants()
    wrapper.visit(visitor)
    found: dict[str, Mutant] = {}
    for node, changed, function, first, last in visitor.found:
        text = wrapper.module.deep_replace(node, changed).code  # type: ignore[union-attr, type-var]
        try:
            compile(text, "mutant", "exec")
        except SyntaxError:
            continue
        if text != source and text not in found:
            change = [
                line
                for line in difflib.unified_diff(source.splitlines(), text.splitlines(), n=0, lineterm="")
                if line[:1] in "+-" and line[:3] not in ("+++", "---")
            ]
            found[text] = Mutant(function, first, min(last, first + 200), text, "\n".join(change))
    return sorted(found.values(), key=lambda one: one.first)


def functions_of(path: Path) -> Mapping[str, list[FunctionType]]:
    """The functions that were made from a file, by qualified name."""
    found: dict[str, list[FunctionType]] = {}
    for one in gc.get_objects():
        if isinstance(one, FunctionType) and one.__code__.co_filename == str(path):
            found.setdefault(one.__code__.co_qualname, []).append(one)
    return found


def codes_of(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from codes_of(one)


class Judge:
    """A pytest plugin that runs the collected tests once for each mutant."""

    def __init__(self, path: Path, chosen: Sequence[Mutant], result: Path, *, measured: bool) -> None:
        self._path, self._chosen, self._result, self._measured = path, chosen, result, measured
        self._base = result.with_suffix(".tmp")

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        shutil.rmtree(self._base, ignore_errors=True)
        tests = self._measure(session)
        items = {item.nodeid: item for item in session.items}
        functions = functions_of(self._path)
        with self._result.open("w") as out:
            for number, mutant in enumerate(self._chosen, 1):
                lines = range(mutant.first, mutant.last + 1)
                wanted = self._wanted(tests, lines)
                limit_s = PATIENCE_S + PATIENCE * sum(tests[name][0] for name in wanted)
                begun = time.monotonic()
                if mutant.function not in functions or not wanted:
                    outcome, by = "unreached", ""
                else:
                    outcome, by = self._judge(
                        session, mutant, functions, [items[one] for one in wanted], limit_s
                    )
                row = {
                    "line": mutant.first,
                    "function": mutant.function,
                    "change": mutant.change,
                    "outcome": outcome,
                    "by": by,
                    "tests": len(wanted),
                    "took_s": round(time.monotonic() - begun, 2),
                }
                print(json.dumps(row), file=out, flush=True)
                if outcome not in ("killed", "ended"):
                    print(
                        f"{number}/{len(self._chosen)} {outcome} {mutant.function}:{mutant.first}", flush=True
                    )
                    print(mutant.change, flush=True)
        return True

    def _wanted(self, tests: Mapping[str, tuple[float, set[int]]], lines: range) -> list[str]:
        """The tests that judge a mutant of these lines, in their order."""
        coming = [
            name for name, (took, seen) in tests.items() if took < LONGEST_S and not seen.isdisjoint(lines)
        ]
        own = f"test_{self._path.stem}"
        coming.sort(key=lambda name: (own not in name, tests[name][0]))
        spent = itertools.accumulate(tests[name][0] for name in coming)
        return [name for name, sum_s in zip(coming, spent, strict=True) if sum_s < BUDGET_S]

    def _measure(self, session: pytest.Session) -> dict[str, tuple[float, set[int]]]:
        """Seconds and lines of the file for each test that passes."""
        note = self._result.with_suffix(".tests")
        if self._measured and note.exists():
            rows = json.loads(note.read_text())
            return {name: (took, set(lines)) for name, took, lines in rows if lines}

        def body() -> int:
            # One measurement for all: a thread that was started in an earlier test is traced in this one too.
            measure = coverage.Coverage(
                data_file=None, config_file=False, include=[str(self._path)], concurrency=["thread"]
            )
            measure.start()
            took: dict[str, float] = {}
            for item, following in _pairs(session.items):
                failed = session.testsfailed
                measure.switch_context(item.nodeid)
                begun = time.perf_counter()
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed == failed:
                    took[item.nodeid] = time.perf_counter() - begun
                else:
                    print(f"left out, it fails without a change: {item.nodeid}", file=sys.stderr)
            measure.stop()
            lines: dict[str, list[int]] = {}
            for line, names in measure.get_data().contexts_by_lineno(str(self._path)).items():
                for name in names:
                    lines.setdefault(name, []).append(line)
            rows = [(name, took[name], lines.get(name, [])) for name in took]
            note.write_text(json.dumps(rows))
            return 0

        outcome = _forked(session, body, self._base / "measure", 3600.0, self._result.with_suffix(".log"))
        if outcome != 0:
            raise SystemExit(f"The tests did not run: {outcome}; see {self._result.with_suffix('.log')}")
        return {name: (took, set(lines)) for name, took, lines in json.loads(note.read_text()) if lines}

    def _judge(
        self,
        session: pytest.Session,
        mutant: Mutant,
        functions: Mapping[str, list[FunctionType]],
        items: Sequence[pytest.Item],
        limit_s: float,
    ) -> tuple[str, str]:
        codes = {code.co_qualname: code for code in codes_of(compile(mutant.source, str(self._path), "exec"))}
        note = self._result.with_suffix(".by")
        note.write_text("")

        def body() -> int:
            for function in functions[mutant.function]:
                function.__code__ = codes[mutant.function]
            for item, following in _pairs(items):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
                if session.testsfailed:
                    note.write_text(item.nodeid)
                    return 1
            return 0

        outcome = _forked(session, body, self._base / "mutant", limit_s, Path(os.devnull))
        if outcome is None:
            return "ended", ""
        return ("survived" if outcome == 0 else "killed"), note.read_text()


def _pairs(items: Sequence[pytest.Item]) -> Iterable[tuple[pytest.Item, pytest.Item | None]]:
    return zip(items, [*items[1:], None], strict=True)


def _forked(
    session: pytest.Session, body: Callable[[], int], base: Path, limit_s: float, output: Path
) -> int | None:
    """The exit status of `body` in a process of its own; None where it did not end in time."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 99
        try:
            os.setsid()
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(file, 1)
            os.dup2(file, 2)
            base.mkdir(parents=True, exist_ok=True)
            session.config._tmp_path_factory._basetemp = base  # type: ignore[attr-defined]
            status = body()
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    deadline = time.monotonic() + limit_s
    status = None
    while time.monotonic() < deadline:
        done, code = os.waitpid(child, os.WNOHANG)
        if done:
            status = os.waitstatus_to_exitcode(code)
            break
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    if status is None:
        os.waitpid(child, 0)
    shutil.rmtree(base, ignore_errors=True)
    return status


def main() -> None:
    parser = argparse.ArgumentParser(description="Mutation testing of one file of the core.")
    parser.add_argument("file", choices=sorted(TESTS))
    parser.add_argument("--sample", type=int, help="so many mutants, drawn by chance; otherwise all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--function", help="only mutants of functions whose name has this")
    parser.add_argument("--list", action="store_true", help="only count the mutants")
    parser.add_argument("--tests", nargs="+", help="these tests, in place of those of TESTS")
    parser.add_argument("--again", action="store_true", help="only those that survived the last time")
    parser.add_argument(
        "--measured", action="store_true", help="which tests come to which lines is known from the last time"
    )
    arguments = parser.parse_args()
    path = ROOT / arguments.file
    found = mutants(path)
    result = RESULTS / (arguments.file.replace("/", ".").removesuffix(".py") + ".jsonl")
    result.parent.mkdir(parents=True, exist_ok=True)
    chosen = [one for one in found if not arguments.function or arguments.function in one.function]
    if arguments.sample and arguments.sample < len(chosen):
        chosen = sorted(
            random.Random(arguments.seed).sample(chosen, arguments.sample), key=lambda one: one.first
        )
    if arguments.again:
        rows = [json.loads(line) for line in result.read_text().splitlines()]
        left = {(row["line"], row["change"]) for row in rows if row["outcome"] in ("survived", "unreached")}
        chosen = [one for one in chosen if (one.first, one.change) in left]
        result = result.with_suffix(".again.jsonl")
    print(f"{arguments.file}: {len(chosen)} of {len(found)} mutants", flush=True)
    if arguments.list:
        return
    options = ["-q", "-p", "no:cacheprovider", "-m", "not campaign", "--capture=sys"]
    judge = Judge(path, chosen, result, measured=arguments.measured)
    pytest.main([*options, *(arguments.tests or TESTS[arguments.file])], plugins=[judge])
    counts: dict[str, int] = {}
    for line in result.read_text().splitlines():
        outcome = json.loads(line)["outcome"]
        counts[outcome] = counts.get(outcome, 0) + 1
    print(counts)


if __name__ == "__main__":
    main()
