"""`pccl plan`: tables, data and pictures of plans, and one clear sentence for a wrong file."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from pccl.cli import app

NETWORKS = Path(__file__).resolve().parents[1] / "data" / "networks"
A, A_LATENCY = NETWORKS / "a_bandwidth.csv", NETWORKS / "a_latency.csv"


def plan(*arguments: object) -> Result:
    runner = CliRunner(env={"COLUMNS": "200"})
    return runner.invoke(app, ["plan", *(str(argument) for argument in arguments)])


def refused(*arguments: object) -> str:
    done = plan(*arguments)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, "one sentence"
    return done.stderr


def write(folder: Path, text: str, name: str = "rates.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_all_planners_are_compared_with_the_bound() -> None:
    done = plan(A, "--latency", A_LATENCY, "--bytes", "1G")
    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    rows = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    assert [row[0].strip() for row in rows][:2] == ["packed_trees", "direct"]
    assert " to " in rows[0][8]  # a link, since there are no caps
    assert float(rows[0][1]) < 4
    assert "bounds: 3420 Mbit/s by the narrowest cut, 2622 by what all send together" in done.stdout


def test_a_narrow_terminal_gets_every_figure() -> None:
    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["plan", str(A), "--bytes", "1G"])
    assert "double_binary_tree" in done.stdout
    assert "…" not in done.stdout


def test_data_holds_plans_that_can_be_proven() -> None:
    done = plan(A, "--bytes", "64M", "--json", "--graph", "ring", "--graph", "hypercube")
    comparisons = json.loads(done.stdout)
    assert [one["graph"] for one in comparisons] == ["all links", "ring", "hypercube"]
    for one in comparisons:
        assert one["plans"] == sorted(one["plans"], key=lambda each: each["seconds"])
        assert (one["best_rate_of_trees"] is None) == (one["graph"] == "all links")
        for each in one["plans"]:
            assert sum(chunk["count"] for chunk in each["chunks"]) == 1 << 24
            assert each["fraction_of_bound"] <= 1
    seconds = [min(each["seconds"] for each in one["plans"]) for one in comparisons]
    assert seconds[0] < min(seconds[1:])


def test_a_graph_of_ones_own_and_members_behind_a_firewall(tmp_path: Path) -> None:
    edges = write(tmp_path, "0,1\n1,2\n# by name\nSeoul,Tokyo\n3,4\n4,5\n4,6\n6,Ireland\n", "e.csv")
    done = plan(A, "--graph", edges, "--outward", "London", "--outward", "Frankfurt", "--json")
    everything, tree = json.loads(done.stdout)
    pairs = {
        tuple(pair)
        for each in everything["plans"]
        for chunk in each["chunks"]
        for pair in (*chunk["up"], *chunk["down"])
    }
    assert (5, 6) not in pairs
    assert (6, 5) not in pairs
    # On a tree there is one way only.
    for plan_on_tree in tree["plans"]:
        for chunk in plan_on_tree["chunks"]:
            for pair in (*chunk["up"], *chunk["down"]):
                assert sorted(pair) in [[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [4, 6], [6, 7]]


def test_a_network_of_two_sites_names_them(tmp_path: Path) -> None:
    matrix = write(tmp_path, ",a,b,c,d\na,,900,9,9\nb,900,,9,9\nc,9,9,,900\nd,9,9,900,\n")
    assert "sites: a, b; c, d" in plan(matrix).stdout


@pytest.mark.parametrize("suffix", [".svg", ".png"])
def test_the_quickest_plan_is_drawn(tmp_path: Path, suffix: str) -> None:
    picture = tmp_path / f"plan{suffix}"
    assert plan(A, "--latency", A_LATENCY, "--plot", picture).exit_code == 0
    content = picture.read_bytes()
    assert len(content) > 20_000
    assert content.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,1\n1,nan\n0,0\n", "line 1: 2 figures, not 3"),
        ("0,1,2\n1,0,nan\n1,1,0\n", "from 1 to 2: nan is not a finite number"),
        ("0,1,2\n1,0,inf\n1,1,0\n", "from 1 to 2: inf is not a finite number"),
        (",x,y\nx,0,-3\ny,1,0\n", "from x to y: -3 is negative"),
        (",x,y\nx,0,\ny,1,0\n", "from x to y: '' is no number; write 0 for no link"),
        (",x,y\nx,0,fast\ny,1,0\n", "from x to y: 'fast' is no number"),
        (",x,y,z\nx,0,1,1\ny,1,0,1\n", "3 names, but 2 lines of figures"),
        (",x,x\nx,0,1\nx,1,0\n", "a name stands twice"),
        ("", "no figures"),
        (",x,y\nx,0,0\ny,1,0\n", "there is no way from x (rank 0) to y (rank 1)"),
    ],
)
def test_a_wrong_matrix_is_refused_in_one_sentence(tmp_path: Path, text: str, message: str) -> None:
    assert message in refused(write(tmp_path, text))


def test_wrong_companions_are_refused_in_one_sentence(tmp_path: Path) -> None:
    matrix = write(tmp_path, ",x,y,z\nx,0,1,1\ny,1,0,1\nz,1,1,0\n")
    small = write(tmp_path, "0,1\n1,0\n", "small.csv")
    assert "2 members, but the matrix of rates has 3" in refused(matrix, "--latency", small)
    caps = write(tmp_path, "x,1,1\ny,1,1\n", "caps.csv")
    assert "no caps for z" in refused(matrix, "--caps", caps)
    caps.write_text("x,1,1\ny,0,1\nz,1,1\n")
    assert "caps.csv, y: a cap of 0; leave the cell empty for none" in refused(
        matrix, "--caps", caps
    )
    caps.write_text("member,out,in\nx,1,\ny,,1\nz,2,2\n")
    assert plan(matrix, "--caps", caps).exit_code == 0
    edges = write(tmp_path, "x,y\n", "edges.csv")
    assert (
        "edges.csv: the links are not connected, there is no way from x (rank 0) to z"
        in refused(matrix, "--graph", edges)
    )
    edges.write_text("x,w\n")
    assert "edges.csv, line 1: there is no member 'w'" in refused(matrix, "--graph", edges)
    assert "neither a file nor one of ring" in refused(matrix, "--graph", "rnig")
    assert "not a power of two" in refused(matrix, "--graph", "hypercube")
    assert "no member 'w'" in refused(matrix, "--outward", "w")
    assert "No such file" in refused(tmp_path / "none.csv")
    assert "not a size: 'much'" in refused(matrix, "--bytes", "much")
    assert plan(matrix, "--unit", "furlongs").exit_code == 2
