"""Put on the path of a checked ``predict`` as ``sitecustomize.py``: refuses the network and writes down what was imported.

It knows nothing but the standard library. ``NEUROPRIOR_WATCH`` names the report; every attempt at the network is written at once, so
that a process which swallows the error or ends abruptly is caught too.
"""

import atexit
import json
import os
import sys

REPORT = os.environ.get("NEUROPRIOR_WATCH", "")
EVENTS = {
    "socket.connect",
    "socket.sendto",
    "socket.sendmsg",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.gethostbyaddr",
}


def _refuse(event, arguments):
    if event not in EVENTS:
        return
    where = arguments[-1] if event in ("socket.connect", "socket.sendto", "socket.sendmsg") else arguments[0]
    if isinstance(where, (str, bytes)) and event == "socket.connect":
        return  # a local (AF_UNIX) socket
    with open(REPORT + ".network", "a", encoding="utf-8") as file:
        file.write(f"{event} {where}\n")
    raise PermissionError(f"no network at run time: {event} {where}")


def _write():
    files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
    with open(REPORT, "w", encoding="utf-8") as file:
        json.dump({"modules": {name: path for name, path in files.items() if isinstance(path, str)}}, file)


if REPORT:
    sys.addaudithook(_refuse)
    atexit.register(_write)
