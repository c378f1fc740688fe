"""W&B's own client, offline or against a test server; its records are read back."""

import http.server
import json
import os
import sys
import threading

import pytest
from PIL import Image
from wandb_records import history, items, of_kind

from sr_dist.core import config
from sr_dist.core.lost_writes import LostWrites
from sr_dist.recipe.sections import Recipe
from sr_dist.training.log import Log
from sr_dist.training.trackers import wandb
from sr_dist.training.trackers.wandb import WandbTracker

TRAINED = {"learning_rate": 1e-4, "images_per_second": 9.0, "data_wait": 0.1, "memory_gb": 2.0, "loss/l1": 0.5,
           "grad_norm/generator": 1.0, "step_time_spread": 1.1, "tflops": 3.0, "mfu": 0.3}  # fmt: skip


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No account of the user who runs the tests, and a W&B service per test."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    yield
    import wandb

    wandb.teardown()


def recipe(folder, wandb="offline"):
    tree = {
        "name": "a run", "runs": str(folder), "scale": "2", "steps": "10", "data": {"train": "x", "crop": "32", "batch": "4"},
        "generator": {"name": "srugan", "num_blocks": "3"}, "objective": {"name": "pixel"}, "optimizer": {},
        "log": {"wandb": wandb},
    }  # fmt: skip
    (folder / "a run").mkdir(exist_ok=True)
    return config.typed(Recipe, tree)


def test_names_are_grouped_and_images_are_the_axis(tmp_path):
    lines = []
    tracker = WandbTracker(recipe(tmp_path), lines.append)
    tracker.row({"step": 5, "images": 20, "epoch": 0.5, **TRAINED})
    tracker.row({"step": 5, "images": 20, "validation/psnr_y": 30.0})
    tracker.row({"step": 10, "images": 40, "epoch": 1.0, **TRAINED, "loss/l1": None})
    tracker.close(0)
    first, second = history(tmp_path / "a run")
    assert {key for key in first if not key.startswith("_")} == {
        "step", "images", "epoch", "learning_rate", "speed/images_per_second", "speed/data_wait", "speed/step_time_spread",
        "speed/tflops", "speed/mfu", "memory/memory_gb", "loss/l1", "grad_norm/generator", "validation/psnr_y",
    }  # fmt: skip
    assert (first["step"], first["images"], first["speed/images_per_second"], first["validation/psnr_y"]) == (5, 20, 9.0, 30.0)
    assert (second["step"], second["images"], second["loss/l1"]) == (10, 40, None)
    axes = {metric.name or metric.glob_name: metric.step_metric for metric in of_kind(tmp_path / "a run", "metric")}
    assert axes["*"] == "images"
    assert len(lines) == 1
    assert f"wandb sync '{tmp_path}/a run'/wandb/offline-run-*" in lines[0]


def test_the_run_has_one_id_the_recipe_and_the_commit(tmp_path):
    """Also after a requeue, which writes another file of the same run."""
    settings = recipe(tmp_path)
    (tmp_path / "a run" / "environment.json").write_text('{"commit": "c0ffee", "ranks": 2}')
    (tmp_path / "a run" / "run.json").write_text(
        '{"format": 1, "sr_dist": "0.2.0", "id": "5eed", "unnamed_until": 0, "parent": {"id": "c0ffee0000", "step": 7}}'
    )
    for step in (1, 2):
        tracker = WandbTracker(settings, print)
        tracker.row({"step": step, "images": 4 * step, "loss/l1": 1.0})
        tracker.close(0)
    runs = [run for run in of_kind(tmp_path / "a run", "run") if run.run_id]
    assert {(run.run_id, run.resume, run.display_name, run.project) for run in runs} == {
        ((tmp_path / "a run" / "wandb_id").read_text().strip(), True, "a run", "sr_dist")
    }
    about = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert about["generator"] == {"name": "srugan", "num_blocks": "3"}
    assert about["data"]["batch"] == 4
    assert about["environment"] == {"commit": "c0ffee", "ranks": 2}
    assert about["run_id"] == "5eed"
    assert about["parent"] == {"id": "c0ffee0000", "step": 7}
    assert list(runs[0].tags) == ["fork of c0ffee00 at 7"]
    assert [row["step"] for row in history(tmp_path / "a run")] == [1, 2]


