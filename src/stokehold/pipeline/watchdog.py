"""A process that hangs (a kernel that never returns, a dead driver) writes its stacks to the log and ends.

`faulthandler`'s own thread does it, without the interpreter's lock, so that it works when nothing else does. Whoever
started the process starts it again; the run goes on from its newest checkpoint.
"""

import faulthandler


def expect(seconds: float) -> None:
    """Ends the process with code 1 unless this is called again within `seconds`; 0 expects nothing."""
    if seconds > 0:
        faulthandler.dump_traceback_later(seconds, exit=True)
    else:
        faulthandler.cancel_dump_traceback_later()
