"""The comparison's arithmetic on made-up data, its workers and command line. No test asserts a speed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import _machine
import _rounds
import numpy as np
import pytest
import versus
from _ids import token_chain
from _rounds import Turn


def pair(ours: float, peer: float, ours_foreign: float | None = 0.0, peer_foreign: float | None = 0.0):
    """A round of two systems."""
    return {"ours": Turn(ours, ours_foreign), "peer": Turn(peer, peer_foreign)}


def test_a_round_is_as_disturbed_as_its_worse_half() -> None:
    """Either side's disturbance rejects the pair; an unknown share rejects nothing."""
    assert not _rounds.rejected(pair(1, 1, 0.05, 0.0), 0.05)
    assert _rounds.rejected(pair(1, 1, 0.0, 0.051), 0.05)
    assert _rounds.rejected(pair(1, 1, 0.2, None), 0.05)
    assert not _rounds.rejected(pair(1, 1, None, None), 0.05)


def test_order_alternates() -> None:
    """The first goes last the next time."""
    assert _rounds.order_of(["a", "b"], 0) == ["a", "b"]
    assert _rounds.order_of(["a", "b"], 1) == ["b", "a"]
    assert _rounds.order_of(["a", "b"], 2) == ["a", "b"]


def scripted(shares: list[float]):
    """A turn function that plays back others' shares, one a round, and writes down who was called."""
    calls: list[str] = []

    def turn(side: str) -> Turn:
        number = len(calls) // 2
        calls.append(side)
        return Turn(float(number), shares[number])

    return turn, calls


def test_collect_repeats_disturbed_rounds_in_their_order() -> None:
    """A rejected round is taken again with the same side first, and does not count."""
    turn, calls = scripted([0.0, 0.3, 0.0, 0.0])
    rejections: list[int] = []
    outcome = _rounds.collect(["ours", "peer"], turn, wanted=3, retries=5, bound=0.05, before=rejections.append)
    assert [turns["ours"].value for turns in outcome.kept] == [0.0, 2.0, 3.0]
    assert (outcome.repeated, outcome.disturbed) == (1, 0)
    assert rejections == [0, 0, 1, 1]
    assert calls == ["ours", "peer", "peer", "ours", "peer", "ours", "ours", "peer"]


def test_collect_stops_at_its_bound_and_says_so() -> None:
    """On a machine that is never quiet the least disturbed rounds count, marked as such."""
    turn, calls = scripted([0.5, 0.2, 0.9, 0.0, 0.4])
    outcome = _rounds.collect(["ours", "peer"], turn, wanted=3, retries=2, bound=0.05)
    assert len(calls) == 2 * 5
    assert sorted(turns["ours"].value for turns in outcome.kept) == [1.0, 3.0, 4.0]
    assert (outcome.repeated, outcome.disturbed) == (2, 2)
    assert outcome.worst_foreign() == 0.4


def test_patience_ends() -> None:
    """Waiting stops when it is quiet or when the stock is used up, and the stock is for the whole run."""
    clock = iter(range(100))
    shares = iter([0.5, 0.5, 0.0, 0.9, 0.9, 0.9, 0.9, 0.9])
    patience = _rounds.Patience(5, lambda: next(shares), lambda: float(next(clock)))
    assert patience.wait(0.05) == 3
    assert patience.left == 2
    assert patience.wait(0.05) > 0
    assert patience.left == 0
    assert patience.wait(0.05) == 0
    unknown = _rounds.Patience(5, lambda: None, lambda: 0.0)
    assert unknown.wait(0.05) == 0
    assert unknown.left == 5


def test_ratio_is_the_median_of_the_quotients() -> None:
    """Not the quotient of the medians: each round is compared within itself."""
    rounds = [pair(10, 5), pair(30, 10), pair(2, 2)]
    outcome = _rounds.select(rounds, wanted=3, bound=0.05)
    assert _rounds.ratio_of(outcome, "ours", "peer") == {"median": 2.0, "low": 1.0, "high": 3.0}
    assert outcome.median("ours") == 10
    assert outcome.median("peer") == 5


def test_ratio_of_a_detail_and_of_one_side() -> None:
    """A ratio can be of any number of a turn; with one system there is none."""
    rounds = [{"ours": Turn(1, 0.0, {"t": 3.0}), "peer": Turn(1, 0.0, {"t": 6.0})}]
    outcome = _rounds.select(rounds, wanted=1, bound=0.05)
    quotient = _rounds.ratio_of(outcome, "ours", "peer", lambda turn: turn.details["t"])
    assert quotient is not None
    assert quotient["median"] == 0.5
    alone = _rounds.select([{"peer": Turn(1)}], wanted=1, bound=0.05)
    assert _rounds.ratio_of(alone, "ours", "peer") is None


