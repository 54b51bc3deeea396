"""torchrun (`python -m scripts.launch`, the same arguments) that stays quiet about a user's mistake."""

from __future__ import annotations

import logging
import sys

from torch.distributed import DistNetworkError
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from utils.distributed import port_taken

USER_ERROR = 2  # exit code of a program that has said in one line what to fix


def main() -> None:
    """Run torchrun; where a process ended with code 2, exit with it instead of torchrun's traceback.

    So does torchrun itself where its processes cannot meet.
    """
    logging.getLogger("torch.distributed.elastic.multiprocessing.api").setLevel(logging.CRITICAL)  # a summary follows
    try:
        torchrun()
    except ChildFailedError as error:
        if error.get_first_failure()[1].exitcode == USER_ERROR:
            sys.exit(USER_ERROR)
        raise
    except DistNetworkError as error:
        cause = port_taken(error) or f"the processes cannot meet ({error}); check PET_MASTER_ADDR and PET_MASTER_PORT"
        sys.stderr.write(f"error: {cause}\n")
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
