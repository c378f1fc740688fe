import io
import json
import logging
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from sr_dist.core import config, plugins, progress
from sr_dist.core.lost_writes import LostWrites
from sr_dist.recipe.sections import Recipe
from sr_dist.training import log as log_module
from sr_dist.training.log import Log, Trace
from sr_dist.training.throughput import Clock, Work, progress_line, step_time_spread


@pytest.fixture(autouse=True)
def restored_logger():
    logger = logging.getLogger("sr_dist")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    for handler in logger.handlers:
        handler.close()
    logger.handlers[:], logger.level, logger.propagate = before


def recipe(folder):
    tree = {
        "name": "run", "runs": str(folder), "scale": "2", "steps": "10", "data": {"train": "x", "crop": "32", "batch": "4"},
        "generator": {"name": "srugan"}, "objective": {"name": "pixel"}, "optimizer": {},
    }  # fmt: skip
    (folder / "run").mkdir(exist_ok=True)
    return config.typed(Recipe, tree)


def metrics(folder):
    return [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


# ---- metrics.jsonl, log.txt, trace


def test_values_that_are_not_finite_become_null(tmp_path):
    log = Log(recipe(tmp_path), first=True, lost=LostWrites())
    log.row(
        {"step": 1, "loss/l1": float("nan"), "grad_norm/generator": float("inf"), "low": -float("inf"), "learning_rate": 1e-4}
    )
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {
        "step": 1, "loss/l1": None, "grad_norm/generator": None, "low": None, "learning_rate": 1e-4,
    }  # fmt: skip


def test_rows_are_written_at_once_and_a_later_log_appends(tmp_path):
    log = Log(recipe(tmp_path), first=True, lost=LostWrites())
    log.row({"step": 1})
    assert metrics(tmp_path) == [{"step": 1}]
    Log(recipe(tmp_path), first=True, lost=LostWrites()).row({"step": 2})
    assert metrics(tmp_path) == [{"step": 1}, {"step": 2}]


def test_lines_go_to_the_file_and_the_terminal_once(tmp_path, capsys):
    for text in ("first", "second"):
        log = Log(recipe(tmp_path), first=True, lost=LostWrites())
        log.info(text)
        log.close()
    assert [line.split(" ", 2)[2] for line in (tmp_path / "run" / "log.txt").read_text().splitlines()] == ["first", "second"]
    assert [line.split(" ", 2)[2] for line in capsys.readouterr().out.splitlines()] == ["first", "second"]


def test_other_ranks_are_silent(tmp_path, capsys):
    settings = recipe(tmp_path)
    log = Log(
        settings.model_copy(update={"log": settings.log.model_copy(update={"wandb": "offline"})}), first=False, lost=LostWrites()
    )
    log.info("hello"), log.advance(1), log.row({"step": 1}), log.samples(None, []), log.preempted("stopped"), log.close()
    assert list((tmp_path / "run").iterdir()) == []
    assert capsys.readouterr().out == ""


def test_the_trace_has_the_keys_of_every_micro_batch(tmp_path):
    trace = Trace(tmp_path / "trace", rank=3, enabled=True, lost=LostWrites())
    trace.write(7, ("a", "b/c"))
    trace.write(7, ("d",))
    lines = (tmp_path / "trace" / "rank-003.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 7, "keys": ["a", "b/c"]}, {"step": 7, "keys": ["d"]}]
    Trace(tmp_path / "none", rank=0, enabled=False, lost=LostWrites()).write(1, ("a",))
    assert not (tmp_path / "none").exists()


# ---- speed


class Time:
    """A clock that the test moves."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)

    def batches(self, clock, waits):
        for number, seconds in enumerate(waits, 1):
            with clock.waiting():
                self.now += seconds
            yield number

    def work(self, seconds):
        self.now += seconds


def test_speed_and_waiting_by_hand(monkeypatch):
    """Each step waits 1 s and works 3 s: 8 images in 4 s, a quarter of it waiting."""
    watch, clock = Time(monkeypatch), Clock()
    rows = []
    for step in clock.steps(watch.batches(clock, [1] * 9)):
        watch.work(3)
        if step % 3 == 0:
            rows.append(clock.report(images_per_step=8))
    assert len(rows) == 3
    assert all(row == pytest.approx({"images_per_second": 2.0, "data_wait": 0.25}) for row in rows)


def test_speed_is_that_since_the_last_report(monkeypatch):
    watch, clock = Time(monkeypatch), Clock()
    rows = []
    for step in clock.steps(watch.batches(clock, [0] * 20)):
        watch.work(1 if step <= 10 else 4)
        if step in (10, 19):
            rows.append(clock.report(images_per_step=4)["images_per_second"])
    assert rows[0] == pytest.approx(4.0)
    assert 1.0 <= rows[1] < 1.2  # 4 images in 4 s; the step of the report before may count to either


def test_the_speed_so_far_takes_nothing_from_the_next_report(monkeypatch):
    watch, clock = Time(monkeypatch), Clock()
    for step in clock.steps(watch.batches(clock, [1] * 4)):
        watch.work(3)
        if step == 1:
            assert clock.speed(images_per_step=8) == pytest.approx(2.0)
            assert clock.remaining(10) == "0:00:40"
        if step == 4:
            assert clock.report(images_per_step=8) == pytest.approx({"images_per_second": 2.0, "data_wait": 0.25})


def test_validation_and_saving_do_not_count(monkeypatch):
    watch, clock = Time(monkeypatch), Clock()
    for step in clock.steps(watch.batches(clock, [1] * 7)):
        watch.work(3)
        if step == 7:
            row = clock.report(images_per_step=8)
        if step in (2, 5):
            with clock.paused():
                watch.work(100)
    assert row == pytest.approx({"images_per_second": 2.0, "data_wait": 0.25})
    assert clock.remaining(10) == "0:00:40"


def test_the_first_step_can_be_reported(monkeypatch):
    """With log_every 1, or one step to go: 8 images took 4 s."""
    watch, clock = Time(monkeypatch), Clock()
    for _ in clock.steps(watch.batches(clock, [1])):
        watch.work(3)
        row = clock.report(images_per_step=8)
        assert clock.remaining(10) == "0:00:40"
    assert row == pytest.approx({"images_per_second": 2.0, "data_wait": 0.25})


@pytest.mark.parametrize(("steps", "text"), [(0, "0:00:00"), (25, "0:00:50"), (1800, "1:00:00"), (180_045, "100:01:30")])
def test_the_time_left_is_at_the_average_speed(monkeypatch, steps, text):
    watch, clock = Time(monkeypatch), Clock()
    for step in clock.steps(watch.batches(clock, [0.0] * 5)):
        watch.work(2)
        if step in (2, 5):
            clock.report(images_per_step=1)
    assert clock.remaining(steps) == text


def test_the_items_pass_through_unchanged():
    assert list(Clock().steps(iter("abc"))) == ["a", "b", "c"]


def test_stragglers_show_in_the_ranks_own_time_not_in_the_step(monkeypatch):
    """A rank waits 1 s for data, goes forward twice for 2 s, and then waits 10 s for the others: 5 s a step are its own."""
    watch, clock = Time(monkeypatch), Clock()
    for step in clock.steps(watch.batches(clock, [1] * 4)):
        for _ in range(2):
            with clock.forward():
                watch.work(2)
        watch.work(10)
        if step in (2, 4):
            assert clock.own_seconds() == pytest.approx(2 * 5)
            clock.report(images_per_step=8)
    assert step_time_spread([10.0, 10.0]) == {"step_time_spread": 1.0}
    assert step_time_spread([1.0, 3.0, 2.0]) == {"step_time_spread": 1.5}
    assert step_time_spread([10.0]) == step_time_spread([0.0, 0.0]) == {}


class AsynchronousDevice:
    """Work that is queued begins when the work before is done. An event is reached when what was queued before it is done."""

    def __init__(self, watch):
        self.watch, self.idle_from = watch, 0.0

    def queue(self, seconds):
        self.idle_from = max(self.idle_from, self.watch.now) + seconds

    def event(self, enable_timing):
        assert enable_timing
        return Moment(self)


class Moment:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.seconds = max(self.device.idle_from, self.device.watch.now)

    def elapsed_time(self, end):
        return 1e3 * (end.seconds - self.seconds)


@pytest.mark.parametrize(
    ("disk", "device_seconds", "share"),
    [(2, 10, 0.0), (2, 2, 0.0), (5, 2, 0.6), (5, 0, 1.0)],
    ids=["the device is slow", "just in time", "the disk is slow", "nothing but the disk"],
)
def test_a_slow_device_is_no_slow_disk(monkeypatch, disk, device_seconds, share):
    """Images arrive every `disk` seconds while the device works: only what it then lacks is waiting for data, wherever the host
    stands still. The host stands still for the device at the end of each step, as a full queue of a GPU makes it do."""
    watch = Time(monkeypatch)
    device = AsynchronousDevice(watch)
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(Event=device.event))
    clock = Clock(torch.device("cuda"))
    for step in clock.steps(watch.batches(clock, [disk] * 51)):
        if step > 1:
            watch.now = max(watch.now, device.idle_from)  # copies of this step's images drain the queue
        with clock.forward():
            device.queue(device_seconds)
        if step in (1, 51):  # the first wait is for nothing but data
            watch.now = max(watch.now, device.idle_from)
            own, row = clock.own_seconds(), clock.report(images_per_step=1)
    assert row["data_wait"] == pytest.approx(share, abs=0.03)  # the report emptied the queue: one more wait
    assert own == pytest.approx(50 * max(disk, device_seconds), rel=0.03)


def test_operations_per_second_where_they_are_known(monkeypatch):
    """2 images per second of 3e12 operations on 3 ranks: 2 TFLOP/s each, a tenth of what the device could do."""
    watch, clock = Time(monkeypatch), Clock()
    clock.work = Work(3e12, ranks=3, peak=20.0)
    for _ in clock.steps(watch.batches(clock, [1])):
        watch.work(3)
        row = clock.report(images_per_step=8)
    assert row == pytest.approx({"images_per_second": 2.0, "data_wait": 0.25, "tflops": 2.0, "mfu": 0.1})
    assert Work(3e12, ranks=1, peak=None).at(1.0) == pytest.approx({"tflops": 3.0})


def test_the_progress_line():
    row = {"step": 50, "images": 400, "images_per_second": 12.345, "data_wait": 0.256, "grad_norm/generator": 1.0}
    row |= {"loss/mse": 0.0123456, "loss/adversarial": 6.9e-4}
    assert progress_line(row, 1000, "0:10:00") == (
        "step   50/1000  12.3 images/s  data wait 26 %  left 0:10:00  mse 0.01235  adversarial 0.00069"
    )
    row |= {"step_time_spread": 1.234, "memory_gb": 20.04, "tflops": 123.4, "mfu": 0.3951}
    middle = "data wait 26 %  spread 1.23  memory 20.0 GB  123 TFLOP/s  (40 % of peak)  left 0:10:00"
    assert middle in progress_line(row, 1000, "0:10:00")


def test_the_progress_line_shows_what_is_not_finite():
    line = progress_line({"step": 1, "images_per_second": 1.0, "data_wait": 0.0, "loss/l1": float("nan")}, 9, "0:00:08")
    assert line.endswith("l1 nan")


# ---- the terminal


class Screen(io.StringIO):
    def __init__(self, tty):
        super().__init__()
        self.isatty = lambda: tty


def test_on_a_terminal_a_progress_bar_stays_below_the_lines(tmp_path, monkeypatch):
    """It is on stderr, as all bars are."""
    screen = Screen(tty=True)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, screen)
    monkeypatch.setattr(progress, "BAR_AFTER", 0)
    log = Log(recipe(tmp_path), first=True, lost=LostWrites())
    for step in (4, 5, 6):  # continued after step 3
        log.advance(step)
        log.info(f"line {step}")
    log.close()
    text = screen.getvalue()
    assert "run:  40%" in text  # 4 of 10
    assert "| 6/10 [" in text
    assert text.index("4/10") < text.index("line 4") < text.index("6/10")
    assert all(f"line {step}\n" in text for step in (4, 5, 6))
    assert "it/s" not in text
    assert "%" not in (tmp_path / "run" / "log.txt").read_text()


def test_without_a_terminal_only_lines_are_printed(tmp_path, monkeypatch):
    screen = Screen(tty=False)
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, screen)
    log = Log(recipe(tmp_path), first=True, lost=LostWrites())
    for step in (1, 2):
        log.advance(step)
        log.info(f"line {step}")
    log.close()
    assert [line.split(" ", 2)[2] for line in screen.getvalue().splitlines()] == ["line 1", "line 2"]
    assert "\r" not in screen.getvalue()


def test_without_a_terminal_a_line_is_due_after_the_first_step_and_after_silence(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log_module.time, "monotonic", lambda: now[0])
    screen = Screen(tty=False)
    monkeypatch.setattr(sys, "stderr", screen)
    log = Log(recipe(tmp_path), first=True, lost=LostWrites())
    due = []
    for seconds in (1, 10, 29, 31, 45, 62):  # nothing is said but by the lines that are due
        now[0] = 100.0 + seconds
        due.append(log.is_line_due())
        if due[-1]:
            log.info("a line")
    assert due == [True, False, False, True, False, True]
    now[0] += 29
    log.info("another line")
    now[0] += 29
    assert not log.is_line_due()
    screen.isatty = lambda: True
    now[0] += 99
    assert not log.is_line_due()
    assert not Log(recipe(tmp_path), first=False, lost=LostWrites()).is_line_due()
    log.close()


@pytest.mark.parametrize(("rate", "text"), [(0.0123, "0.0123"), (1.0, "1"), (8.76, "8.76"), (123.4, "123")])
def test_slow_speeds_have_digits_too(rate, text):
    line = progress_line({"step": 1, "images_per_second": rate, "data_wait": 0.0}, 9, "0:00:08")
    assert line == f"step 1/9  {text} images/s  data wait 0 %  left 0:00:08"


# ---- trackers


def test_a_tracker_is_one_file_and_receives_what_the_run_logs(tmp_path, monkeypatch):
    package = tmp_path / "tracker_files"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "off.py").write_text("def open_tracker(recipe, info):\n    return None\n")
    (package / "csv.py").write_text(
        "class Csv:\n"
        "    def __init__(self, recipe): self.file = recipe.folder / 'rows.csv'\n"
        "    def _add(self, *cells):\n"
        "        with open(self.file, 'a') as file: print(*cells, sep=',', file=file)\n"
        "    def row(self, row): self._add('row', row['step'])\n"
        "    def table(self, name, rows, at): self._add(name, len(rows), at['step'])\n"
        "    def image(self, name, path, at): self._add(name, at['step'])\n"
        "    def checkpoint(self, folder, step, best): self._add('checkpoint', step, best)\n"
        "    def preempted(self, text): self._add('preempted', text)\n"
        "    def close(self, code): self._add('close', code)\n"
        "def open_tracker(recipe, info):\n"
        "    info('rows.csv')\n"
        "    return Csv(recipe)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(plugins.PACKAGES, "tracker", "tracker_files")
    log = Log(recipe(tmp_path), first=True, lost=LostWrites())
    log.row({"step": 1}), log.table("t", [{"a": 1}], {"step": 2}), log.checkpoint(tmp_path, 3, best=True)
    log.preempted("stopped"), log.close(code=1)
    expected = ["row,1", "t,1,2", "preempted,stopped", "close,1"]  # log.artifacts is off, so no checkpoint
    assert (tmp_path / "run" / "rows.csv").read_text().splitlines() == expected
    assert [line.split(" ", 2)[2] for line in (tmp_path / "run" / "log.txt").read_text().splitlines()] == ["rows.csv", "stopped"]
