"""Downloads from a misbehaving server: a file in the cache under its final name always has the right sha256."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import logging
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from keras_convnets.errors import UserError
from keras_convnets.images.preprocessing import UNIT_SCALED
from keras_convnets.weights import downloads
from keras_convnets.weights.downloads import DownloadError, cache_folder, download
from keras_convnets.weights.record import WeightsRecord

DATA = random.Random(0).randbytes(300_000)
WRONG = random.Random(1).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
HALF = 150_000


class Server(http.server.ThreadingHTTPServer):
    """Answers one request after the other as `behaviours` say, the last of them for good, and notes what was asked."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours, self.requests, self.lock = [good], [], threading.Lock()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/net.onnx"

    def does(self, *behaviours):
        self.behaviours = list(behaviours)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        server = self.server
        self.asked = SimpleNamespace(
            path=self.path, range=self.headers["Range"], agent=self.headers["User-Agent"], sent=0
        )
        with server.lock:
            server.requests.append(self.asked)
            behave = server.behaviours.pop(0) if len(server.behaviours) > 1 else server.behaviours[0]
        with contextlib.suppress(ConnectionError):
            behave(self)

    def give(self, data, status=200, stop=None, length=None, headers=(), pause=0.0):
        """Announce all of the data, or `length`, and send it up to `stop`."""
        self.send_response(status)
        for header, value in headers:
            self.send_header(header, value)
        if length is not False:
            self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        for at in range(0, len(data[:stop]), 10_000):
            block = data[:stop][at : at + 10_000]
            self.asked.sent += len(block)  # counted first: the client may look as soon as it has the bytes
            self.wfile.write(block)
            time.sleep(pause)

    def log_message(self, *arguments):
        pass


def good(handler, data=DATA, **how):
    """Give the file, or the range that was asked for."""
    if handler.asked.range is None:
        return handler.give(data, **how)
    start = int(re.fullmatch(r"bytes=(\d+)-", handler.asked.range)[1])
    if start >= len(data):
        return handler.give(b"", 416, headers=[("Content-Range", f"bytes */{len(data)}")])
    answered = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return handler.give(data[start:], 206, headers=[("Content-Range", answered)], **how)


def cut(handler):
    good(handler, stop=HALF)


def dead(handler):
    """Announce what is missing and send none of it."""
    good(handler, stop=0)


def ignores_range(handler):
    handler.give(DATA)


def slow(handler):
    good(handler, pause=0.03)


def wrong(handler):
    good(handler, data=WRONG)


def status(code):
    return lambda handler: handler.give(b"sorry", code)


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    """A temporary cache, no environment variables, no proxy and short retry delays."""
    for name in (
        "KERAS_CONVNETS_MIRRORS",
        "KERAS_CONVNETS_OFFLINE",
        "http_proxy",
        "HTTP_PROXY",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "RETRY_DELAYS", (0.01, 0.01))


@pytest.fixture
def start():
    """Start a server; all are stopped at the end."""
    with contextlib.ExitStack() as stack:

        def one(*behaviours):
            server = stack.enter_context(Server())
            stack.callback(server.shutdown)
            server.does(*behaviours or (good,))
            return server

        yield one


def record(*servers, data=DATA):
    locations = tuple(server if isinstance(server, str) else server.url for server in servers)
    return record_of(locations, len(data), hashlib.sha256(data).hexdigest())


def record_of(locations, size, sha256):
    return WeightsRecord("AlexNet", "imagenet", "net.onnx", locations, size, sha256, UNIT_SCALED, (), "", "")


def target():
    return cache_folder() / "net.onnx"


def part():
    return cache_folder() / f"net.onnx.{SHA256[:12]}.part"


def assert_right(path):
    assert path == target() and path.read_bytes() == DATA
    assert not list(cache_folder().glob("*.part"))


def leave_part(data):
    cache_folder().mkdir(parents=True)
    part().write_bytes(data)


