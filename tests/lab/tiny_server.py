"""The smallest server a node can run: it says what it was given and misbehaves as MODE tells it."""

import http.server
import json
import os
import signal
import sys
import time

MODE = os.environ.get("MODE", "")


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        status = 503 if MODE == "never-ready" and self.path == "/healthz" else 200
        if self.path == "/metrics":
            body = b"# TYPE tiny_requests counter\ntiny_requests_total 1\n"
        else:
            body = json.dumps({"env": dict(os.environ), "args": sys.argv[1:]}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def main() -> None:
    if MODE == "crash":
        sys.exit(3)
    if MODE == "complete":
        sys.exit(0)
    deaf = MODE == "deaf"
    signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else lambda *_: sys.exit(0))
    if MODE == "sleepy":
        time.sleep(2.0)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler).serve_forever()


if __name__ == "__main__":
    main()