def test_best_values_cover_the_whole_run(tmp_path, monkeypatch):
    """PSNR is best when high, a distance when low; before the requeue, step 2 had the better PSNR."""
    senses = {"psnr_y": "higher", "ssim_y": "higher", "distance": "lower"}
    monkeypatch.setattr("sr_dist.training.trackers.wandb.better_direction", senses.get)
    settings = recipe(tmp_path)
    (tmp_path / "a run" / "metrics.jsonl").write_text(
        '{"step": 2, "validation/psnr_y": 31.0}\n{"step": 4, "validation/psnr_y": 30.5, "validation/ssim_y": 0.8}\n'
    )
    tracker = WandbTracker(settings, print)
    tracker.row({"step": 6, "images": 24, "validation/psnr_y": 30.0, "validation/ssim_y": 0.9, "validation/distance": 5.0})
    tracker.row({"step": 8, "images": 32, "validation/psnr_y": 32.0, "validation/ssim_y": None, "validation/distance": 4.0})
    tracker.row({"step": 10, "images": 40, "validation/psnr_y": 31.9, "validation/distance": 4.5})
    tracker.close(0)
    seen = [{k: v for k, v in items(summary.update).items() if "best" in k} for summary in of_kind(tmp_path / "a run", "summary")]
    assert [alerts for alerts in seen if alerts] == [
        {"best/ssim_y": 0.9, "best/ssim_y_step": 6, "best/distance": 5.0, "best/distance_step": 6},
        {"best/psnr_y": 32.0, "best/psnr_y_step": 8, "best/distance": 4.0, "best/distance_step": 8},
    ]