def failing(*servers, error=DownloadError):
    """Return the error message of a failing download: it names the file, its sha256 and where to put it."""
    with pytest.raises(error) as raised:
        download(record(*servers))
    text = str(raised.value)
    assert "net.onnx" in text and SHA256 in text and str(target()) in text and "\n" not in text
    assert text.endswith(".") and ". " not in text
    assert not target().exists()
    return text


def test_a_file_is_downloaded_once(start, caplog):
    server = start()
    caplog.set_level(logging.INFO, "keras_convnets")
    assert not cache_folder().exists()
    for _ in range(2):
        assert_right(download(record(server)))
    assert [(asked.range, asked.sent) for asked in server.requests] == [(None, len(DATA))]
    assert server.requests[0].agent.startswith("keras-convnets/")
    assert [text.split()[0] for text in caplog.messages] == ["downloading", "downloaded"]


def test_the_cache_is_keras_own(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "home" / "models" / "keras_convnets"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in ("", None):
        monkeypatch.delenv("KERAS_HOME") if unset is None else monkeypatch.setenv("KERAS_HOME", unset)
        assert cache_folder() == tmp_path / ".keras" / "models" / "keras_convnets"


def test_a_lost_connection_is_resumed_where_it_stopped(start):
    server = start(cut, dead, good)
    assert_right(download(record(server)))
    assert [asked.range for asked in server.requests] == [None] + 2 * [f"bytes={HALF}-"]
    assert server.requests[-1].sent == len(DATA) - HALF


def test_retries_that_make_progress_are_not_counted(start):
    def little(handler):
        good(handler, stop=40_000)

    server = start(little)
    assert_right(download(record(server)))
    assert len(server.requests) == 8 > len(downloads.RETRY_DELAYS) + 1


def test_retries_are_limited_and_a_later_call_resumes(start):
    broken, well = start(cut, dead), start()
    assert "150,000 of 300,000 bytes" in failing(broken)
    assert len(broken.requests) == 1 + len(downloads.RETRY_DELAYS)
    assert part().read_bytes() == DATA[:HALF]
    assert_right(download(record(well)))
    assert [(asked.range, asked.sent) for asked in well.requests] == [(f"bytes={HALF}-", len(DATA) - HALF)]


def test_the_next_url_resumes_where_the_first_stopped(start):
    broken, well = start(cut, dead), start()
    assert_right(download(record(broken, well)))
    assert [asked.range for asked in well.requests] == [f"bytes={HALF}-"]


def test_retries_are_limited_for_a_server_that_always_restarts(start):
    server = start(lambda handler: handler.give(DATA, stop=HALF))
    failing(server)
    assert len(server.requests) == 1 + len(downloads.RETRY_DELAYS)


def other_range(handler):
    if handler.asked.range is None:
        return handler.give(DATA)
    return handler.give(DATA[7:], 206, headers=[("Content-Range", f"bytes 7-{len(DATA) - 1}/{len(DATA)}")])


def unnamed_range(handler):
    handler.give(DATA, 206 if handler.asked.range else 200)


def no_ranges(handler):
    handler.give(b"" if handler.asked.range else DATA, 416 if handler.asked.range else 200)


@pytest.mark.parametrize("behaviour", [ignores_range, other_range, unnamed_range, no_ranges])
def test_a_server_that_does_not_resume_sends_all_of_it(start, behaviour):
    leave_part(DATA[:HALF])
    server = start(behaviour)
    assert_right(download(record(server)))
    assert server.requests[0].range == f"bytes={HALF}-" and server.requests[-1].sent == len(DATA)


def test_another_range_than_requested_is_refused(start):
    headers = [("Content-Range", f"bytes 7-{len(DATA) - 1}/{len(DATA)}")]
    assert "range" in failing(start(lambda handler: handler.give(DATA[7:], 206, headers=headers)))


@pytest.mark.parametrize("left", [WRONG, WRONG[:HALF], WRONG + b"x"], ids=["whole", "half", "too long"])
def test_a_wrong_partial_download_is_restarted_from_the_same_url(start, left):
    leave_part(left)
    server = start()
    assert_right(download(record(server)))
    assert (server.requests[-1].range, server.requests[-1].sent) == (None, len(DATA))


def test_a_whole_part_is_verified_without_a_request(start):
    leave_part(DATA)
    server = start()
    assert_right(download(record(server)))
    assert server.requests == []


def test_a_wrong_file_is_never_seen(start):
    server = start(wrong)
    assert hashlib.sha256(WRONG).hexdigest() in failing(server)
    assert len(server.requests) == 1 and not part().exists()
    assert_right(download(record(server, start())))


def unannounced(data):
    return lambda handler: handler.give(data, length=False)


def test_a_file_of_no_announced_length_is_taken(start):
    assert_right(download(record(start(unannounced(DATA)))))


def test_a_longer_file_is_stopped_early(start):
    server = start(unannounced(DATA + WRONG * 100))
    assert "more than 300,000 bytes" in failing(server)
    assert server.requests[0].sent < 20_000_000 and not part().exists()


@pytest.mark.parametrize("other", [DATA[:HALF], DATA + b"x"], ids=["shorter", "longer"])
def test_an_answer_of_another_length_leaves_the_part(start, other):
    leave_part(DATA[:1000])
    server = start(lambda handler: good(handler, data=other))
    assert f"{len(other):,} bytes" in failing(server) and part().read_bytes() == DATA[:1000]
    assert_right(download(record(server, start())))


def test_a_web_page_leaves_the_part(start):
    leave_part(DATA[:1000])
    page = [("Content-Type", "text/html; charset=utf-8")]
    failing(start(lambda handler: handler.give(b"<p>log in", length=False, headers=page)))
    assert part().read_bytes() == DATA[:1000]


def test_a_redirect_is_followed_and_keeps_the_range(start):
    leave_part(DATA[:HALF])
    well = start()
    server = start(lambda handler: handler.give(b"", 302, headers=[("Location", well.url)]))
    assert_right(download(record(server)))
    assert [asked.range for asked in well.requests] == [f"bytes={HALF}-"]


@pytest.mark.parametrize("code", [403, 404, 500, 503])
def test_the_next_url_is_tried_and_when_all_fail_the_reasons_are_reported(start, code):
    server = start(status(code))
    text = failing(server)
    assert f"{server.url} (HTTP {code} " in text and len(server.requests) == 1
    assert_right(download(record(server, start())))


def test_connection_refused(start):
    with Server() as server:
        url = server.url
        server.shutdown()
    assert f"{url} (Connection refused)" in failing(url)
    assert_right(download(record(url, start())))


def test_a_silent_server_times_out(start, monkeypatch):
    monkeypatch.setattr(downloads, "TIMEOUT", 0.1)
    assert "(timed out after 0 of" in failing(start(lambda handler: time.sleep(0.3)))
    assert "(timed out after 0 of" in failing(start(lambda handler: good(handler, stop=10_000) or time.sleep(0.3)))


def test_mirrors_replace_the_records_urls(start, monkeypatch, tmp_path):
    own, mirror = start(), start(status(404), good)
    base = mirror.url.removesuffix("net.onnx")
    monkeypatch.setenv("KERAS_CONVNETS_MIRRORS", f"{base}a/\n {base}get?name={{file}}&x")
    assert_right(download(record(own)))
    assert [asked.path for asked in mirror.requests] == ["/a/net.onnx", "/get?name=net.onnx&x"]
    assert own.requests == []


def test_a_mirror_may_be_a_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_CONVNETS_MIRRORS", (tmp_path / "mirror").as_uri())
    text = failing("http://127.0.0.1:1/")
    assert "No such file" in text and "127.0.0.1" not in text
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "net.onnx").write_bytes(DATA)
    part().write_bytes(DATA[:HALF])
    assert_right(download(record("http://127.0.0.1:1/")))


