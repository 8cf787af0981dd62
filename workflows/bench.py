"""bench: alternatives measured side by side in one run.

python -m workflows.bench {assign,decode,sft,rl} [CONFIG...] [key=value ...] [--json]      speed and memory
python -m workflows.bench insert CONFIG... [bench.items=200]       new items in a live catalogue, without retraining
python -m workflows.bench {tokenizers,losses} CONFIG... [bench.variants=[cross_entropy,focal] bench.seeds=3]
python -m workflows.bench tasks CONFIG... learning.sft.max_steps=50 [bench.variants=[next_item,all] bench.seeds=1]
python -m workflows.bench chat CONFIG... [bench.variants=[preference_analysis]]      talks to a policy that knows text
python -m workflows.bench {rewards,searches} CONFIG... [bench.variants=[config,v1,v3] bench.seeds=5]
"""

from __future__ import annotations

import sys
from importlib import import_module

from cluster.session import prepare_environment
from genrec.errors import InputError
from workflows import assign, embed, prepare
from workflows.door import parser, read_config, refused

NEEDS = {
    **dict.fromkeys(("assign", "decode", "sft", "rl"), ()),
    "insert": (prepare, embed),
    "tokenizers": (prepare, embed),
    "losses": (prepare, assign),
    "tasks": (prepare, assign),
    "chat": (prepare, assign),
    "rewards": (prepare, assign, embed),
    "searches": (prepare, assign),
}


def main() -> None:
    """Run one benchmark and print its table; with ``--json`` also one JSON object as the last line."""
    door = parser(__doc__)
    door.add_argument("--json", action="store_true", help="print the result as JSON on the last line")
    arguments = sys.argv[1:]
    name = arguments[0] if arguments else ""
    if name not in NEEDS:
        if name in ("-h", "--help"):
            door.parse_args(["-h"])
        print(f"error: unknown benchmark {name!r}; there are: {', '.join(NEEDS)}", file=sys.stderr)
        sys.exit(2)
    config = read_config(door, [text for text in arguments[1:] if text != "--json"])
    prepare_environment(config)
    try:
        inputs = [step.run(config) for step in NEEDS[name]]
        bench = import_module(f"benchmarks.{name}").run(config, *inputs)
    except InputError as error:
        sys.exit(refused(error))
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues from here", file=sys.stderr)
        sys.exit(130)
    print(bench.table(), flush=True)
    if "--json" in arguments:
        print(bench.as_json(), flush=True)


if __name__ == "__main__":
    main()