def test_percentile() -> None:
    """Linear between neighbours."""
    assert _rounds.percentile([3, 1, 2], 0.5) == 2
    assert _rounds.percentile([0, 10], 0.95) == pytest.approx(9.5)
    assert _rounds.percentile([4], 0.95) == 4
    with pytest.raises(ValueError, match="no values"):
        _rounds.percentile([], 0.5)


def test_busy_seconds_counts_all_but_idling() -> None:
    """User, nice, system, interrupts and stolen time of the processors asked for; nothing idle."""
    stat = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 100 20 30 5000 70 1 2 3 50 0\ncpu1 1 1 1 1 1 1 1 1 0 0\nintr 5\n"
    assert _machine.busy_seconds(stat, {0}, 100) == pytest.approx(1.56)
    assert _machine.busy_seconds(stat, {0, 1}, 100) == pytest.approx(1.62)
    assert _machine.busy_seconds("cpu0 100 0 0 5\n", {0}, 100) == pytest.approx(1.0)


def test_foreign_share() -> None:
    """What is busy beyond our own time, over what the threads could have used."""
    assert _machine.foreign_share(2.0, 1.0, wall=1.0, threads=2, slack=0.0) == pytest.approx(0.5)
    assert _machine.foreign_share(2.0, 1.99, wall=1.0, threads=2, slack=0.02) == 0.0
    assert _machine.foreign_share(1.0, 1.2, wall=1.0, threads=2, slack=0.0) == 0.0
    assert _machine.foreign_share(1.0, 0.0, wall=0.0, threads=2, slack=0.0) == 0.0


def test_ticks_tell_in_long_windows_and_waiting_in_short_ones() -> None:
    """A window of a few ticks is judged by the time that threads waited for a processor."""
    assert _machine.judge(others=0.3, waiting=0.0, resolution=0.01) == 0.3
    assert _machine.judge(others=0.0, waiting=0.4, resolution=0.5) == 0.4
    assert _machine.judge(others=None, waiting=0.1, resolution=0.01) == 0.1
    assert _machine.judge(others=0.0, waiting=None, resolution=0.5) is None


def test_cpu_window_knows_its_own_time() -> None:
    """A window is as long as it was, and its own time is not other people's."""
    window = _machine.CpuWindow()
    sum(number * number for number in range(300_000))
    account = window.close(threads=1)
    assert account["wall"] is not None
    assert account["wall"] > 0
    assert account["own"] is not None
    assert account["own"] > 0


def test_token_chain_is_fixed_and_spread() -> None:
    """The same ids each time, all in the vocabulary, hardly any twice."""
    ids = token_chain(1, 1000, 49152)
    assert ids == token_chain(1, 1000, 49152)
    assert ids[0] == 1
    assert all(0 <= token < 49152 for token in ids)
    assert len(set(ids)) > 900


def test_compare_logits() -> None:
    """Alike, unlike, and of another size."""
    logits = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    same = versus.compare_logits(logits, logits * 1.001)
    assert same["cosine"] == pytest.approx(1.0)
    assert same["same_argmax"]
    other = versus.compare_logits(logits, -logits)
    assert other["cosine"] == pytest.approx(-1.0)
    assert not other["same_argmax"]
    assert not versus.compare_logits(logits, logits[:2])["same_shape"]


