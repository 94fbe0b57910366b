"""Previews of any method, as text, as numbers and as figures."""

import json

import numpy as np
import pytest

from fedjax_het.common.jsonio import jsonable
from fedjax_het.contract.preview import Column, Preview
from fedjax_het.report.preview import data, figure, text
from fedjax_het.report.style import png

ROUNDS, CLIENTS = 30, 5
LAYERS = ("1 (input side)", "2", "3", "4 (output side)")


def preview(**parts):
    shared = np.arange(ROUNDS)[:, None] + np.asarray([10, 30, 20])
    kept = Preview(
        method="staged",
        summary={"rounds": ROUNDS, "total_s": 12.5, "bound": 1.25e-7},
        by_round={
            "deadline_s": Column("deadline (s)", np.linspace(2.0, 1.0, ROUNDS)),
            "batch": Column("batch (samples)", shared),
            "missed": Column("chance to miss layer", np.full((ROUNDS, 4), 1e-99), LAYERS),
        },
        by_client={
            "power": Column("power (1 / s)", np.asarray([3.0, 1.0, 2.0, 5.0, 4.0])),
            "batch": Column("batch (samples)", np.arange(10).reshape(5, 2), ("first", "last")),
            "links": Column("link (B/s)", np.ones((5, 3))),
            "spent_s": Column("communication (s)", np.arange(5) / 3),
        },
    )
    return kept._replace(**parts)


def test_text_says_everything():
    lines = text(preview()).splitlines()
    assert lines[0] == "staged: rounds = 30, total_s = 12.5, bound = 1.25e-07"
    start = lines.index("", 2)
    rounds, clients = lines[2:start], lines[start + 1 :]
    for label in ("round", "deadline (s)", "least median largest", "1 (input side) ... 4 (output"):
        assert label in rounds[0]
    # Some rounds, the first and the last among them; all clients.
    assert [line.split()[0] for line in rounds[1:]][::11] == ["1", "30"]
    assert len(rounds) == 13
    assert rounds[-1].split() == ["30", "1", "39", "49", "59", *["1e-99"] * 4]
    assert "batch (samples): first last" in clients[0]
    assert clients[3].split() == ["2", "2", "4", "5", "1", "1", "1", "0.66667"]
    assert len(clients) == 1 + CLIENTS
    assert len({len(line) for line in clients}) == 1


def test_numbers_are_whole_where_the_text_is_not():
    whole = json.loads(json.dumps(jsonable(data(preview()))))
    assert whole["method"] == "staged"
    assert whole["summary"]["bound"] == 1.25e-7
    assert np.shape(whole["by_round"]["missed"]["values"]) == (ROUNDS, 4)
    assert whole["by_round"]["missed"]["entries"] == list(LAYERS)
    assert whole["by_client"]["batch"]["values"] == np.arange(10).reshape(5, 2).tolist()


def test_every_column_has_a_panel():
    drawn = figure(preview())
    above, below = ([axes.get_xlabel() for axes in strip.axes] for strip in drawn.subfigs)
    assert above.count("round") == 3
    assert below == ["power (1 / s)"] * 3
    labels = {axes.get_ylabel() for axes in drawn.axes}
    assert labels >= {"deadline (s)", "batch (samples)", "link (B/s)", "communication (s)"}
    assert "chance to miss layer" in labels
    names = [t.get_text() for a in drawn.axes if a.get_legend() for t in a.get_legend().get_texts()]
    assert names == ["all", "median", "first", "last", "least", "largest"]
    assert png(drawn) == png(figure(preview()))


@pytest.mark.parametrize("empty", ["by_round", "by_client"])
def test_either_part_may_be_missing(empty):
    shown = preview(**{empty: {}})
    assert len(text(shown).split("\n\n")) == 2
    assert len(figure(shown).subfigs) == 1


def test_one_column_of_clients_is_drawn_against_their_numbers():
    drawn = figure(preview(by_round={}, by_client={"power": Column("power", np.ones(CLIENTS))}))
    (axes,) = drawn.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("client", "power")
