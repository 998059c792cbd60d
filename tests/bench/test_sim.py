"""`kvstore-bench sim`: the real simulator on small worlds, scenario files and wrong questions."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from kvstore.bench.sim.errors import SimulationError
from kvstore.bench.sim.runner import Runner, find_simulator, read_parameters
from kvstore.bench.sim.scenario import Catalogue
from kvstore.bench.sim.shrink import Failure, Shrinker
from tests.support.clients import start_command
from tests.support.processes import is_running

COMMAND = [sys.executable, "-m", "kvstore.bench.main", "sim"]
COLUMNS = {
    *("scenario", "seed", "ok", "violation", "operations", "verbs", "virtual_s", "wall_s", "digest")
}
PROGRAM = find_simulator()
CATALOGUE = Catalogue(read_parameters(PROGRAM))
SCENARIOS = CATALOGUE.names("scenarios")


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=150)


def job(name: str, seeds: str, **settings: int) -> str:
    chosen = {"seeds": seeds, **CATALOGUE.scenario(name).settings, **settings}
    return "".join(f"{key}={value}\n" for key, value in chosen.items())


def test_one_row_a_seed() -> None:
    finished = run("steady", "--seeds", "5-9", "--set", "operations=300", "--json")
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    assert set(document) == {"meta", "rows"}
    assert [row["seed"] for row in document["rows"]] == [5, 6, 7, 8, 9]
    for row in document["rows"]:
        assert row.keys() >= COLUMNS
        assert all(not isinstance(value, dict | list) for value in row.values())
        assert (row["ok"], row["violation"]) == (True, None)
        assert row["operations"] == 300 + 8  # at the end every key is read
        assert row["verbs"] > 300
        assert row["virtual_s"] > 0
    assert len({row["digest"] for row in document["rows"]}) == 5


def test_a_summary_adds_counts_up_and_takes_the_mean_of_figures() -> None:
    one = ("steady", "--set", "operations=200", "--seeds", "1-2", "--json")
    finished = run(*one)
    assert finished.returncode == 0, finished.stderr
    document = json.loads(finished.stdout)
    (summary,) = document["meta"]["summary"]
    first, second = document["rows"]
    assert summary["verbs"] == first["verbs"] + second["verbs"]
    prices = [first["verbs_per_op"], second["verbs_per_op"]]
    assert min(prices) <= summary["verbs_per_op"] <= max(prices)


def test_every_scenario_in_one_run_with_a_row_each() -> None:
    finished = run("all", "--seeds", "3", "--set", "operations=200", "--json", "--summary")
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)["rows"]
    assert [row["scenario"] for row in rows] == SCENARIOS
    assert all(row["ok"] and row["violations"] == 0 for row in rows)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_seed_is_one_history_wherever_memory_lies(name: str) -> None:
    digests = []
    for words, perturb in ((["setarch", "-R"], "85"), ([], "170")):
        finished = subprocess.run(
            [*words, PROGRAM],
            input=job(name, "1-4", operations=400),
            env={**os.environ, "MALLOC_PERTURB_": perturb, "MALLOC_ARENA_MAX": perturb[0]},
            capture_output=True,
            text=True,
            timeout=150,
        )
        assert finished.returncode == 0, finished.stderr
        rows = [json.loads(line) for line in finished.stdout.splitlines()]
        digests.append([(row["digest"], row["events"], row["virtual_s"]) for row in rows])
    assert len(digests[0]) == 4
    assert digests[0] == digests[1]


@pytest.mark.parametrize("name", CATALOGUE.names("profiles"))
def test_a_profile_says_where_each_figure_is_from(name: str) -> None:
    path = resources.files("kvstore.bench.sim") / "profiles" / f"{name}.toml"
    document = tomllib.loads(path.read_text("utf-8"))
    assert document["network"].keys() == document["evidence"].keys()
    assert CATALOGUE.scenario("steady", profile=name).profile == name


def test_what_comes_later_wins(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(
        'description = "d"\nparts = ["crashes", "tearing"]\nprofile = "connectx6"\n'
        "[network]\npieces = 3\n"
    )
    settings = CATALOGUE.scenario(str(own), assignments=["clients=7"]).settings
    assert settings["reads_per_s"] == 111_200_000  # of the profile
    assert settings["crashes_per_million"] > 0  # of a part
    assert settings["step_ns"] == 2000  # of a part, over the profile
    assert settings["pieces"] == 3  # of the scenario, over a part
    assert settings["clients"] == 7
    other = CATALOGUE.scenario(str(own), profile="connectx4").settings
    assert other["reads_per_s"] == 35_000_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[faults]\ncrash_per_million = 1\n", "did you mean crashes_per_million?"),
        ("[workload]\ncrashes_per_million = 1\n", "belongs to [faults]"),
        ("[workload]\nclients = 0\n", "clients is 0; it may be 1 to"),
        ('[workload]\nclients = "4"\n', "clients is not a whole number"),
        ("[chaos]\nclients = 4\n", "there is no table [chaos]"),
        ('parts = ["crashs"]\n', "there is no part crashs; the parts are:"),
        ('profile = "connectx9"\n', "there is no profile connectx9"),
        ("parts = 3\n", "`parts` is not a list"),
        ("[workload\n", "Expected ']'"),
    ],
)
def test_a_wrong_file_gets_one_clear_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(SimulationError) as raised:
        CATALOGUE.scenario(str(path))
    assert message in raised.value.message
    assert "\n" not in raised.value.message


def test_a_network_alone_is_looked_at_without_faults() -> None:
    finished = run("--profile", "rxe", "--seeds", "1-2")
    assert finished.returncode == 0
    assert finished.stdout.startswith("steady: 2 of 2 seeds good")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["stedy"], "there is no scenario stedy; the scenarios are:"),
        ([], "name a scenario"),
        (["steady", "--set", "clients=many"], "`many` is not a whole number"),
        (["steady", "--set", "clients"], "expected name=value"),
        (["steady", "--set", "value_bytes_min=700"], "value_bytes_min is above value_bytes_max"),
        (["steady", "--seeds", "9-3"], "9 to 3 is no range"),
        (["steady", "--variant", "nope"], "there is no `nope`"),
        (["steady", "--key", "3"], "goes with --replay"),
        (["absent.toml"], "No such file"),
    ],
)
def test_a_wrong_question_gets_one_clear_line(words: list[str], message: str) -> None:
    finished = run(*words)
    assert finished.returncode == 2
    assert message in finished.stderr
    assert "Traceback" not in finished.stderr


def test_the_simulator_refuses_what_it_does_not_know() -> None:
    for text in ("nope=1\n", "clients=-1\n", "clients=4x\n", "clients\n", "seeds=9-1\n"):
        finished = subprocess.run([PROGRAM], input=text, capture_output=True, text=True, timeout=60)
        assert finished.returncode == 2
        assert finished.stderr.count("\n") == 1


def test_a_seed_that_does_not_end_is_a_violation_of_its_own() -> None:
    # More than can be done in the time allowed, in two seeds out of three that are run at once.
    settings = {"operations": 1_000_000_000, "limit_s": 86_400}
    with Runner(PROGRAM, jobs=2, seed_timeout_s=0.5) as runner:
        rows = list(runner.rows("steady", settings, range(1, 4)))
    assert sorted(row["seed"] for row in rows) == [1, 2, 3]
    for row in rows:
        assert not row["ok"]
        assert row["violation"].startswith("hung:")


def test_a_seed_that_aborts_is_a_violation_and_the_next_ones_go_on(tmp_path: Path) -> None:
    # The real simulator, which is killed by a signal when it is asked to begin at seed 3.
    wrapper = tmp_path / "simulate"
    wrapper.write_text(
        f"#!{sys.executable}\n"
        "import os, re, signal, subprocess, sys\n"
        "job = sys.stdin.read()\n"
        "first, last = map(int, re.search(r'seeds=(\\d+)-(\\d+)', job).groups())\n"
        "until = 2 if first <= 2 < last else last\n"
        "if first != 3:\n"
        "    job = job.replace(f'seeds={first}-{last}', f'seeds={first}-{until}')\n"
        f"    subprocess.run([{str(PROGRAM)!r}], input=job, text=True, check=True)\n"
        "if first == 3 or until < last:\n"
        "    sys.stderr.write('invariant broken: here (file:1)\\n')\n"
        "    sys.stderr.flush()\n"
        "    os.kill(os.getpid(), signal.SIGABRT)\n"
    )
    wrapper.chmod(0o755)
    with Runner(wrapper, jobs=1, seed_timeout_s=60) as runner:
        rows = list(runner.rows("steady", {"operations": 50}, range(1, 25)))
    assert [row["seed"] for row in rows] == list(range(1, 25))
    bad = [row for row in rows if not row["ok"]]
    assert [row["seed"] for row in bad] == [3]
    assert bad[0]["violation"] == "aborted: invariant broken: here (file:1)"


def test_a_seed_is_replayed_with_its_verbs_in_virtual_time() -> None:
    small = ["--set", "operations=60", "--set", "pauses_per_million=100000"]
    finished = run("steady", *small, "--replay", "4", "--key", "2")
    assert finished.returncode == 0, finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[-1] == "no violation"
    times = [int(line.split()[0]) for line in lines[:-1]]
    assert times == sorted(times)
    text = finished.stdout
    for expected in ("begins: client", "ends: client", "READ on node 0", "stands still"):
        assert expected in text
    assert set(re.findall(r"\bkey (\d+)", text)) == {"2"}
    everything = run("steady", *small, "--replay", "4", "--key", "all").stdout
    assert len(everything) > 2 * len(text)


class Threshold(Runner):
    """Worlds that fail while they are larger than they need to be, whatever their seed."""

    def rows(self, scenario: str, settings: Any, seeds: range) -> Any:
        fails = settings["operations"] >= 37 and settings.get("clients", 4) >= 2
        violation = "not linearizable: why" if fails else None
        for seed in seeds:
            yield {"seed": seed, "ok": not fails, "violation": violation}


def test_a_broken_store_is_caught_shrunk_and_replayed() -> None:
    broken = ("--variant", "leave_tentative_copies")
    finished = run("steady", *broken, "--seeds", "1-20", "--shrink-seconds", "10")
    assert finished.returncode == 1, finished.stderr
    assert "VIOLATION seed" in finished.stdout
    smallest = re.search(r"smallest found: (\d+) operations", finished.stdout)
    assert smallest is not None
    assert int(smallest[1]) < 2000
    command = re.search(r"^  kvstore-bench sim (.*)$", finished.stdout, re.MULTILINE)
    assert command is not None
    replayed = run(*command[1].split())
    assert replayed.stdout.splitlines()[-1].startswith("VIOLATION ")
    assert "--variant leave_tentative_copies" in command[1]
    assert run("steady", "--seeds", "1-20").returncode == 0


def test_a_failing_world_is_made_as_small_as_it_can_be() -> None:
    start = {"operations": 3000, "clients": 8, "keys": 64, "crashes_per_million": 4000}
    said: list[str] = []
    with Threshold(PROGRAM, jobs=1, seed_timeout_s=60) as runner:
        shrinker = Shrinker(runner, "steady", CATALOGUE.parameters, seconds=60, say=said.append)
        smallest = shrinker.shrink(Failure(start, 5, "not linearizable: first"))
    assert smallest.settings["operations"] == 37
    assert smallest.settings["clients"] == 2
    assert smallest.settings["keys"] == 1
    assert smallest.settings["crashes_per_million"] == 0
    assert said


def test_control_c_ends_every_process() -> None:
    words = ["steady", "--set", "operations=1000000000", "--jobs", "2", "--seeds", "1-4"]
    with start_command([*COMMAND, *words]) as command:
        children: list[int] = []
        while len(children) < 2:
            assert command.process.poll() is None
            listing = Path(f"/proc/{command.pid}/task").glob("*/children")
            children = [int(word) for path in listing for word in path.read_text().split()]
        command.interrupt()
        command.process.wait(60)
        assert not any(is_running(child) for child in children)


def test_verbs_are_those_of_the_real_fabrics() -> None:
    # One client, addresses known: what `kvstore-bench kv` counts over tcp.
    for operation in ("get", "put"):
        words = ("--operation", operation, "--keys", "100", "--seconds", "0.3", "--fabric", "tcp")
        real = subprocess.run(
            [*COMMAND[:-1], "kv", *words, "--json"], capture_output=True, text=True, timeout=150
        )
        assert real.returncode == 0, real.stderr
        mix = {"get_percent": 100, "put_percent": 0}
        if operation == "put":
            mix = {"get_percent": 0, "put_percent": 100}
        settings = {"clients": 1, "lanes": 1, "keys": 100, "operations": 4000, **mix}
        chosen = CATALOGUE.scenario("scale", assignments=[f"{k}={v}" for k, v in settings.items()])
        with Runner(PROGRAM, jobs=1, seed_timeout_s=60) as runner:
            (row,) = runner.rows("scale", chosen.settings, range(1, 2))
        expected = json.loads(real.stdout)["rows"][0]["verbs_per_op"]
        # Some keys share a place in the small address cache of a simulated client.
        assert row["verbs_per_op"] == pytest.approx(expected, rel=0.12)


def test_a_cluster_that_grows_meets_the_limit_of_its_nic() -> None:
    words = ("--memory-nodes", "1,2", "--compute-nodes", "1,32", "--lanes", "2", "--json")
    slow_nic = ("--set", "reads_per_s=20000000")
    finished = subprocess.run(
        [*COMMAND[:-1], "scale", *words, *slow_nic], capture_output=True, text=True, timeout=170
    )
    assert finished.returncode == 0, finished.stderr
    rows = json.loads(finished.stdout)["rows"]
    gets = {
        (row["memory_nodes"], row["compute_nodes"]): row
        for row in rows
        if row["operation"] == "get"
    }
    assert len(rows) == 8
    assert gets[1, 1]["full"] is None
    assert gets[1, 32]["full"] == "NIC"
    assert gets[1, 32]["ops_per_s"] * gets[1, 32]["verbs_per_op"] == pytest.approx(20e6, rel=0.05)
    assert gets[2, 32]["ops_per_s"] > 1.2 * gets[1, 32]["ops_per_s"]
