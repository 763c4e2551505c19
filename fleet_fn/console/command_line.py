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
    return " ".join(quote(part) for part in parts)


def quote(text: str) -> str:
    """Return a text as one word of a shell: Bash, or any other with `$'…'`.

    Names may have control characters. A terminal takes some of them for keys when they are pasted, quoted or not.
    """
    if text.isprintable():
        return shlex.quote(text)
    return "$'{}'".format("".join(map(_escape, text)))


def _escape(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\{byte:03o}" for byte in character.encode(errors="replace"))