@pytest.mark.parametrize(
    "base", ["/srv/models", "ftp://host/x", "http:///x", "http://host:port/", "http://[x/", "host"]
)
def test_an_invalid_mirror_is_reported(start, monkeypatch, base):
    server = start()
    monkeypatch.setenv("KERAS_CONVNETS_MIRRORS", f"{server.url} {base}")
    with pytest.raises(UserError, match=f"KERAS_CONVNETS_MIRRORS holds {re.escape(repr(base))}; it takes .*file://"):
        download(record(server))
    assert server.requests == [] and not cache_folder().exists()


def test_offline_makes_no_request(start, monkeypatch):
    server, other = start(), start()
    monkeypatch.setenv("KERAS_CONVNETS_OFFLINE", "1")
    text = failing(server, other, error=UserError)
    assert "KERAS_CONVNETS_OFFLINE" in text and f"{server.url} or {other.url}" in text
    assert server.requests == other.requests == []
    cache_folder().mkdir(parents=True)
    target().write_bytes(DATA)
    assert_right(download(record(server)))
    target().write_bytes(WRONG)
    with pytest.raises(UserError):
        download(record(server))


@pytest.mark.parametrize("value", ["", "0", "false", "False"])
def test_not_offline(start, monkeypatch, value):
    monkeypatch.setenv("KERAS_CONVNETS_OFFLINE", value)
    assert_right(download(record(start())))


