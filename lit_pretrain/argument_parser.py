"""The parser of commands that do not train; a mistake on the command line is answered as every other one."""

import argparse
from typing import NoReturn

from lit_pretrain.errors import UserError


class ArgumentParser(argparse.ArgumentParser):
    """argparse that answers a mistake with one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage."""
        raise UserError(f"{message.rstrip('.')}: see {self.prog} --help.")
