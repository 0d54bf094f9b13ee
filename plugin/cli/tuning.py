"""The steps of `ropebend tune`, each saved in the run folder; search, evaluation and converter do the work."""

from __future__ import annotations

import itertools
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ropebend.durations import brief, duration
from ropebend.errors import RopebendError, UsageError
from ropebend.shell import command

if TYPE_CHECKING:
    from ropebend.evaluate import Evaluation
    from ropebend.search.outcome import Outcome
    from ropebend.search.spec import TaskSpec
    from ropebend.tasks.task import Task
    from ropebend.tune.result import Winner
    from ropebend.tune.state import Folder

BASELINE_ITEMS = 8  # of each task that is tried
LEAST_EASY = 0.5  # of a task's easy questions, or it is beyond the model
DOES_IT = 0.2  # right answers on short prompts of a task that the model can do
NEARLY = 0.03  # of all answers: nothing is right, or nothing is wrong


def go_on(run: Folder) -> str:
    """How to go on with this one, as a line."""
    return f"go on:  {command('ropebend', 'tune', '--resume', run.path)}"


class Tuning:
    def __init__(self, run: Folder, console: Any, force: bool):
        from ropebend.model_info import ModelInfo
        from ropebend.tune.plan import short_length

        self.run, self.state, self.asked = run, run.state, run.state.asked
        self.console, self.force = console, force
        self.info = ModelInfo.read(self.asked.model)
        self.short = short_length(self.asked.ctx, self.info.n_ctx_train)
        self.beyond = self.asked.ctx > self.info.n_ctx_train
        self.measured = 0.0  # seconds of an item of what was measured last

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def go(self) -> None:
        """Every step that is not done yet."""
        if not self.run.searching:
            if not self.state.checked:
                self._look()
            if self.state.task is None:
                self._find_task()
            if self.state.task is None:
                self._nothing_to_tune()
                return
        self._finish(self._search())

    # ---- the model

    def _look(self) -> None:
        """Measure its speed, say the plan or refuse, and prove the hook."""
        from ropebend.doctor import examine
        from ropebend.model import Model
        from ropebend.tune import plan

        asked, r = self.asked, self.asked.runtime
        with Model(asked.model, **r.model) as loaded:
            pace = plan.measure_pace(loaded, asked.ctx, r)
            seconds = pace.predict(asked.ctx)
            self.say(
                f"\n{pace.n_tokens / max(pace.seconds, 1e-9):,.0f} tokens/s here: a prompt of {asked.ctx:,} tokens "
                f"takes {brief(seconds)} seconds, {duration(asked.time)} hold about {asked.time / seconds:,.0f} of them"
            )
            if (fits := plan.too_short(asked, self.info, pace)) is not None:
                self.run.discard()
                again = command("ropebend", "tune", Path(asked.model), "--ctx", asked.ctx, "--time", fits)
                raise UsageError(
                    f"--time: {duration(asked.time)} are too short for a search at {asked.ctx:,} tokens on this "
                    f"machine; this fits, and a shorter --ctx takes less:\n  {again}"
                )
            for line in self._plan():
                self.say(line)
            self.say("\n1. Do scales reach every layer of this model?")
            for check in examine(loaded, n_threads=r.n_threads, flash_attn=r.flash_attn, type_k=r.type_k):
                self.say(f"   {'ok  ' if check.ok else 'FAIL'} {check.finding}")
                if not check.ok:
                    raise RopebendError(
                        f"the hook does not work on this model here: {check.detail or check.finding}; see "
                        f"`{command('ropebend', 'doctor', Path(asked.model), '--details')}`"
                    )
        self.state.checked = True
        self.run.save()

    def _plan(self) -> list[str]:
        from ropebend.tune import plan

        asked, n = self.asked, self.info.n_ctx_train
        where = f"beyond the {n:,} it was trained at" if self.beyond else f"within the {n:,} it was trained at"
        lines = [
            f"the plan for {asked.ctx:,} tokens, {where}, {duration(asked.time)} in all:",
            f"  at most {duration(plan.TASK_SHARE * asked.time)} to find a task that it can do and loses on",
        ]
        begin = ", which begins from the best of linear, NTK and YaRN," if self.beyond else ""
        return [
            *lines,
            f"  the rest for the search{begin} and to judge on unseen items of {asked.ctx:,} and {self.short:,} tokens",
            f"  then {asked.out} is written, if it is worth it; Ctrl-C keeps what is measured, {go_on(self.run)[8:]}",
        ]

    # ---- the task

    def _find_task(self) -> None:
        from ropebend.tune.plan import TASK_SHARE, TASKS, task_spec

        self.say(f"\n2. What does it lose at {self.asked.ctx:,} tokens?")
        state, seed = self.state, f"tune-{self.asked.seed}"
        names = [name for name in TASKS if name not in state.findings]
        allowed = TASK_SHARE * self.asked.time + min(self.run.spent, 30.0)
        for i, name in enumerate(names):
            seconds = max(1.0, (allowed - self.run.spent) / (len(names) - i + 1) * 2)  # most are over soon
            task, short = (task_spec(name, n, seed) for n in (self.asked.ctx, self.short))
            finding, fits = self._try(task, short, seconds)
            self._found(name, finding)
            if fits == "yes":
                self._take(task)
                return
            if fits == "spare" and state.spare is None:
                state.spare = task
            self.run.save()
        if state.spare is not None:
            self._take(state.spare)
        elif self.asked.text is not None and "perplexity" not in state.findings:
            task = task_spec("perplexity", self.asked.ctx, seed, self.asked.text)
            finding, fits = self._try(task, task, max(1.0, allowed - self.run.spent))
            self._found("perplexity", finding)
            if fits == "yes":
                self._take(task)
        self.run.save()

    def _found(self, name: str, finding: str) -> None:
        self.state.findings[name] = finding
        self.say(f"   {name}: {finding}")

    def _take(self, task: TaskSpec) -> None:
        options = {**task.options, "length": self.short}
        self.state.task, self.state.short = task, task.model_copy(update={"options": options})
        self.say(f"   taken: {task.name}")
        self.run.save()

    def _try(self, task: TaskSpec, short: TaskSpec, seconds: float) -> tuple[str, str]:
        """What is found in words, and "yes", "no", or "spare" for a task that is worth it if no other is."""
        from ropebend.cli.eval import accuracy_table
        from ropebend.cli.measurement import TooHard
        from ropebend.evaluate import RetrievalEvaluation
        from ropebend.evaluate.diagnosis import recites
        from ropebend.tasks.task import RetrievalTask
        from ropebend.tune.plan import TEXT_ITEMS, enough_windows

        try:
            made, result = self._measure(task, seconds)
        except TooHard as e:
            return str(e), "no"
        except (UsageError, RopebendError) as e:
            return f"cannot be measured: {e}", "no"
        self.say(accuracy_table([(task.name, result)]))
        self.state.unit = self.measured
        if not isinstance(result, RetrievalEvaluation) or not isinstance(made, RetrievalTask):
            if not enough_windows(made.n_items):
                return f"{made.n_items} windows in the text are too few; a search takes {TEXT_ITEMS + 10}", "no"
            self.state.n_items = made.n_items
            return f"perplexity {result.in_words()}", "yes"
        if result.mean >= 1 - NEARLY:
            return "everything right: nothing to win here", "no"
        recited = recites(made, result)
        if result.mean > NEARLY and not recited:
            return f"{result.mean:.0%} right on {result.n_items} items", "yes"
        what = "the same answer whatever is asked" if recited else "nothing right"
        _, at_short = self._measure(short, seconds / 2)
        known = f"{what} at {self.asked.ctx:,} tokens, {at_short.mean:.0%} right at {self.short:,}"
        if at_short.mean < DOES_IT:
            return f"{known}: too hard", "no"
        return known, "yes" if self.beyond else "spare"

    def _measure(self, spec: TaskSpec, seconds: float) -> tuple[Task, Evaluation]:
        """A task and how the unscaled model does on it, from its result file where that holds enough."""
        from ropebend.cli.eval import Run
        from ropebend.evaluate.results import label
        from ropebend.tasks.task import RetrievalTask

        task = spec.make()
        samples = BASELINE_ITEMS if isinstance(task, RetrievalTask) else None
        began = time.monotonic()
        with closing(
            Run(
                self.console, Path(self.asked.model), self.info, "", self.asked.runtime, samples, None, False,
                least_easy=LEAST_EASY,
            )
        ) as run:  # fmt: skip
            result, _, stopped = run.one(task, None, self.run.path / f"baseline-{label(task)}.json", seconds)
        if stopped == "interrupted":
            raise KeyboardInterrupt
        self.measured = (time.monotonic() - began) / result.n_items
        return task, result

    def _nothing_to_tune(self) -> None:
        found = self.state.findings
        print(f"\nNothing to tune at {self.asked.ctx:,} tokens; nothing was written.")
        for name, finding in found.items():
            print(f"  {name}: {finding}")
        words = ["ropebend", "tune", Path(self.asked.model), "--ctx"]
        if any("everything right" in f for f in found.values()):
            print(f"longer: {command(*words, 2 * self.asked.ctx)}")
        elif self.asked.text is None:
            print(f"next:   {command(*words, self.asked.ctx, '--text')} FILE   # a text's perplexity instead")

    # ---- search, judgement, result

    def _search(self) -> Outcome:
        from ropebend.cli.search_view import search_with_progress
        from ropebend.durations import read_duration, short_duration
        from ropebend.search import folder as run_folder
        from ropebend.search.cost import DoesNotFit
        from ropebend.search.report import write_report
        from ropebend.tune.plan import END_SECONDS, END_SHARE, leaner, search_spec

        self.say("\n3. Search, and judgement on items it has not seen")
        path = self.run.path
        if self.run.searching:
            spec, changed = run_folder.resume(path)
            for line in changed:
                self.say(f"warning: {line}; figures may differ in the last bits")
        else:
            left = self.run.left - END_SHARE * self.asked.time - END_SECONDS
            self.run.save()
            spec = leaner(search_spec(self.asked, self.state, left, self.info.n_ctx_train), max(self.state.unit, 1e-3))
            spec = run_folder.start(path, spec)
        try:
            outcome = search_with_progress(path, spec)
        except DoesNotFit as e:
            total = self.run.spent + 1.1 * (read_duration(e.budget) or 0.0)
            again = command("ropebend", "tune", "--resume", path, "--time", short_duration(total))
            raise UsageError(
                f"--time: {duration(self.asked.time)} leave no time for a search: items take longer than "
                f"it seemed. What is measured is kept; this fits:\n  {again}"
            ) from None
        if outcome.interrupted:
            write_report(path, outcome, [], [go_on(self.run)])  # the search's own says how to go on with the search
            self.say(f"the search is interrupted; {duration(outcome.left)} are left")
            raise KeyboardInterrupt
        return outcome

    def _finish(self, outcome: Outcome) -> None:
        """Say what came of it, write report and model."""
        from rich.console import Console as Output

        from ropebend.cli import grid
        from ropebend.cli.eval import accuracy_table
        from ropebend.cli.search_view import named
        from ropebend.lengths import short_length
        from ropebend.search.report import Picture, describe, summary, title_of, write_report
        from ropebend.tune.result import by_length, winner
        from ropebend.tune.state import PICTURE

        found = winner(outcome, self.asked.ctx, self.short)
        print(f"\n{title_of(outcome)}\n{summary(outcome)}\n")
        for i, task in enumerate(outcome.tasks):
            print(describe(task) + (", short prompts" if i else ""))
            print(accuracy_table([(named(outcome, n), by_task[i]) for n, by_task in outcome.tests.items()]))
            print()
        labels = (short_length(self.short), short_length(self.asked.ctx))
        sides = by_length(outcome, found.name if found else outcome.spec.label, labels)
        pictures = []
        if sides:
            print("right answers, %, by length and depth", flush=True)
            Output().print(grid.heat_map(sides))
            pictures.append(Picture("By length and depth", PICTURE, grid.picture(title_of(outcome), sides)))
        serve = command("ropebend", "serve", Path(self.asked.out), "-c", self.asked.ctx)
        commands = [f"serve:  {serve}"] if found else []
        write_report(self.run.path, outcome, pictures, commands)
        if found is None:
            print("\nNothing clearly beats the unscaled model on unseen items, so no model was written.")
            print(f"report: {self.run.path / 'report.html'}")
            return
        print()
        for line in self._in_words(outcome, found):
            print(line)
        self._write(found)
        print(f"report: {self.run.path / 'report.html'}")
        print(commands[0])

    def _in_words(self, outcome: Outcome, found: Winner) -> list[str]:
        from ropebend.cli.search_view import named
        from ropebend.search.outcome import UNSCALED

        at_length, at_short = outcome.tests[UNSCALED]
        name = named(outcome, found.name)
        lines = [
            f"{name} against unscaled: {at_length.gain(found.gain)} at {self.asked.ctx:,} tokens.",
            f"On short prompts ({self.short:,} tokens): {at_short.gain(found.short)}.",
        ]
        others = [n for n in outcome.tests if n not in (UNSCALED, found.name)]
        if others:
            plain = max(others, key=lambda n: outcome.tests[n][0].mean)
            c = outcome.tests[found.name][0].against(outcome.tests[plain][0])
            noise = " (within noise)" if c.low <= 0 <= c.high else ""
            lines.insert(1, f"Against {named(outcome, plain)}, the next best: {at_length.gain(c)}{noise}.")
        if found.name != outcome.spec.label:
            lines.append("That is plainer than two numbers for each layer, which are not clearly better here.")
        if found.up_to is not None:
            lines.append(
                f"So sequences of up to {found.up_to:,} tokens stay unscaled, bit for bit (none@{found.up_to})."
            )
        return lines

    def _write(self, found: Winner) -> None:
        from ropebend.cli.progress import Bar
        from ropebend.convert.gguf_file import GgufFile
        from ropebend.convert.job import Job
        from ropebend.convert.report import done

        with GgufFile(Path(self.asked.model)) as source, Bar(self.console, time.monotonic) as bar:
            job = Job.prepare(source, found.scaling, Path(self.asked.out), in_place=False, force=self.force)
            n = 0

            def progress(n_bytes: int) -> None:
                nonlocal n
                n += n_bytes
                bar.show("writing", n / max(job.size, 1), None)

            written = job.run(progress)
        lines = done(job, written)
        print("\n".join(itertools.takewhile(lambda line: not line.startswith("Next:"), lines)))  # ours follow
