"""The command line that does the same as a page, to be copied."""

import shlex


def command_line(*words: str, **options: object) -> str:
    """Return a `fleet-fn` command, quoted for a shell.

    Args:
        words: the command, and its subcommand.
        options: by name, with underscores for hyphens; a list repeats one, True has no value, None is left out.

    """
    parts = ["fleet-fn", *words]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list | tuple) else (value,):
            if each is True:
                parts.append(option)
            elif each not in (None, False, ""):
                # An argument that begins with a hyphen would be an option.
                parts.extend([f"{option}={each}"] if str(each).startswith("-") else [option, str(each)])
    return shlex.join(parts)