class FakeSession:
    """What the adapter needs of a session."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    @property
    def position(self) -> int:
        """The tokens so far."""
        return len(self.ids)

    def prefill(self, ids: list[int]) -> np.ndarray:
        """Take tokens in."""
        self.ids += ids
        return np.full(10, float(len(self.ids)), dtype=np.float32)

    def step(self, token: int) -> np.ndarray:
        """Take one in."""
        return self.prefill([token])

    def rollback(self, count: int) -> None:
        """Forget the last ones."""
        del self.ids[len(self.ids) - count :]

    def reset(self) -> None:
        """Forget all."""
        self.ids = []


def test_adapter_keeps_to_the_api(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our side calls `load`, `session`, `prefill`, `step`, `rollback` and `reset`, and nothing else."""
    asked: dict[str, object] = {}

    def load(path: str, **options: object) -> SimpleNamespace:
        asked.update(options, path=path)
        return SimpleNamespace(session=FakeSession, config=SimpleNamespace(vocab_size=10))

    monkeypatch.setitem(sys.modules, "llama_ext", SimpleNamespace(load=load, __version__="0"))
    monkeypatch.delitem(sys.modules, "_ours", raising=False)
    ours = importlib.import_module("_ours").LlamaExt()
    assert ours.load("m.gguf", threads=3, context=99) >= 0
    assert asked == {"path": "m.gguf", "device": "cpu", "threads": 3, "max_context": 99}
    assert ours.prefill([1, 2, 3, 4]) >= 0
    assert len(ours.decode(5, first_id=1)) == 5
    assert ours.position == 9
    ours.rewind(4)
    assert ours.position == 4
    assert ours.logits().shape == (10,)
    ours.rewind(0)
    assert ours.position == 0
    ours.close()
    monkeypatch.delitem(sys.modules, "_ours")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, as a user runs it."""
    return subprocess.run([sys.executable, versus.__file__, *arguments], capture_output=True, text=True, timeout=300)


def test_help() -> None:
    """The script explains itself."""
    shown = run("--help")
    assert shown.returncode == 0
    for option in ("--model", "--threads", "--contexts", "--rounds", "--json", "--ours-only", "--peer-only"):
        assert option in shown.stdout


def test_mistakes_are_told_in_a_line(tmp_path: Path) -> None:
    """A missing file and contexts that are none."""
    missing = run("--model", str(tmp_path / "none.gguf"))
    assert missing.returncode == 2
    assert "no such file" in missing.stderr
    assert "Traceback" not in missing.stderr
    assert run("--contexts", "0,0").returncode == 2
    assert run("--contexts", "a").returncode == 2
    assert run("--threads", "0").returncode == 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model for llama.cpp."""
    pytest.importorskip("llama_cpp")
    make_model = pytest.importorskip("make_model")
    path = tmp_path_factory.mktemp("versus") / "tiny.gguf"
    make_model.write_model(path, make_model.PRESETS["tiny"], "q8_0")
    return path


def test_workers_stop_when_it_is_not_their_turn(tiny: Path) -> None:
    """A worker is stopped between commands, answers, reports its failures and ends."""
    from _worker import Worker, WorkerError

    with Worker("llama.cpp") as worker:
        assert worker.stopped() in (True, None)
        answer = worker.call("load", str(tiny), 1, 128, 16)
        assert answer["info"]["vocab_size"] == 512
        assert worker.stopped() in (True, None)
        turn = versus.turn_of(worker.call("turn_prefill", 16))
        assert turn.value > 0
        assert turn.details["first_token"] > 0
        assert worker.call("fill", 32) > 0
        assert versus.turn_of(worker.call("turn_decode", 32, 4)).details["token_p95"] > 0
        with pytest.raises(WorkerError, match="cannot load"):
            worker.call("load", "no-such-file.gguf", 1, 128, 16)
        pid = worker.pid
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(WorkerError, match="no such system"):
        Worker("nothing")


def test_calibration_prints_one_json_object_last(tiny: Path) -> None:
    """llama.cpp against itself: the whole run, and every key that readers of the JSON rely on."""
    sizes = "--threads 1 --prompt 32 --decode 8 --rounds 2 --loads 1"
    few = f"{sizes} --retries 1 --patience 1".split()
    done = run("--model", str(tiny), "--calibrate", "--contexts", "0,64", "--json", *few)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["decode_ratio"] > 0
    assert report["prefill_ratio"] > 0
    assert set(report["ratios"]["decode"]) == {"0", "64"}
    assert report["agreement"]["same_argmax"]
    assert report["agreement"]["cosine"] == pytest.approx(1.0)
    for side in ("ours", "peer"):
        assert report[side]["decode_tok_s"]["0"] > 0
        assert report[side]["prefill_tok_s"] > 0
        assert report[side]["first_token_seconds"] > 0
        assert report[side]["load_seconds"] > 0
        assert report[side]["peak_memory_bytes"] > 1e6
    assert set(report["rounds"]) == {"load", "prefill", "decode at 0", "decode at 64"}
    assert all(case["repeated"] + case["counted_though_disturbed"] <= 3 for case in report["rounds"].values())
    assert report["machine"]["cores"] >= 1

    alone = run("--model", str(tiny), "--peer-only", "--quiet", *few)
    assert alone.returncode == 0, alone.stderr
    assert alone.stderr == ""
    assert "llama.cpp" in alone.stdout
    assert "ratio" not in alone.stdout
