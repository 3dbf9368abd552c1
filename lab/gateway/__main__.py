"""`python -m lab.gateway`: the gateway alone, against any cluster that has the Gateway API's CRDs."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from pathlib import Path

from lab.gateway import Gateway
from lab.process import LabError


def main() -> int:
    """Runs until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.gateway", description="A small Gateway API implementation on Envoy."
    )
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument(
        "--folder", type=Path, required=True, help="keeps the port, Envoy's files and its log"
    )
    options = parser.parse_args()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    gateway = Gateway(options.kubeconfig, options.folder)
    try:
        gateway.start()
        print(f"The gateway listens on {gateway.url}", flush=True)
        ended.wait()
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        gateway.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
