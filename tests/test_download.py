"""download_data.py against a server on loopback. Run: pytest tests/test_download.py."""

import hashlib
import http.server
import threading
import zipfile

import pytest

from scripts.download_data import MEMBERS, main


@pytest.fixture
def server(tmp_path):
    """(url, md5, content, ranges asked for) of a zip like GroupLens's."""
    path = tmp_path / "served.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for name in (*MEMBERS, "../escape.txt"):
            archive.writestr(f"ml-1m/{name}", f"content of {name}\n" * 1000)
    content, asked = path.read_bytes(), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            wanted = self.headers.get("Range")
            asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start:])

        def log_message(self, *args):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{httpd.server_port}/z"
    yield url, hashlib.md5(content).hexdigest(), content, asked
    httpd.shutdown()
    httpd.server_close()


def test_the_zip_is_fetched_checked_and_unpacked_by_name_alone(server, tmp_path, capsys):
    url, md5, _, _ = server
    main(tmp_path / "data", url, md5)
    for name in MEMBERS:
        text = (tmp_path / "data" / "ml-1m" / name).read_text()
        assert text.startswith(f"content of {name}")
    assert not list(tmp_path.rglob("escape.txt"))
    main(tmp_path / "data", "http://127.0.0.1:1/never", md5)
    assert "is already there" in capsys.readouterr().out


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    url, md5, content, asked = server
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ml-1m.zip.part").write_bytes(content[:70])
    main(tmp_path / "data", url, md5)
    assert asked == ["bytes=70-"]
    assert (tmp_path / "data" / "ml-1m.zip").read_bytes() == content


def test_another_file_is_refused_and_no_network_is_one_clear_line(server, tmp_path):
    nowhere = "http://127.0.0.1:1/z"
    for url, told in ((server[0], "has md5 .*, expected 0000"),
                      (nowhere, f"cannot reach {nowhere} .* run this again")):
        with pytest.raises(SystemExit, match=told):
            main(tmp_path / "data", url, "0000")
        assert not list((tmp_path / "data").iterdir())
