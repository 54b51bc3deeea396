"""torchrun (`python -m scripts.launch`, the same arguments) that leaves it to the programs to say what went wrong."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Any

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousConnectionError, RendezvousError
from torch.distributed.run import main as torchrun

from utils.errors import TRY_AGAIN, one_line, port_taken
from utils.parallel import SIGNALS

USER_ERROR = 2  # exit code of a program that has said in one line what to fix


def main() -> None:
    """Run torchrun; where a process failed, exit with its code instead of torchrun's traceback.

    A process that a signal has ended could say nothing, so that a sentence does, with code 2, as where the processes
    cannot meet. `TRY_AGAIN` says that a signal reached torchrun, which it hands on to them.
    """
    os.environ.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "120")  # s, for a step and its checkpoint; torch's are 30
    ignored = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_IGN]  # SIGHUP under nohup
    if ignored:
        signal.pthread_sigmask(signal.SIG_BLOCK, ignored)  # torchrun would take it all the same
    for number in SIGNALS:  # torchrun then takes those that it knows itself, which differ between versions
        signal.signal(number, _hand_on)
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # a summary follows
    try:
        torchrun()
    except ChildFailedError as error:
        number, failure = error.get_first_failure()
        if failure.exitcode > 0:
            sys.exit(failure.exitcode)
        name = failure.signal_name()
        why = "what it has written before may say why"
        if name == "SIGKILL":
            why = "most likely for want of memory; a training goes on with --resume auto"
        sys.stderr.write(f"error: process {number} was ended by {name}, {why}\n")
        sys.exit(USER_ERROR)
    except SignalException as error:
        sys.stderr.write(f"stopped by {error.sigval.name}\n")
        sys.exit(TRY_AGAIN)
    except RuntimeError as error:  # of a port that is taken, before PyTorch 2.7; a DistNetworkError is one too
        cause = port_taken(error)
        if not cause and isinstance(error, DistNetworkError):
            cause = f"the processes cannot meet ({error}); check PET_MASTER_ADDR and PET_MASTER_PORT"
        if not cause:
            raise
        sys.stderr.write(f"error: {cause}\n")
        sys.exit(USER_ERROR)
    except RendezvousError as error:  # of several nodes
        place = os.environ.get("PET_RDZV_ENDPOINT", "the rendezvous endpoint")
        cause = f"the nodes do not meet at {place} ({one_line(error)}); the log of each says why"
        if isinstance(error, RendezvousConnectionError):
            cause = f"torchrun of {place}, at which the nodes meet, has ended or is out of reach; its log says why"
        sys.stderr.write(f"error: {cause}\n")
        sys.exit(USER_ERROR)


def _hand_on(number: int, _frame: Any) -> None:
    name = signal.Signals(number)
    raise SignalException(f"torchrun got {name.name}", sigval=name)


if __name__ == "__main__":
    main()
