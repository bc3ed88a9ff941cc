"""The judge of `./run clients` finds each fault; without one it finds none."""

from __future__ import annotations

import pytest

from tests.clients.__main__ import faults_of, parser, table
from tests.clients.judge import Verdict, judge, says_so
from tests.clients.libraries import CLIENTS
from tests.clients.points import Row, make_points, row_of
from tests.clients.trial import Result

POINTS = make_points(40, seed=3)
ROWS = [row_of(point, "m") for point in POINTS]
ALL = range(len(POINTS))
NEXT = ROWS[5]._replace(ts_us=ROWS[5].ts_us + 1)
BIT = ROWS[5]._replace(value=ROWS[5].value * (1 + 2**-52))


@pytest.mark.parametrize(
    ("rows", "faults"),
    [
        (ROWS, []),
        (ROWS[:-1], ["1 lost"]),
        ([*ROWS, ROWS[0]], ["1 doubled"]),
        ([*ROWS[:5], NEXT, *ROWS[6:]], ["1 lost", "1 altered"]),
        ([*ROWS[:5], BIT, *ROWS[6:]], ["1 lost", "1 altered"]),
        ([*ROWS, Row(1, "device-1", "m", 1.0)], ["1 altered"]),
        ([], ["40 lost"]),
    ],
    ids=["good", "lost", "doubled", "a microsecond", "a bit", "a foreign row", "nothing"],
)
def test_each_fault_is_found(rows: list[Row], faults: list[str]) -> None:
    """A row that is missing, there twice, or has another time or value, is a fault."""
    assert judge(POINTS, ALL, rows, "m").faults == faults


def test_point_that_nobody_was_told_of_is_a_fault_but_not_lost() -> None:
    """The programs send a point again until they are told; so one is left if they give up."""
    assert judge(POINTS, ALL[:-1], ROWS, "m").faults == ["1 points are not told as kept"]
    assert judge(POINTS, ALL[:-1], ROWS[:-1], "m").lost == 0


def test_points_have_the_same_values_each_time_and_every_kind() -> None:
    """The client's program and the judge make them by themselves."""
    assert make_points(40, seed=3) == POINTS
    assert make_points(40, seed=4) != POINTS
    assert {type(point.value) for point in POINTS} == {float, int, bool}
    assert ROWS[3].metric == "m.count,place=küche"
    assert ROWS[1].metric == "m,place=room 2\\,north"


def test_wrong_token_must_be_refused_and_shown() -> None:
    """A client that stays silent, or whose point is stored, is red."""
    good = judge(POINTS, ALL, ROWS, "m")
    result = Result(CLIENTS[0], "1.0", good, "Error: the token is wrong, or is not", 2)
    assert says_so(result.said) == "the token is wrong, or is not"
    assert faults_of(result) == []
    assert faults_of(result._replace(said="Error: 500")) != []
    stored = good._replace(from_wrong_token=1)
    assert faults_of(result._replace(verdict=stored)) == ["1 from_wrong_token"]


def test_command_line_and_table() -> None:
    """Each client can be chosen; the table has a line for each result."""
    given = parser().parse_args(["--libraries", "x", "--only", "questdb", "--points", "5"])
    assert (given.only, given.points) == (["questdb"], 5)
    head, line = table([Result(CLIENTS[0], "5.3.2", Verdict(10, 9, 8, 1), "", 0)]).splitlines()
    assert head.startswith("client    version  token as  points  told kept  in table  lost")
    assert " ".join(line.split()) == "influxdb 5.3.2 Basic 10 9 8 1 0 0 0"
