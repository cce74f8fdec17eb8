"""Says whether a Ray cluster answers, as a script of its own: Ray ends a process that waits for one in vain.

Its argument is an address; `auto` takes Ray's own search. It writes a line: `found ADDRESS`, or what is wrong.
"""

import os
import socket
import sys
import threading

# Of a connection, and of all together, beside the import of Ray.
CONNECTION_SECONDS, SECONDS = 4.0, 8.0


def main(address: str) -> str:
    """The line."""
    from ray._private import services
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    # Ray waits outside of Python, where no signal's handler runs.
    threading.Timer(SECONDS, end, [f"it has not answered for {SECONDS:.0f} s"]).start()
    try:
        # Ray takes the machine's own address for "localhost".
        found = services.canonicalize_bootstrap_address_or_die(address)
    except (ConnectionError, ValueError) as error:
        return " ".join(str(error).split())
    host, _, port = found.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECTION_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"nothing answers at {found}, {getattr(error, 'strerror', None) or error}"
    try:
        GcsClient(address=found).internal_kv_get(b"session_dir", timeout=CONNECTION_SECONDS)
    except Exception as error:
        return f"what answers at {found} is not the head of a Ray cluster, {' '.join(str(error).split())[:150]}"
    if not services.find_node_ids():
        return f"this machine is not one of it, which ray start --address={found} makes it"
    return f"found {found}"


def end(line: str) -> None:
    """Write the line, whatever Ray's threads wait for."""
    print(line, flush=True)
    os._exit(0)


if __name__ == "__main__":
    end(main(sys.argv[1]))
