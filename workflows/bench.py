"""bench: alternatives measured side by side in one run.

python -m workflows.bench NAME [CONFIG...] [key=value ...] [--json]
"""

from __future__ import annotations

import sys
from importlib import import_module

from cluster.machine import prepare_environment
from workflows.door import parser, read_config

NAMES = ("assign", "decode")


def main() -> None:
    """Run one benchmark and print its table; with ``--json`` also one JSON object as the last line."""
    door = parser(__doc__)
    door.add_argument("--json", action="store_true", help="print the result as JSON on the last line")
    arguments = sys.argv[1:]
    name = arguments[0] if arguments else ""
    if name not in NAMES:
        if name in ("-h", "--help"):
            door.parse_args(["-h"])
        print(f"error: unknown benchmark {name!r}; there are: {', '.join(NAMES)}", file=sys.stderr)
        sys.exit(2)
    config = read_config(door, [text for text in arguments[1:] if text != "--json"])
    prepare_environment(config)
    bench = import_module(f"cluster.bench_{name}").run(config)
    print(bench.table(), flush=True)
    if "--json" in arguments:
        print(bench.as_json(), flush=True)


if __name__ == "__main__":
    main()
