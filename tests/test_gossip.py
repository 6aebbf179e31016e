"""The walk service: graphs and visits against exact chains, the rules one by one, faults, and what a trace tells."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sgdscope.ensembles.gossip import GossipWalk
from sgdscope.errors import ArgumentError
from sgdscope.experiment.gossip import walk_service
from sgdscope.gossip import Faults, Graph, Life, Patience, Summary, Trace, from_edges, goes_on, newer, random_out, ring, simulate
from sgdscope.gossip.simulation import PULL, _Service
from sgdscope.measure import measure
from sgdscope.recorder import every
from sgdscope.report import report
from sgdscope.runs import open_trajectory
from sgdscope.surface import LossSurface
from sgdscope.walkers.private import PrivateSGD


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


# --- graphs -------------------------------------------------------------------------------------------------------------------


def test_the_gap_of_a_ring_is_the_closed_form():
    n, graph = 11, ring(11, 4)
    j = np.arange(1, n)
    values = (np.cos(2 * np.pi * j / n) + np.cos(4 * np.pi * j / n)) / 2
    assert graph.spectral_gap() == pytest.approx(1 - np.abs(values).max(), rel=1e-10)
    assert graph.degrees.tolist() == [4] * n
    assert graph.stationary().tolist() == pytest.approx([1 / n] * n)


def test_random_graphs_are_undirected_and_each_node_draws_its_own():
    graph = random_out(60, 5, generator(1))
    dense = graph.adjacency().toarray()
    assert np.array_equal(dense, dense.T)
    assert set(np.unique(dense)) == {0, 1}
    assert not dense.diagonal().any()
    assert graph.degrees.min() >= 5
    assert graph.degrees.mean() == pytest.approx(2 * 5 - 25 / 59, rel=0.05)  # a pair drawn from both sides counts once
    assert np.allclose(graph.transition().T @ graph.stationary(), graph.stationary(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: from_edges(5, [(0, 1), (1, 2), (3, 4)]), "graph: expected a connected one, got 2 parts .*node 0 to node 3"),
        (lambda: from_edges(3, [(0, 1), (1, 1)]), r"edges: expected pairs of different nodes 0..2, got \(1, 1\)"),
        (lambda: Graph((np.array([1]), np.array([], int))), "neighbours: expected an undirected graph"),
        (lambda: ring(5, 3), "degree: expected an even number below the 5 nodes"),
        (lambda: random_out(5, 5, generator()), "degree: expected a number below the 5 nodes"),
        (lambda: Faults(survive=0.0), "survive: expected a probability"),
        (lambda: Faults(online=1.2), "online: expected a probability"),
        (lambda: Faults(delay=(0.0, 1.0)), "delay: expected two times"),
        (lambda: Faults(session=0.0), "session: expected a mean time online"),
        (lambda: simulate(ring(4), generator(), cycles=3, faults=Faults(dead=(0, 1, 2, 3))), "dead: all 4 nodes are"),
        (lambda: simulate(ring(4), generator(), cycles=3, faults=Faults(dead=(0,))), "start: expected a living node"),
        (lambda: simulate(ring(4), generator(), cycles=0), "cycles: expected a number > 0"),
        (lambda: simulate(ring(4), generator(), cycles=3, limit=0), "limit: expected a number of cycles > 0"),
    ],
)
def test_wrong_use_is_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


# --- rules --------------------------------------------------------------------------------------------------------------------


def test_newer_prefers_the_higher_step_unless_it_is_too_old():
    low, high = Summary(5, 20.0, 2, 1), Summary(9, 12.0, 1, 4)
    assert newer(low, high, 21.0, 10.0) == high._replace(hops=5)  # both fresh
    assert newer(high, low, 23.0, 10.0) == low._replace(hops=2)  # the higher one is 11 old
    assert newer(low, high, 23.0, 10.0) is low
    assert newer(low, high, 40.0, 10.0) == high._replace(hops=5)  # both old
    assert newer(low, low._replace(seen=20.5), 21.0, 10.0).seen > 20.1
    assert newer(low, low._replace(seen=19.5), 21.0, 10.0) is low


def test_a_walk_goes_on_where_it_is_news():
    known = Summary(7, 30.0, 0, 0)
    assert goes_on(8, known, 31.0, 10.0)
    assert not goes_on(7, known, 31.0, 10.0)
    assert goes_on(7, known, 40.0, 10.0)
    assert not goes_on(7, known, 39.9, 10.0)
    assert goes_on(3, known, 31.0, 10.0, restarted=True)


def test_patience_grows_with_each_trigger_and_returns_with_fresh_news():
    node, known = Patience.of(10.0), Summary(7, 0.0, 0, 0)
    assert not node.restarts(known, 7, 9.9)
    assert not node.restarts(known, 6, 10.0)  # triggered, but its model is one step behind
    assert (node.wait, node.depth) == (20.0, 2)
    assert not node.restarts(known, 6, 19.9)
    assert node.restarts(known, 6, 20.0)
    assert not node.restarts(known, None, 30.0)
    node.restarts(Summary(8, 35.0, 0, 0), 6, 36.0)
    assert (node.wait, node.depth) == (10.0, 1)
    assert Patience.of(10.0).restarts(known, 7, 10.0)


# --- the walk without faults --------------------------------------------------------------------------------------------------


def test_without_faults_one_walk_visits_the_nodes_of_a_regular_graph_equally_often():
    n, graph = 20, ring(20, 6)
    trace = simulate(graph, generator(3), cycles=6000)
    assert len(trace.lives) == 1
    assert trace.mean_live() == pytest.approx(1, rel=1e-12)
    assert np.array_equal(trace.lineage(), np.arange(len(trace)))
    assert np.array_equal(trace.step, np.arange(1, len(trace) + 1))
    assert (np.diff(trace.time) >= 0.1).all()
    assert (np.diff(trace.time) <= 1.0).all()
    assert len(trace) == pytest.approx(6000 / 0.55, rel=0.03)
    moves = np.stack([trace.node[:-1], trace.node[1:]])
    counts = np.zeros((n, n))
    np.add.at(counts, (moves[0], moves[1]), 1)
    allowed = graph.adjacency().toarray() > 0
    assert counts[~allowed].sum() == 0
    told = sum(stats.chisquare(row[mask]).statistic for row, mask in zip(counts, allowed, strict=True))
    assert stats.chi2.sf(told, 5 * n) > 1e-3  # uniform over the six neighbours of each node


def test_visits_of_a_regular_graph_are_equally_frequent_with_the_variance_of_the_chain():
    # Var of the share of a node after t visits -> sum over lambda != 1 of (1 + lambda) / (1 - lambda) / (n^2 t); over 16 traces
    # the mean square is within 3.5 of its standard errors (0.19 of the variance), and the largest of 320 shares within 4.5
    n, graph = 20, ring(20, 6)
    values = np.linalg.eigvalsh(graph.transition())[:-1]
    ratios, largest = [], 0.0
    for s in range(16):
        trace = simulate(graph, generator(s), cycles=500)
        shares = np.bincount(trace.node, minlength=n) / len(trace) - 1 / n
        variance = float(((1 + values) / (1 - values)).sum()) / n**2 / len(trace)
        ratios.append((shares**2).mean() / variance)
        largest = max(largest, np.abs(shares).max() / math.sqrt(variance))
    assert np.mean(ratios) == pytest.approx(1, abs=0.65)
    assert largest < 4.5


def test_the_place_of_the_walk_spreads_as_the_powers_of_the_transition_matrix():
    n, walks, hops = 9, 1500, 4
    graph = ring(n, 2)
    ends = [int(simulate(graph, generator(s), cycles=100, updates=hops + 1).node[hops]) for s in range(walks)]
    exact = np.linalg.matrix_power(graph.transition(), hops)[0]
    counts = np.bincount(ends, minlength=n)
    assert counts[exact == 0].sum() == 0  # after 4 hops on a ring of 9 four nodes cannot be reached
    assert (exact == 0).sum() == 4
    assert stats.chisquare(counts[exact > 0], walks * exact[exact > 0]).pvalue > 1e-3
    gap = graph.spectral_gap()
    assert np.abs(exact - 1 / n).max() <= (1 - gap) ** hops


def test_uses_of_a_record_are_binomial_on_a_graph_that_mixes_at_once():
    # all others are neighbours: after t visits the uses of a record are nearly Binomial(t, 1/n); each trace gives n of them
    n, t, most = 40, 200, 8
    graph = from_edges(n, [(i, j) for i in range(n) for j in range(i)])
    counts = np.concatenate(
        [np.bincount(simulate(graph, generator(s), cycles=1e4, updates=t).node, minlength=n) for s in range(20)]
    )
    assert counts.mean() == pytest.approx(t / n)
    tail = float((counts > most).mean())
    exact = stats.binom.sf(most, t, 1 / n)  # 0.067: not coming back at once moves it by a few percent of itself
    assert tail == pytest.approx(exact, abs=4 * math.sqrt(exact / len(counts)))
    assert tail > 0.5 * exact


def test_the_same_generator_gives_the_same_trace():
    graph, faults = random_out(30, 4, generator(1)), Faults(survive=0.95, online=0.8, session=20.0)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b = (simulate(graph, generator(4), cycles=150, faults=faults) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("time", "node", "step", "walk", "parent"))
    assert a.lives == b.lives
    assert not np.array_equal(a.node[:50], simulate(graph, generator(5), cycles=150, faults=faults).node[:50])


# --- faults -------------------------------------------------------------------------------------------------------------------


def test_walks_live_as_long_as_their_messages_survive():
    # hops of a walk are geometric with mean 1 / (1 - p); without restarts the first loss ends everything
    p, graph = 0.9, ring(6, 4)
    traces = [simulate(graph, generator(s), cycles=150, faults=Faults(survive=p), restart=False) for s in range(300)]
    assert all([life.cause for life in trace.lives] == ["lost"] for trace in traces)
    visits = np.array([len(trace) for trace in traces])
    assert visits.mean() == pytest.approx(1 / (1 - p), abs=4 * math.sqrt(p) / (1 - p) / math.sqrt(300))
    ended = [trace for trace in traces if trace.lives[0].end < 75]
    assert len(ended) > 290
    assert max(trace.mean_live(75.0) for trace in ended) < 1e-12


def test_a_lost_walk_is_restarted_where_it_was_last_seen_after_the_limit():
    graph = random_out(40, 8, generator(2))
    trace = simulate(graph, generator(3), cycles=3000, faults=Faults(survive=0.97), limit=15.0)
    gaps = trace.spells(least=0, most=0)
    assert len(gaps) > 40
    # the last node counts from the arrival there and looks once a cycle: limit + (0 to 1) - the delay of the lost message; a walk
    # that is lost on its first hop waits for the next trigger, of another node and less than two cycles earlier in its own cycle
    assert min(gaps) > 15 - 2
    assert np.mean(gaps) == pytest.approx(15 - 0.55 + 0.5, abs=0.4)
    line = trace.lineage()
    assert np.array_equal(trace.step[line], np.arange(1, trace.step.max() + 1))
    assert (trace.parent[line[1:]] == line[:-1]).all()
    restarts = np.flatnonzero(np.diff(trace.walk[line]))
    assert len(restarts) > 40
    for i in restarts:  # the restarted walk goes on from the model of the node that it was last seen at, to a neighbour
        assert trace.node[line[i + 1]] in graph.neighbours[trace.node[line[i]]]


def test_duplicates_are_ended_and_without_the_rule_they_are_not():
    graph, faults = random_out(40, 8, generator(2)), Faults(online=0.6, session=15.0)
    asked = {"cycles": 800, "faults": faults, "limit": 8.0}
    kept, wild = (simulate(graph, generator(6), terminate=t, **asked) for t in (True, False))
    assert sum(life.cause == "duplicate" for life in kept.lives) > 10
    assert sum(life.cause == "duplicate" for life in wild.lives) == 0
    assert kept.mean_live(100.0) < 1.6 < 3 < wild.mean_live(100.0)
    assert max(kept.spells(least=2)) < 60


def watched(monkeypatch, *names):
    """Every call of some handlers of the simulation: (time, node, whether the node is online after it)."""
    seen = {name: [] for name in names}

    def watching(name, handler):
        def watch(service, now, node, what):
            handler(service, now, node, what)
            seen[name].append((now, node, service._online[node]))

        monkeypatch.setattr(_Service, name, watch)

    for name in names:
        watching(name, getattr(_Service, name))
    return seen


def test_nodes_come_and_go_as_told_and_only_those_that_are_online_act(monkeypatch):
    # spells of mean 10 online and 2.5 offline: a share of 0.8, with standard error sqrt(2 * 0.16 * 2 / (600 * 40)) = 0.005
    flips = watched(monkeypatch, "_flip")["_flip"]
    trace = simulate(random_out(40, 8, generator(2)), generator(4), cycles=600, faults=Faults(online=0.8, session=10.0))
    assert trace.counts["exchanges"] / (600 * 40) == pytest.approx(0.8, abs=0.02)
    assert len(flips) / (600 * 40) == pytest.approx(2 / 12.5, rel=0.07)
    assert trace.counts["retried"] > 10
    states = {node: [(t, online) for t, other, online in flips if other == node] for node in range(40)}
    for time, node in zip(trace.time[1:].tolist(), trace.node[1:].tolist(), strict=True):
        before = [online for t, online in states[node] if t <= time]
        assert before[-1] if before else not states[node] or not states[node][0][1]


def test_summaries_are_lost_as_often_as_told(monkeypatch):
    # 8000 exchanges: a standard error of 0.005; of the last 40 some are still on their way
    seen = watched(monkeypatch, "_push", "_pull")
    trace = simulate(random_out(40, 8, generator(2)), generator(4), cycles=200, faults=Faults(survive=0.7))
    assert trace.counts["exchanges"] == pytest.approx(8000, abs=40)
    assert len(seen["_push"]) / trace.counts["exchanges"] == pytest.approx(0.7, abs=0.025)
    assert len(seen["_pull"]) / len(seen["_push"]) == pytest.approx(0.7, abs=0.03)


def test_an_exchange_tells_both_nodes_what_the_other_one_knows():
    service = _Service(ring(5), generator(), Faults(), 11.0)
    mine, theirs = Summary(4, 1.0, 0, 2), Summary(6, 1.5, 1, 3)
    service._known[2] = mine
    service._push(2.0, 2, (theirs, 3))
    assert service._known[2] == Summary(6, 1.5, 1, 4)
    (_, _, kind, sender, answer), *others = service._queue
    assert (kind, sender, answer, others) == (PULL, 3, mine, [])  # what it knew before, for the sender to merge
    service._known[3] = theirs._replace(step=3)
    service._pull(2.5, 3, answer)
    assert service._known[3] == Summary(4, 1.0, 0, 3)


def test_dead_nodes_are_never_visited():
    trace = simulate(ring(12, 6), generator(1), cycles=400, faults=Faults(dead=(3, 4, 7)))
    assert set(trace.node.tolist()) == set(range(12)) - {3, 4, 7}


# --- traces -------------------------------------------------------------------------------------------------------------------


def made():
    """Walk 0 makes visits 0, 1, 2 and is lost at 4; walk 1 restarts at 6 from visit 1; walk 2 is a duplicate of 7 to 8.5."""
    lives = (Life(0.0, 4.0, "lost"), Life(6.0, 10.0, "alive"), Life(7.0, 8.5, "duplicate"))
    visits = [(0.0, 0, 1, 0, -1), (1.0, 2, 2, 0, 0), (3.0, 1, 3, 0, 1), (6.5, 2, 3, 1, 1), (8.5, 0, 3, 2, 1), (9.0, 0, 4, 1, 3)]
    time, node, step, walk, parent = (np.array(c) for c in zip(*visits, strict=True))
    return Trace(4, 10.0, time, node, step, walk, parent, lives)


def test_a_trace_tells_lives_lines_and_uses():
    trace = made()
    assert trace.lineage().tolist() == [0, 1, 3, 5]
    assert trace.uses().tolist() == [1, 1, 1, 2, 2, 3]
    times, number = trace.live()
    assert times.tolist() == [0, 4, 6, 7, 8.5]
    assert number.tolist() == [1, 0, 1, 2, 1]
    assert trace.mean_live() == pytest.approx((4 + 4 + 1.5) / 10)
    assert trace.mean_live(5.0) == pytest.approx((4 + 1.5) / 5)
    assert trace.spells(least=0, most=0) == [2.0]
    assert trace.spells(least=2) == [1.5]
    early = trace.until(7.5)
    assert early.lineage().tolist() == [0, 1, 3]
    assert early.mean_live() == pytest.approx((4 + 1.5 + 0.5) / 7.5)
    with pytest.raises(ArgumentError, match="start: expected a time in"):
        trace.mean_live(10.0)


# --- the ensemble and its recorded walk ---------------------------------------------------------------------------------------


def walk_of(path, **more):
    torch.manual_seed(3)
    model = torch.nn.Linear(3, 1, bias=False).double()
    x = torch.randn(12, 3, generator=generator(4), dtype=torch.float64)
    data = x / x.norm(dim=1, keepdim=True), torch.sign(x[:, 0] + 0.3 * x[:, 1])

    def loss(m, batch):
        return torch.nn.functional.softplus(-batch[1] * m(batch[0]).squeeze(1)).mean()

    asked = {"lr": lambda t: 0.5 / (1 + 0.1 * t), "updates": 60, "seed": 5, "snapshots": every(1)} | more
    walk_service(path, model, loss, data, **asked)
    return open_trajectory(path), LossSurface(model, loss, data), model


def test_a_recorded_walk_tells_its_hops_and_is_the_walk_by_hand(tmp_path):
    run, surface, _ = walk_of(tmp_path / "run", service={"survive": 0.9, "degree": 4})
    steps = run.steps
    assert steps["hop"].values.tolist() == list(range(60))
    assert steps["walk"].values[-1] > 2  # restarted
    assert (np.diff(steps["cycle"].values) > 0).all()
    theta, x, y = run.theta(0), *surface_data(surface)
    for t in range(60):
        i = int(steps["node"].values[t])
        slope = torch.sigmoid(-y[i] * (x[i] @ theta))
        theta = theta + 0.5 / (1 + 0.1 * t) * slope * y[i] * x[i]
    torch.testing.assert_close(run.theta(60), theta, rtol=1e-12, atol=1e-14)
    measured = measure(run, surface, ["motion"])
    assert measured["motion"].sizes["step"] == 60
    report(tmp_path / "run", tmp_path / "walk.html")
    assert "motion" in (tmp_path / "walk.html").read_text()


def surface_data(surface):
    x = torch.randn(12, 3, generator=generator(4), dtype=torch.float64)
    return x / x.norm(dim=1, keepdim=True), torch.sign(x[:, 0] + 0.3 * x[:, 1])


def test_a_private_walk_charges_lost_visits_too(tmp_path):
    points = [torch.nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    ledgers = []
    for point, spent in zip(points, ("skip", "refuse"), strict=True):
        member = PrivateSGD([point], 0.1, eps=30.0, uses=60, spent=spent)
        walk = GossipWalk([member], nodes=10, degree=3, updates=80, survive=0.8, online=0.7, session=8.0, generator=generator(1))
        for _ in range(80):
            visit = walk.visits[0]
            point.grad = torch.zeros(2, dtype=torch.float64)
            walk.step()
            assert member.ledger.used(visit.node) == visit.use
        ledgers.append([member.ledger.used(i) for i in range(10)])
    trace = walk.traces[0]
    assert len(trace) > 80
    before = int(trace.lineage()[-1]) + 1
    assert ledgers[0] == ledgers[1] == np.bincount(trace.node[:before], minlength=10).tolist()
    with pytest.raises(ArgumentError, match="updates: walk 0 has made all its 80"):
        walk.step()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GossipWalk([]), "members: expected at least one"),
        (lambda: GossipWalk([torch.optim.SGD([torch.zeros(1, requires_grad=True)])], nodes=5, degree=5), "degree: expected"),
        (lambda: walk_service(None, None, None, (torch.zeros(3), torch.zeros(2)), lr=0.1, updates=1), "data: expected x and y"),
    ],
)
def test_wrong_walks_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()
