"""Looks into arguments of the command line before a parser does."""

CONFIG_OPTIONS = ("-c", "--config")


def value_of(arguments: list[str], option: str) -> str | None:
    """The last value of an option, or null."""
    values = values_of(arguments, option)
    return values[-1] if values else None


def values_of(arguments: list[str], *options: str) -> list[str]:
    """All values of an option, given as "--option value" or "--option=value"."""
    values = []
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in options:
            if equals:
                values.append(value)
            elif place + 1 < len(arguments):
                values.append(arguments[place + 1])
    return values


def replaced(arguments: list[str], option: str, value: str) -> list[str]:
    """The arguments with an option's value replaced."""
    result = list(arguments)
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{option}="):
            result[place] = f"{option}={value}"
        elif argument == option:
            result[place + 1] = value
    return result


def without(arguments: list[str], option: str) -> list[str]:
    """The arguments without an option and those below it, "--data" and "--data.path" say, and without their values."""
    result, skip = [], False
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if name == option or name.startswith(f"{option}."):
            skip = not equals
        elif skip:
            skip = False
        else:
            result.append(argument)
    return result
