"""``reluctant methods``."""

import json

from reluctant.methods import METHODS


def test_every_method_is_listed_with_its_paper_track_and_granularities(cli):
    rows = {row["name"]: row for row in json.loads(cli("methods", "--json").out)}
    assert list(rows) == METHODS.names()
    assert rows["snl"] == {
        "name": "snl",
        "paper": "Cho et al. ICML 2022, arXiv:2202.02340",
        "surrogate": "identity",
        "track": "free",
        "granularities": ["pixel", "channel", "spatial"],
    }
    assert (rows["autorep"]["track"], rows["autorep"]["surrogate"]) == ("polynomial", "quadratic")
    assert rows["random"]["granularities"] == ["pixel"]
    assert rows["random"]["paper"] == "none"
    assert all("\n" not in row["paper"] and len(row["paper"]) < 120 for row in rows.values())


def test_as_text_it_is_a_line_a_method_under_a_head(cli):
    ended = cli("methods")
    head, *lines = ended.out.splitlines()
    assert ended.code == 0
    assert head.split() == ["name", "track", "surrogate", "granularities", "paper"]
    assert [line.split()[0] for line in lines] == METHODS.names()
    assert all(line[head.index("paper") :].strip() and line[head.index("paper") - 1] == " " for line in lines)
