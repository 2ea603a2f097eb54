"""`python -m pipeline.dashboard`: opens MLflow's pages on this machine at the experiment. Ctrl-C ends it."""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, build_opener

from pipeline.record.runs_folder import default_runs
from pipeline.tracking.server import artifact_folder, connect, default_uri
from pipeline.tracking.sweep_runs import QUALITY, close_dead
from pipeline.tracking.terms import WORKFLOW, page
from pipeline.tracking.view import View
from stages.contracts import UserError

HOST = "127.0.0.1"
"""Local address only: who reaches MLflow's server reads every file that it can read."""
START_SECONDS = 120.0
STOP_SECONDS = 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipeline.dashboard", description=__doc__)
    parser.add_argument("--runs", type=Path, default=default_runs())
    parser.add_argument("--port", type=int, default=5000)
    parser.add_argument("--experiment", default="squarehead")
    parser.add_argument("--sweep", default="", help="open on this sweep; default: the newest with a finished job")
    parser.add_argument("--all", action="store_true", help="open on the list of all runs")
    parser.add_argument("--no-open", action="store_true", help="do not open a browser")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if not options.runs.is_dir():
            raise UserError(f"no folder {options.runs}; give the one that holds mlflow.db", "--runs")
        _check_free(options.port)
        view = View(connect("", options.experiment, options.runs))
        close_dead(view.runs)
        address = f"http://{HOST}:{options.port}/{all_runs(view) if options.all else start_page(view, options.sweep)}"
        with _server(options.runs, options.port) as server:
            print(f"dashboard  {address}  (ctrl-C ends it)", flush=True)
            if not options.no_open and _has_display():
                webbrowser.open(address)
            return server.wait()
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 0


def start_page(view: View, sweep: str = "") -> str:
    """Returns the address, from the `#` on, of the chart of quality over sparsity in a sweep, a line for each loss; of
    all runs if there is no such chart. Without `sweep`, the newest sweep with a finished job is used. Raises UserError
    for an unknown one."""
    runs = view.runs
    if sweep and not runs.latest(kind="sweep", sweep=sweep):
        raise UserError(f"MLflow knows no sweep {sweep}; python -m pipeline.tracking relog brings it in", "--sweep")
    chosen = [sweep] if sweep else [run.data.tags["sweep"] for run in runs.search(kind="sweep")]
    finished = next((name for name in chosen if runs.latest("FINISHED", kind="job", sweep=name)), "")
    run = runs.latest(kind="sweep", sweep=finished) if finished else None
    quality = run.data.tags.get(QUALITY, "") if run else ""
    lines = sorted(name for name in (run.data.metrics if run else {}) if name.startswith(f"{quality}/"))
    if run is None or not lines:
        return all_runs(view)
    asked = {
        "runs": [run.info.run_id],
        "experiments": [runs.experiment],
        "metric": lines[0],
        "plot_metric_keys": lines,
        "show_point": True,
    }
    query = "&".join(f"{key}={quote(json.dumps(value))}" for key, value in asked.items())
    return f"#/metric?{query}&x_axis=step&{WORKFLOW}"


def all_runs(view: View) -> str:
    return page(f"experiments/{view.runs.experiment}/runs")


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise UserError(f"port {port} of {HOST} is taken or not allowed; choose another", "--port") from None


@contextmanager
def _server(runs: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Starts MLflow's server and waits until it answers; ends it and its workers when the block ends."""
    log = runs / "dashboard.log"
    command = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--backend-store-uri", default_uri(runs)),
        *("--default-artifact-root", artifact_folder(runs).as_uri(), "--no-serve-artifacts"),
        *("--host", HOST, "--port", str(port), "--workers", "1"),
    ]
    variables = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as output:
        # A session of its own, so that ctrl-C comes to us alone and we end the workers too.
        server = subprocess.Popen(
            command, env=variables, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            _wait_until_up(server, port, log)
            yield server
        finally:
            _end(server)


def _wait_until_up(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    # Never through a proxy: it would look for the server on another machine.
    opener = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + START_SECONDS
    while server.poll() is None and time.monotonic() < deadline:
        try:
            opener.open(f"http://{HOST}:{port}/health", timeout=2).close()
        except (URLError, OSError):
            time.sleep(0.2)
        else:
            return
    raise UserError(f"MLflow's server did not start; its output is in {log}", "--port")


def _end(server: subprocess.Popen[bytes]) -> None:
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, how)
            server.wait(STOP_SECONDS)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def _has_display() -> bool:
    """Returns whether there is a screen that a browser could open on."""
    if sys.platform in ("darwin", "win32"):
        return True
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
