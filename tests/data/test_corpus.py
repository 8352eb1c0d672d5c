"""The corpus: where it is looked for, what is refused, and a harmless download."""

import errno
import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from posttrain.data import corpus
from posttrain.data.corpus import Corpus, CorpusError, load
from posttrain.data.corpus import checkout as find_checkout
from posttrain.data.standin import generate_play
from posttrain.tokenizer import ALPHABET

# A short text plays the part of tinyshakespeare, another that of the stand-in.
REAL = generate_play(12_000, seed=2)
FAKE = generate_play(11_000, seed=3)
OWN = generate_play(13_000, seed=4)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty checkout, with nothing beside it and no server to download from."""
    home = tmp_path / "checkout"
    home.mkdir()
    monkeypatch.setattr(corpus, "checkout", lambda: home)
    monkeypatch.setattr(corpus, "CANONICAL_SHA256", digest(REAL))
    monkeypatch.setattr(corpus, "URL", "http://127.0.0.1:1/")
    monkeypatch.setattr(corpus, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(corpus, "DOWNLOAD_SECONDS", 0.8)
    monkeypatch.setattr(corpus.standin, "generate_play", lambda: FAKE)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("POSTTRAIN_CORPUS", raising=False)
    monkeypatch.delenv("POSTTRAIN_OFFLINE", raising=False)
    return home


@pytest.fixture
def write(tmp_path):
    """Writes a file under the temporary folder and returns its path."""

    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def serve(monkeypatch):
    """Starts a server that answers by a function; returns the paths asked for."""
    servers = []

    def start(answer):
        asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                asked.append(self.path)
                try:
                    answer(self)
                except OSError:
                    pass  # the client has gone, as it should

            def log_message(self, *args):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        threading.Thread(
            target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        ).start()
        servers.append(server)
        monkeypatch.setattr(
            corpus, "URL", f"http://127.0.0.1:{server.server_port}/input.txt"
        )
        return asked

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def body(data, length=None):
    """An answer with the bytes, and with a Content-Length that may lie."""

    def answer(handler):
        handler.send_response(200)
        handler.send_header(
            "Content-Length", str(len(data) if length is None else length)
        )
        handler.end_headers()
        handler.wfile.write(data)

    return answer


def drip(data):
    """Send a byte at a time, each soon enough, the whole far too late."""

    def answer(handler):
        for i in range(len(data)):
            handler.wfile.write(data[i : i + 1])
            time.sleep(0.05)

    return answer


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


# The corpus itself.


def test_the_alphabet_is_karpathys():
    assert len(ALPHABET) == len(set(ALPHABET)) == 65 and sorted(ALPHABET) == list(
        ALPHABET
    )


def test_train_and_validation_are_nine_tenths_and_one_tenth():
    text = "".join(ALPHABET[i % 65] for i in range(1_003))
    split = Corpus(text, "a test", "")
    assert len(split.train) == int(0.9 * 1_003) == 902
    assert split.train + split.validation == text


def test_a_corpus_shows_its_source_and_not_its_text():
    shown = repr(Corpus("To learn", "a test", "0a1b"))
    assert "a test" in shown and "0a1b" in shown and "learn" not in shown


# The order of the search.


def test_every_place_comes_before_the_next(write, serve, home, monkeypatch):
    serve(body(REAL.encode()))
    write("checkout/data/tinyshakespeare.txt", REAL)
    write("shared/data/tinyshakespeare.txt", REAL)
    monkeypatch.setenv(
        "POSTTRAIN_CORPUS", str(write("environment.txt", OWN + "Environment.\n"))
    )
    assert load(write("argument.txt", OWN)).source == "argument.txt"
    assert load().source == "environment.txt"
    monkeypatch.delenv("POSTTRAIN_CORPUS")
    assert load().source == "tinyshakespeare (data/tinyshakespeare.txt)"
    (home / "data/tinyshakespeare.txt").unlink()
    assert load().source == "tinyshakespeare (../shared/data/tinyshakespeare.txt)"
    (home / "../shared/data/tinyshakespeare.txt").unlink()
    assert load().source == "tinyshakespeare (downloaded)"
    assert load().source == "tinyshakespeare (data/tinyshakespeare.txt)"
    (home / "data/tinyshakespeare.txt").unlink()
    assert load(download=False).source == "built-in stand-in"


@pytest.mark.parametrize("place", ["checkout/data", "shared/data"])
def test_a_file_in_a_known_place_is_read_whole_and_needs_no_server(write, serve, place):
    asked = serve(body(REAL.encode()))
    write(f"{place}/tinyshakespeare.txt", REAL)
    found = load()
    assert (found.text, found.sha256, asked) == (REAL, digest(REAL), [])


def test_the_source_names_no_folder_of_this_machine(write, tmp_path):
    write("shared/data/tinyshakespeare.txt", REAL)
    assert str(tmp_path) not in load().source
    assert str(tmp_path) not in load(write("deep/down/own.txt", OWN)).source


@pytest.mark.parametrize(
    "place", ["data/tinyshakespeare.txt", "../shared/data/tinyshakespeare.txt"]
)
@pytest.mark.parametrize(
    "damage", [REAL[:-1], REAL.replace("e", "a", 1), "", REAL.replace("\n", "\r\n")]
)
def test_a_damaged_file_is_named_passed_over_and_kept(
    write, home, caplog, place, damage
):
    path = write(home / place, damage)
    assert load(download=False).source == "built-in stand-in"
    assert [r.levelno for r in caplog.records] == [logging.WARNING] * 2
    assert place in caplog.messages[0] and "damaged" in caplog.messages[0]
    assert path.read_bytes() == damage.encode()


def test_a_damaged_file_in_the_checkout_does_not_hide_the_shared_one(write, caplog):
    write("checkout/data/tinyshakespeare.txt", REAL[1:])
    write("shared/data/tinyshakespeare.txt", REAL)
    assert load().source == "tinyshakespeare (../shared/data/tinyshakespeare.txt)"
    assert len(caplog.records) == 1


def test_a_folder_in_the_place_of_the_file_is_passed_over(home, caplog):
    (home / "data/tinyshakespeare.txt").mkdir(parents=True)
    assert load(download=False).source == "built-in stand-in"
    assert "data/tinyshakespeare.txt cannot be read" in caplog.messages[0]


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_the_word_standin_selects_the_stand_in_without_a_warning(
    write, monkeypatch, caplog, how
):
    write("checkout/data/tinyshakespeare.txt", REAL)
    if how == "environment":
        monkeypatch.setenv("POSTTRAIN_CORPUS", "standin")
    chosen = load("standin" if how == "argument" else None)
    assert (chosen.text, chosen.source, chosen.sha256) == (
        FAKE,
        "built-in stand-in",
        digest(FAKE),
    )
    assert caplog.records == []


def test_an_empty_variable_counts_as_unset(write, monkeypatch):
    write("checkout/data/tinyshakespeare.txt", REAL)
    monkeypatch.setenv("POSTTRAIN_CORPUS", "")
    assert load().text == REAL


def test_a_tilde_is_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write("own.txt", OWN)
    assert load("~/own.txt").text == OWN
    with pytest.raises(CorpusError, match="does not exist"):
        load("~nobody-of-this-name/own.txt")


# The checkout.


def test_the_checkout_is_the_folder_with_our_project_file(write, tmp_path, monkeypatch):
    write("a/pyproject.toml", '[project]\nname = "posttrain"\n')
    write("a/code/pyproject.toml", '[project]\nname = "posttrain-extras"\n')
    monkeypatch.setattr(
        corpus, "__file__", str(tmp_path / "a/code/posttrain/data/corpus.py")
    )
    assert find_checkout() == (tmp_path / "a").resolve()
    monkeypatch.setattr(
        corpus, "__file__", str(tmp_path / "b/site-packages/posttrain/data/corpus.py")
    )
    assert find_checkout() is None


def test_an_installed_package_uses_the_current_folder(write, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "checkout", lambda: None)
    monkeypatch.chdir(tmp_path)
    write("data/tinyshakespeare.txt", REAL)
    assert load().source == "tinyshakespeare (data/tinyshakespeare.txt)"


# A text that the reader names is used or refused, never skipped.


def test_crlf_and_a_byte_order_mark_are_converted(write):
    path = write("windows.txt", b"\xef\xbb\xbf" + OWN.replace("\n", "\r\n").encode())
    assert load(path).text == OWN
    assert load(path).sha256 == digest(OWN)


def test_a_named_text_need_not_be_tinyshakespeare(write, caplog):
    assert load(str(write("own.txt", OWN))).text == OWN
    assert caplog.records == []


LONG = OWN[:10_000]
REFUSED = {
    "empty": (b"", "is empty", "at least 10,000"),
    "blank": (b"\n \n" * 9_000, "is empty", "at least 10,000"),
    "short": (LONG[:-1], "has 9,999 characters", "at least 10,000"),
    "binary": (LONG.encode() + b"\0\1\2", "NUL bytes", "Save it as UTF-8"),
    "UTF-16": (LONG.encode("utf-16"), "NUL bytes", "Save it as UTF-8"),
    "Latin-1": (
        b"x" * 12_345 + "é".encode("latin-1") + b"x",
        "0xE9 at offset 12,345",
        "Save it as UTF-8",
    ),
    "BOM and Latin-1": (
        b"\xef\xbb\xbfx\xe9" + LONG.encode(),
        "0xE9 at offset 4",
        "Save it as UTF-8",
    ),
    "cut inside a character": (
        LONG.encode() + b"\xe2\x80",
        "0xE2 at offset 10,000",
        "Save it as UTF-8",
    ),
    "quotes": (
        "Ay\nNo\n\u201cAy\u201d\n" + LONG,
        "'\u201c' (U+201C) in line 3",
        "typographic quotes by '",
    ),
    "several": (
        "1\n2\n4\n5\n6\n" + LONG,
        "'1' (U+0031) in line 1, '2' (U+0032) in line 2",
        "and 2 more",
    ),
    "three": (
        "1\n2\n4\n" + LONG,
        "'4' (U+0034) in line 3. Replace",
        "CRLF line ends are converted",
    ),
    "tab": (LONG + "\t", r"'\t' (U+0009) in line", "Replace them"),
    "lone carriage return": (LONG + "\r.", r"'\r' (U+000D) in line", "Replace them"),
    "second byte-order mark": (
        "\ufeff\ufeff" + LONG,
        r"'\ufeff' (U+FEFF) in line 1",
        "Replace them",
    ),
}


@pytest.mark.parametrize("how", ["argument", "environment"])
@pytest.mark.parametrize("case", REFUSED)
def test_an_unusable_text_is_refused_with_the_reason_and_the_way_out(
    write, monkeypatch, caplog, case, how
):
    content, reason, way_out = REFUSED[case]
    write("checkout/data/tinyshakespeare.txt", REAL)
    path = write("mine.txt", content)
    monkeypatch.setenv("POSTTRAIN_CORPUS", str(path))
    with pytest.raises(CorpusError) as error:
        load(path if how == "argument" else None)
    message = str(error.value)
    assert message.startswith(str(path)) and reason in message and way_out in message
    assert "\n" not in message and caplog.records == []


@pytest.mark.parametrize("how", ["argument", "environment"])
@pytest.mark.parametrize(
    "name, reason", [("nowhere.txt", "does not exist"), ("checkout", "is a folder")]
)
def test_a_path_without_a_file_is_refused(
    write, tmp_path, monkeypatch, how, name, reason
):
    write("checkout/data/tinyshakespeare.txt", REAL)
    path = tmp_path / name
    monkeypatch.setenv("POSTTRAIN_CORPUS", str(path))
    with pytest.raises(CorpusError, match=reason) as error:
        load(path if how == "argument" else None)
    assert str(path) in str(error.value)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CorpusError, match="not a regular file"):
        load(tmp_path / "pipe")


def test_an_unreadable_file_is_refused(write, monkeypatch):
    def refuse(self):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(
        CorpusError, match=r"own.txt cannot be read \(Permission denied\)"
    ):
        load(write("own.txt", OWN))


def test_the_shortest_text_is_accepted(write):
    assert load(write("own.txt", LONG)).text == LONG


def test_a_corpus_error_is_a_value_error():
    assert issubclass(CorpusError, ValueError)


# The download.


def test_a_download_is_kept_for_the_next_time(serve, home, caplog):
    asked = serve(body(REAL.encode()))
    first, second = load(), load()
    assert (
        (first.text, first.sha256)
        == (second.text, second.sha256)
        == (REAL, digest(REAL))
    )
    assert asked == ["/input.txt"] and caplog.records == []
    assert names(home) == ["tinyshakespeare.txt"]
    assert (home / "data/tinyshakespeare.txt").read_bytes() == REAL.encode()


def test_the_kept_file_has_ordinary_permissions(serve, home, write):
    serve(body(REAL.encode()))
    load()
    ordinary = write("ordinary.txt", "x").stat().st_mode
    assert (home / "data/tinyshakespeare.txt").stat().st_mode == ordinary


def silent(handler):
    time.sleep(1.5)


FAILING = {
    "cut short": (
        body(REAL.encode()[:5_000], length=len(REAL)),
        "cut short or altered",
    ),
    "cut short, and claimed whole": (
        body(REAL.encode()[:5_000]),
        "cut short or altered",
    ),
    "altered": (body(REAL.replace("e", "a", 1).encode()), "cut short or altered"),
    "empty": (body(b""), "cut short or altered"),
    "a login page": (
        body(b"<html>Accept the terms of this hotel</html>"),
        "cut short or altered",
    ),
    "longer": (body(REAL.encode() + b"\n"), "cut short or altered"),
    "endless": (body(b"x" * 3_000_000, length=10**15), "cut short or altered"),
    "not found": (
        lambda handler: handler.send_error(404, "Gone with the wind"),
        "404: Gone with the wind",
    ),
    "server error": (lambda handler: handler.send_error(503), "503"),
    "a long message": (lambda handler: handler.send_error(404, "x" * 5_000), "404"),
    "not HTTP": (
        lambda handler: handler.wfile.write(b"Good morrow\r\n\r\n"),
        "Good morrow",
    ),
    "closed at once": (lambda handler: None, "closed connection"),
    "silent": (silent, "timed out"),
    "dripping": (drip(b"HTTP/1.0 200 OK\r\n\r\n" + REAL.encode()), "within 0.8 s"),
    "dripping headers": (
        drip(b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 50),
        "within 0.8 s",
    ),
}


@pytest.mark.parametrize("case", FAILING)
def test_a_failing_download_leaves_the_stand_in_one_line_and_no_file(
    serve, home, caplog, case
):
    answer, reason = FAILING[case]
    asked = serve(answer)
    start = time.monotonic()
    assert load().text == FAKE
    assert time.monotonic() - start < 2
    assert asked and names(home) == []
    (message,) = caplog.messages
    assert (
        reason in message and "stand-in" in message and "POSTTRAIN_CORPUS=" in message
    )
    assert "\n" not in message and len(message) < 250


def test_no_server_leaves_the_stand_in(home, caplog):
    assert load().source == "built-in stand-in"
    assert len(caplog.records) == 1 and names(home) == []


@pytest.mark.parametrize("url", ["", "not an address", "http://", "http://a..b/"])
def test_a_broken_address_leaves_the_stand_in(monkeypatch, caplog, url):
    monkeypatch.setattr(corpus, "URL", url)
    assert load().source == "built-in stand-in"
    assert len(caplog.records) == 1


@pytest.mark.parametrize("value, tries", [("1", 0), ("yes", 0), ("0", 1), ("", 1)])
def test_offline_means_no_request(serve, monkeypatch, value, tries):
    asked = serve(body(REAL.encode()))
    monkeypatch.setenv("POSTTRAIN_OFFLINE", value)
    assert load().text == (REAL if tries else FAKE)
    assert len(asked) == tries


def test_no_download_means_no_request(serve, caplog):
    asked = serve(body(REAL.encode()))
    assert load(download=False).text == FAKE
    assert asked == [] and "switched off" in caplog.text


def test_a_download_does_not_replace_a_file_it_did_not_write(serve, write):
    path = write("checkout/data/tinyshakespeare.txt", OWN)
    serve(body(REAL.encode()))
    assert load().source == "tinyshakespeare (downloaded)"
    assert path.read_text() == OWN


def refusing(code):
    def refuse(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return refuse


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES])
@pytest.mark.parametrize("step", ["open", "fsync", "replace", "mkdir"])
def test_a_folder_that_refuses_the_file_keeps_the_download(
    serve, home, monkeypatch, caplog, step, code
):
    serve(body(REAL.encode()))
    with monkeypatch.context() as patch:
        if step == "open":
            patch.setattr(corpus, "open", refusing(code), raising=False)
        elif step == "mkdir":
            patch.setattr(Path, "mkdir", refusing(code))
        else:
            patch.setattr(os, step, refusing(code))
        found = load()
    assert (found.text, found.source) == (REAL, "tinyshakespeare (downloaded)")
    assert names(home) == [] and caplog.records == []


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_an_interrupted_write_leaves_nothing(serve, home, monkeypatch, step):
    def interrupt(*args):
        raise KeyboardInterrupt

    serve(body(REAL.encode()))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, step, interrupt)
        load()
    assert names(home) == []


def test_the_file_is_whole_when_it_appears(serve, home, monkeypatch):
    seen = []
    replace = os.replace

    def noting(temporary, target):
        seen.append(
            (
                Path(temporary).parent,
                Path(temporary).read_bytes(),
                Path(target).exists(),
            )
        )
        replace(temporary, target)

    monkeypatch.setattr(os, "replace", noting)
    serve(body(REAL.encode()))
    load()
    assert seen == [(home / "data", REAL.encode(), False)]


def test_downloads_at_the_same_time_do_not_hurt_each_other(serve, home):
    serve(body(REAL.encode()))
    texts = []
    threads = [
        threading.Thread(target=lambda: texts.append(load().text)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert texts == [REAL] * 8 and names(home) == ["tinyshakespeare.txt"]


def test_a_reader_who_set_up_no_logging_sees_the_line_once(tmp_path):
    program = (
        "from pathlib import Path; from posttrain.data import corpus; "
        f"corpus.checkout = lambda: Path({str(tmp_path)!r}); "
        "print(corpus.load().source)"
    )
    environment = {
        name: value for name, value in os.environ.items() if name != "POSTTRAIN_CORPUS"
    }
    environment |= {
        "POSTTRAIN_OFFLINE": "1",
        "PYTHONPATH": str(Path(corpus.__file__).parents[2]),
    }
    result = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "built-in stand-in\n"
    assert result.stderr.count("\n") == 1 and "POSTTRAIN_CORPUS=" in result.stderr
