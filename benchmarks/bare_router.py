"""A ROUTER that returns every message, and nothing else: what libzmq and Python cost before any scheduling.

    python bare_router.py        prints `ready ADDRESS`, runs until it is ended
"""

from __future__ import annotations

import zmq


def main() -> None:
    """Echo for ever."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.BACKLOG, 4096)
    router.bind("tcp://127.0.0.1:*")
    print("ready", router.last_endpoint.decode().rstrip("\0"), flush=True)
    while True:
        router.send_multipart(router.recv_multipart())


if __name__ == "__main__":
    main()