def test_images_and_tables_arrive_complete(tmp_path):
    tracker, at = WandbTracker(recipe(tmp_path), print), {"step": 5, "images": 20}
    red, blue = (Image.new("RGB", (6, 4), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "sheet.png")
    tracker.image("samples/sheet", tmp_path / "sheet.png", at)
    tracker.table(
        "samples/table",
        [{"image": "a", "LR": blue, "SR": red, "psnr_y": 30.5}, {"image": "b", "LR": red, "SR": blue, "psnr_y": 29.0}],
        at,
    )
    tracker.close(0)
    (row,) = history(tmp_path / "a run")
    assert (row["step"], row["images"]) == (5, 20)
    (part,) = (tmp_path / "a run" / "wandb").glob("offline-run-*/files")
    with Image.open(part / row["samples/sheet/path"]) as sheet:
        assert (sheet.size, sheet.getpixel((0, 0))) == ((6, 4), (255, 0, 0))
    (artifact,) = of_kind(tmp_path / "a run", "artifact")  # W&B keeps a table and its images together
    files = {entry.path: entry.local_path for entry in artifact.manifest.contents}
    with open(files.pop("samples/table.table.json")) as file:
        table = json.load(file)
    assert table["columns"] == ["image", "LR", "SR", "psnr_y"]
    assert [(line[0], line[3]) for line in table["data"]] == [("a", 30.5), ("b", 29.0)]
    with Image.open(files[table["data"][1][2]["path"]]) as cell:
        assert cell.getpixel((0, 0)) == (0, 0, 255)


def test_only_rows_with_values_to_remember_are_parsed(tmp_path, monkeypatch):
    """1,000 rows of losses, two validations, one of them damaged, and the last count: three of the lines are parsed."""
    parsed = []
    monkeypatch.setattr("sr_dist.training.trackers.wandb.parse_json", lambda line: parsed.append(line) or json.loads(line))
    settings = recipe(tmp_path)
    rows = [{"step": step, "loss/l1": 0.5, "skipped/generator": step // 500} for step in range(1, 1001)]
    lines = [json.dumps(row) for row in rows]
    lines[300:300] = ['{"step": 300, "validation/psnr_y": 31.0}', '{"step": 300, "validation/psnr_y": ']
    (tmp_path / "a run" / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    tracker = WandbTracker(settings, print)
    tracker.close(0)
    assert (tracker._best, tracker._skipped) == ({"psnr_y": 31.0}, {"skipped/generator": 2})
    assert len(parsed) == 3


def test_alerts_about_skipped_updates_and_about_a_stop(tmp_path):
    """An alert for each increase, and none for updates skipped before a requeue."""
    settings = recipe(tmp_path)
    (tmp_path / "a run" / "metrics.jsonl").write_text('{"step": 2, "skipped/generator": 3}\n')
    tracker = WandbTracker(settings, print)
    for step, count in ((4, 3), (6, 5), (8, 5)):
        tracker.row({"step": step, "images": 4 * step, "skipped/generator": count})
    tracker.preempted("stopped after step 8 (SIGUSR1)")
    tracker.close(1)
    alerts = of_kind(tmp_path / "a run", "alert")
    assert [alert.title for alert in alerts] == ["a run: gradients that are not finite", "a run was stopped"]
    assert [alert.text for alert in alerts] == [
        "5 updates of the generator were skipped by step 6", "stopped after step 8 (SIGUSR1)",
    ]  # fmt: skip
    assert {alert.level for alert in alerts} == {"WARN"}
    assert len(of_kind(tmp_path / "a run", "preempting")) == 1
    assert [end.exit_code for end in of_kind(tmp_path / "a run", "exit")] == [1]


def test_a_checkpoint_becomes_a_version_of_the_model(tmp_path):
    tracker = WandbTracker(recipe(tmp_path), print)
    place = tmp_path / "0000005"
    place.mkdir()
    (place / "generator.safetensors").write_bytes(b"weights")
    tracker.checkpoint(place, 5, best=True)
    tracker.close(0)
    (model,) = of_kind(tmp_path / "a run", "artifact")
    assert (model.name, model.type, sorted(model.aliases)) == ("a-run", "model", ["best", "latest", "step-5"])
    assert json.loads(model.metadata) == {"step": 5}
    assert [(entry.path, entry.size) for entry in model.manifest.contents] == [("generator.safetensors", 7)]


def test_a_row_sent_before_a_kill_is_skipped_and_a_late_validation_is_not(tmp_path):
    tracker = WandbTracker(recipe(tmp_path), print)
    tracker.row({"step": 6, "images": 24, "loss/l1": 1.0})
    tracker.row({"step": 5, "images": 20, "loss/l1": 2.0})
    tracker.row({"step": 4, "images": 16, "validation/psnr_y": 30.0})
    tracker.close(0)
    (row,) = history(tmp_path / "a run")
    assert (row["step"], row["loss/l1"], row["validation/psnr_y"]) == (6, 1.0, 30.0)


# ---- failures


def test_where_it_is_off_the_log_makes_no_tracker(tmp_path):
    log = Log(recipe(tmp_path, wandb="off"), True, LostWrites())
    log.row({"step": 1, "images": 4, "skipped/generator": 1}), log.preempted("stopped"), log.close(0)
    assert {path.name for path in (tmp_path / "a run").iterdir()} == {"log.txt", "metrics.jsonl"}


def test_training_goes_on_where_wandb_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    lines = []
    assert wandb.open_tracker(recipe(tmp_path), lines.append) is None
    assert [line.split(" (")[0] for line in lines] == ["W&B is not available offline"]
    monkeypatch.undo()


@pytest.mark.parametrize("problem", [RuntimeError("quota\nlong story"), TimeoutError()], ids=["with words", "without words"])
def test_training_goes_on_when_wandb_stops_answering(tmp_path, monkeypatch, capsys, problem):
    log = Log(recipe(tmp_path), True, LostWrites())

    def fail(*args, **options):
        raise problem

    from wandb.sdk.wandb_run import Run

    monkeypatch.setattr(Run, "log", fail)
    for step in (1, 2, 3):
        log.row({"step": step, "images": step})
    log.close(0)
    assert capsys.readouterr().out.count("WandbTracker failed (") == 1
    assert len((tmp_path / "a run" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(("account", "why"), [("", "No API key"), ("0" * 40, "")])
def test_without_an_account_or_a_server_the_run_stays_offline(tmp_path, monkeypatch, account, why):
    if account:
        monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
        monkeypatch.setenv("WANDB_API_KEY", account)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
    lines = []
    tracker = WandbTracker(recipe(tmp_path, wandb="online"), lines.append)
    tracker.row({"step": 1, "images": 4})
    tracker.close(0)
    assert lines[0].startswith(f"W&B is not available online ({why}")
    assert "wandb sync" in lines[1]
    assert [row["images"] for row in history(tmp_path / "a run")] == [4]


class Server(http.server.BaseHTTPRequestHandler):
    """The part of W&B's server that one run needs; it records the requests."""

    told: list
    had: dict | None  # what it has of the run from before

    def do_POST(self):
        sent = self.rfile.read(int(self.headers["content-length"]))
        request = json.loads(sent) if self.path.endswith(("graphql", "file_stream")) else {}  # and the client's own telemetry
        self.told.append((self.path, request))
        run = {"id": "x", "name": "run", "displayName": "run", "project": {"name": "p", "entity": {"name": "e"}}}
        answers = {
            "RunResumeStatus": {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}, "bucket": self.had}},
            "UpsertBucket": {"upsertBucket": {"bucket": run, "inserted": self.had is None}},
            "CreateRunFiles": {"createRunFiles": {"runID": "x", "uploadHeaders": [], "files": []}},
        }
        body = json.dumps({"data": answers.get(request.get("operationName"), {})} if "graphql" in self.path else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    """A test server in place of W&B's."""
    handler = type("Handler", (Server,), {"told": [], "had": None})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield server
    server.shutdown()
    server.server_close()


def test_a_killed_run_continues_online_without_duplicate_rows(tmp_path, server):
    """W&B had step 10, the checkpoint was of step 8; the validation of step 8 was postponed."""
    server.RequestHandlerClass.had = {
        "id": "x", "name": "run", "displayName": "run", "summaryMetrics": "{}", "logLineCount": 0, "historyLineCount": 3,
        "eventsLineCount": 0, "historyTail": json.dumps([json.dumps({"_step": 10, "_runtime": 5})]), "eventsTail": "[]",
        "config": "{}", "tags": [], "notes": None, "wandbConfig": json.dumps({"t": 1}),
    }  # fmt: skip
    lines = []
    tracker = WandbTracker(recipe(tmp_path, wandb="online"), lines.append)
    tracker.row({"step": 8, "images": 32, "validation/psnr_y": 30.0})
    for step in (9, 10, 12, 14):
        tracker.row({"step": step, "images": 4 * step, "loss/l1": 1.0})
    tracker.close(0)
    told = server.RequestHandlerClass.told
    (begun,) = {request["variables"]["name"] for _, request in told if request.get("operationName") == "RunResumeStatus"}
    assert begun == (tmp_path / "a run" / "wandb_id").read_text().strip()
    sent = [request["files"]["wandb-history.jsonl"] for _, request in told if "wandb-history.jsonl" in request.get("files", {})]
    assert sent[0]["offset"] == 3
    rows = [json.loads(line) for part in sent for line in part["content"]]
    assert [row["images"] for row in rows] == [32, 48, 56]
    assert [row["_step"] for row in rows] == [11, 12, 14]
    assert lines == []


def test_training_ends_in_time_when_the_server_is_gone(tmp_path, monkeypatch, server):
    """The server answers when the run begins and is gone when it ends."""
    monkeypatch.setattr(wandb, "FINISH", 2.0)
    lines = []
    tracker = WandbTracker(recipe(tmp_path, wandb="online"), lines.append)
    tracker.row({"step": 1, "images": 4})
    server.shutdown()
    server.server_close()
    tracker.row({"step": 2, "images": 8})
    tracker.close(0)
    assert lines == []
    assert server.RequestHandlerClass.told
