"""What waits at a rung as commands, display, samplers and MLflow are told of it."""

import io
import json
import math
from dataclasses import replace

from click.testing import CliRunner
from rich.console import Console
from test_director import Recorder, start
from test_pauses import Made, direct, made, to_first_rung

from search.cli import main
from search.encoding import Encoder
from search.evidence import ENDED, RUNNING, Evidence
from search.problem import Problem
from search.progress import Progress
from search.propose import PROPOSERS, proposer_for
from search.spool import Event

__all__ = ["made"]  # the fixture


def test_status_best_and_report_say_what_waits(made: Made) -> None:
    director, _ = direct(made)
    to_first_rung(director, 50.0, 40.0)
    start(director)
    made[2].close()
    runs = ("--runs", str(made[1].runs))
    tree = json.loads(
        CliRunner().invoke(main, ["status", "made", "--format", "json", *runs]).output
    )
    states = {"running": 1, "paused": 1, "finished": 0, "stopped": 0, "failed": 0}
    assert tree["states"] == states
    shown = CliRunner().invoke(main, ["best", "made", *runs]).output
    assert "2 trials: 1 running, 1 paused." in shown
    assert "00001" in shown
    CliRunner().invoke(main, ["report", "made", *runs])
    assert "1 are paused, 1 have not ended" in made[1].report.read_text()


def test_the_display_counts_what_waits(made: Made) -> None:
    director, _ = direct(made)
    to_first_rung(director, 50.0, 40.0)
    start(director)
    console = Console(file=io.StringIO(), width=160)
    display = Progress(console, made[0], [])
    for record in director.ledger.records:
        display.trial_changed(record)
    with console.capture() as shown:
        console.print(display._draw())
    assert "0/5 trials, 1 paused" in shown.get()


def test_what_waits_is_a_result_to_samplers(made: Made) -> None:
    director, _ = direct(made)
    to_first_rung(director, 50.0, 40.0)
    start(director)
    spec, records = made[0], director.ledger.records
    problem = Problem(spec.search_space, spec.objectives, (), (1, 2, 4), 0, 12)
    evidence = Evidence(problem, Encoder(spec.search_space))
    evidence.update(records)
    assert evidence.states.tolist() == [RUNNING, ENDED]
    assert evidence.shown[:, 0, 0].tolist() == [-50.0, -40.0]
    assert not math.isfinite(evidence.shown[1, 1, 0])
    stopped = [replace(r, state="stopped") if r.state == "paused" else r for r in records]
    for name in PROPOSERS:
        proposed = [proposer_for(name, problem).propose(known) for known in (records, stopped)]
        assert proposed[0] == proposed[1], name


def test_a_pause_is_told_again_when_an_interruption_has_closed_its_run(made: Made) -> None:
    director, recorder = direct(made)
    to_first_rung(director, 50.0)
    for interrupted in (False, True):
        if interrupted:
            recorder.search_ended("KILLED", {}, {}, 1.0)
        again = Recorder()
        for seq, (kind, body) in enumerate(recorder.events, start=1):
            again._note(Event(seq, kind, 1.0, dict(body)))
        again.catch_up(director.ledger.records, lambda _: {})
        assert [kind for kind, _ in again.events] == ["trial_pause"] * interrupted
