"""No test of data touches the real network or the user's cache; a server on the loopback."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache folder, and no other host than this one."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("MINICST_DATA", str(folder))
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    resolve = socket.getaddrinfo

    def only_here(host, *rest, **named):
        if host not in ("127.0.0.1", "localhost"):
            raise AssertionError(f"a test asks for the real host {host}")
        return resolve(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)
    return folder


class Server:
    """Serves `files`: path to (status, body, length that the header says)."""

    def __init__(self):
        self.files = {}
        self.asked = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                server.asked.append(self.path)
                status, body, length = server.files.get(self.path, (404, b"", 0))
                self.send_response(status)
                self.send_header("Content-Length", str(length))
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = True

            def log_message(self, *arguments):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def put(self, path, body, *, status=200, length=None):
        self.files["/" + path] = (status, body, len(body) if length is None else length)
        return self.url + path

    def stop(self):
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


@pytest.fixture
def server():
    running = Server()
    yield running
    running.stop()