def test_a_damaged_file_in_the_cache_is_replaced(start, caplog):
    cache_folder().mkdir(parents=True)
    target().write_bytes(WRONG)
    with pytest.raises(DownloadError):
        download(record(start(status(404))))
    assert target().read_bytes() == WRONG  # it is kept until it can be replaced
    assert "does not have the sha256" in caplog.text
    assert_right(download(record(start())))


def test_disk_space_is_checked_before_the_download(start, monkeypatch):
    server = start()
    usage = SimpleNamespace(free=len(DATA) - HALF)
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda folder: usage)
    assert "300,000 more bytes are needed and 150,000 are free" in failing(server)
    assert server.requests == []
    part().write_bytes(DATA[:HALF])
    assert_right(download(record(server)))


def test_a_disk_that_becomes_full_leaves_the_part(start, monkeypatch):
    server, other, limit = start(), start(), 2 * downloads.CHUNK_BYTES

    @contextlib.contextmanager
    def small_disk(path, mode="r", **options):
        with open(path, mode, **options) as file:
            write = file.write

            def full(block):
                if file.tell() + len(block) > limit:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return write(block)

            yield SimpleNamespace(write=full, fileno=file.fileno) if str(path) == str(part()) else file

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "open", small_disk, raising=False)
        text = failing(server, other)
    assert "No space left on device" in text and "300,000 bytes" in text and "KERAS_HOME" in text
    assert part().read_bytes() == DATA[:limit]
    assert len(server.requests) == 1 and other.requests == []
    assert_right(download(record(other)))
    assert other.requests[0].range == f"bytes={limit}-"


def test_a_file_is_on_the_disk_before_it_has_its_name(start, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        call = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *what, name=name, call=call: (done.append(name), call(*what)))
    assert_right(download(record(start())))
    assert done == ["fsync", "replace"]


def test_a_cache_that_cant_be_written_is_reported(start):
    cache_folder().parent.mkdir(parents=True)
    cache_folder().write_text("a file in the folder's place")
    assert "can't be stored in" in failing(start())


def wait_until(happens):
    end = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.005)


def begun():
    return part().exists() and part().stat().st_size > 0


def test_ctrl_c_leaves_the_part(start):
    server = start(slow)
    # A shell's background jobs have the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=lambda: (wait_until(begun), os.kill(os.getpid(), signal.SIGINT)), daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            download(record(server))
    finally:
        signal.signal(signal.SIGINT, before)
    left = part().read_bytes()
    assert 0 < len(left) < len(DATA) and DATA.startswith(left) and not target().exists()
    server.does(good)
    assert_right(download(record(server)))
    assert server.requests[-1].range == f"bytes={len(left)}-"


