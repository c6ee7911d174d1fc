"""A child as the supervisor expects one, without a model: `python -m stand_in SCRIPT… --parent-fd N`.

Each word of the script is done in turn: `say:TEXT`, `env:NAME` (prints its value), `fail:CODE`, `serve` (waits for
the end of the pipe, then leaves with 0), `deaf` (never leaves). With `--stand-by` it first waits to be told to begin.
"""

import os
import sys
import time

GO = b"g"


def main() -> None:
    pipe = int(sys.argv[sys.argv.index("--parent-fd") + 1])
    if "--stand-by" in sys.argv:
        print("stands by", flush=True)
        if os.read(pipe, 1) != GO:
            sys.exit(0)
    for word in sys.argv[1 : sys.argv.index("--parent-fd")]:
        act, _, argument = word.partition(":")
        if act == "say":
            print(argument, flush=True)
        elif act == "env":
            print(f"{argument}={os.environ.get(argument)}", flush=True)
        elif act == "fail":
            sys.exit(int(argument))
        elif act == "serve":
            while os.read(pipe, 1):
                pass
            print("left in order", flush=True)
        elif act == "deaf":
            time.sleep(600)


if __name__ == "__main__":
    main()