def process(server):
    """Start a process that downloads and prints the path, then its log."""
    script = (
        "import logging, sys; from keras_convnets.weights.record import WeightsRecord;"
        "from keras_convnets.weights.downloads import download;"
        "logging.basicConfig(level='INFO', stream=sys.stdout, format='%(message)s');"
        f"record = WeightsRecord('', '', 'net.onnx', ({server.url!r},), {len(DATA)}, {SHA256!r}, None, (), '', '');"
        "print(download(record));"
        "sys.exit('keras' in sys.modules)"
    )
    return subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )


def test_a_killed_process_is_resumed(start):
    server = start(slow)
    killed = process(server)
    wait_until(begun)
    killed.kill()
    assert killed.wait() == -signal.SIGKILL and not target().exists()
    killed.communicate()
    left = part().stat().st_size
    assert 0 < left < len(DATA)
    server.does(good)
    assert_right(download(record(server)))
    assert (server.requests[-1].range, server.requests[-1].sent) == (f"bytes={left}-", len(DATA) - left)


def test_of_two_processes_one_downloads_and_the_other_waits(start):
    release = threading.Event()

    def held(handler):
        good(handler, stop=HALF)
        release.wait(20)
        handler.wfile.write(DATA[HALF:])

    server = start(held)
    first = process(server)
    wait_until(begun)
    second = process(server)
    assert "waiting for it" in second.stdout.readline()
    assert not target().exists()
    release.set()
    for one in (first, second):
        text, errors = one.communicate()
        assert (one.returncode, errors, text.splitlines()[-1]) == (0, "", str(target()))
    assert len(server.requests) == 1
    assert_right(target())


def test_a_waiting_process_downloads_if_the_first_one_is_killed(start):
    server = start(slow)
    killed = process(server)
    wait_until(begun)
    threading.Timer(0.1, killed.kill).start()
    server.does(good)
    assert_right(download(record(server)))
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL and len(server.requests) == 2
    assert server.requests[1].range is not None


@pytest.mark.parametrize("terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_only(start, monkeypatch, capsys, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("COLUMNS", "120")
    download(record(start()))
    screen = capsys.readouterr()
    assert ("net.onnx" in screen.err and "300.0/300.0 kB" in screen.err) == terminal
    assert not screen.out and (terminal or not screen.err)


def test_importing_creates_nothing_and_loads_no_keras(tmp_path, run_python):
    script = "import sys, keras_convnets.weights.downloads; sys.exit(any(x in sys.modules for x in ('keras', 'rich')))"
    assert run_python("-c", script, cwd=tmp_path).returncode == 0
    assert not Path(os.environ["KERAS_HOME"]).exists()


PREFIX = SHA256[:8]


def test_a_size_that_no_record_states_is_the_servers(start):
    server = start()
    server.does(good)
    assert_right(download(record_of((server.url,), None, PREFIX)))


def test_a_download_of_unstated_size_is_resumed(start):
    server = start()
    part().parent.mkdir(parents=True)
    path = part().with_name(f"net.onnx.{PREFIX}.part")
    path.write_bytes(DATA[:HALF])
    assert_right(download(record_of((server.url,), None, PREFIX)))
    assert server.requests[-1].range == f"bytes={HALF}-"


def test_a_server_that_states_no_size_where_the_record_does_not_either(start):
    server = start()
    server.does(lambda handler: handler.give(DATA, length=False))
    with pytest.raises(DownloadError, match=f"does not say how many bytes.*its sha256 begins with {PREFIX}"):
        download(record_of((server.url,), None, PREFIX))


def test_the_first_digits_of_a_sha256_refuse_another_file(start):
    server = start()
    server.does(lambda handler: good(handler, WRONG))
    with pytest.raises(DownloadError, match="its file has the sha256"):
        download(record_of((server.url,), None, PREFIX))
    assert not target().exists()
