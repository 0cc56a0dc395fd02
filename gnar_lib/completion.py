"""Makes the scripts by which shells complete gnar's commands and options from the texts of `--help`.

A script contains all commands and options, so that no gnar is started while a user types.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from gnar_lib.synopsis import Command, Operand, Option, Program

NAMES = ("gnar", "gnar.pyz")  # a shell removes the path in front of a name


def script(shell: str, program: Program) -> str:
    """Return the script for one of `SHELLS`, ending with a newline."""
    return _SCRIPTS[shell](program)


def _indented(lines: Iterable[str], depth: int) -> str:
    return "\n".join(" " * 4 * depth + line for line in lines)


# ---- bash --------------------------------------------------------------------------------------------------

_BASH = """\
# Completion of gnar's words for bash, made by: gnar completion bash
_gnar() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} before=${{COMP_WORDS[COMP_CWORD - 1]}} IFS=$' \\t\\n'
    local words='' options='' name names
    COMPREPLY=()
    if [[ $word == = ]]; then # bash takes --auth=hmac for three words
        word=''
    elif [[ $before == = ]]; then
        before=${{COMP_WORDS[COMP_CWORD - 2]}}
    fi
    if ((COMP_CWORD == 1)); then
        words='{commands}' options='{flags}'
    else
        case ${{COMP_WORDS[1]}} in
{cases}
        esac
    fi
    [[ -z $words || $word == -* ]] || options=''
    for names in $options; do # offer those that are not given yet; -p,--port is one option
        for name in ${{names//,/ }}; do
            [[ " ${{COMP_WORDS[*]:1:COMP_CWORD-1}} " != *" $name "* ]] || continue 2
        done
        words+=" ${{names//,/ }}"
    done
    # shellcheck disable=SC2207 # none of the words has a space in it
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}}
complete -F _gnar {names}
"""


def _bash(program: Program) -> str:
    """Return the script for bash."""
    cases = [line for command in program.commands for line in _bash_command(command)]
    cases += [f"{flag}) options='{' '.join(others)}' ;;" for flag, others in program.flags.items() if others]
    return _BASH.format(
        commands=" ".join(command.name for command in program.commands),
        flags=" ".join(program.flags),
        cases=_indented(cases, 3),
        names=" ".join(NAMES),
    )


def _bash_command(command: Command) -> Iterator[str]:
    """Yield the lines of bash that complete a command: values behind an option, and otherwise options."""
    any_value = [name for option in command.options if _can_be_any(option) for name in option.names]
    yield f"{command.name})"
    yield "    case $before in"
    if any_value:
        yield f"        {' | '.join(any_value)}) ;; # any value"
    for option in command.options:
        if option.choices:
            yield f"        {' | '.join(option.names)}) words='{' '.join(option.choices)}' ;;"
        elif option.takes_file:
            yield f"        {' | '.join(option.names)}) compopt -o default 2>/dev/null ;; # files"
    options = f"options='{' '.join(','.join(option.names) for option in command.options)}'"
    if command.operands and command.operands[0].choices:
        yield f"        {command.name}) words='{' '.join(command.operands[0].choices)}' {options} ;;"
    yield from (f"        *) {options} ;;", "    esac", "    ;;")


def _can_be_any(option: Option) -> bool:
    """Tell whether an option has a value that no shell can complete."""
    return bool(option.value) and not option.choices and not option.takes_file


# ---- zsh ---------------------------------------------------------------------------------------------------

_ZSH = """\
#compdef {names}
# Completion of gnar's words for zsh, made by: gnar completion zsh
_gnar() {{
    local command=$words[2] found=1
    local -a commands=(
{commands}
    )
    if (( CURRENT == 2 )); then
        _describe -t commands command commands && found=0
        commands=({flags})
        _describe -o option commands && found=0
        return found
    fi
    shift words
    (( CURRENT-- ))
    case $command in
{cases}
    esac
}}
# zsh loads this file as the function _gnar when it completes for the first time; .zshrc may read it, too.
if [[ $funcstack[1] == _gnar ]]; then
    _gnar "$@"
else
    compdef _gnar {names}
fi
"""


def _zsh(program: Program) -> str:
    """Return the script for zsh."""
    cases = []
    for command in program.commands:
        specs = [spec for option in command.options for spec in _zsh_option(option)]
        specs += map(_zsh_operand, command.operands)
        cases += [f"{command.name})", "    _arguments -s \\"]
        cases += [f"        {spec} \\" for spec in specs[:-1]]
        cases += [f"        {specs[-1]}", "    ;;"]
    for flag, others in program.flags.items():
        if others:
            cases.append(f"{flag}) _arguments {' '.join(others)} ;;")
    return _ZSH.format(
        names=" ".join(NAMES),
        commands=_indented((_zsh_quoted(f"{each.name}:{each.summary}") for each in program.commands), 2),
        flags=" ".join(program.flags),
        cases=_indented(cases, 2),
    )


def _zsh_option(option: Option) -> list[str]:
    """Return what zsh's _arguments calls specs, one for each name of an option.

    An option excludes its other name, and --help excludes everything else.
    """
    others = "- : *" if "--help" in option.names else " ".join(option.names)
    text = option.text.replace("[", r"\[").replace("]", r"\]")
    action = f":{option.value}:{_zsh_action(option)}" if option.value else ""
    specs = []
    for name in option.names:
        # "=" and "+" allow the value in the same word, as in --port=1 and -p1.
        mark = ("=" if name.startswith("--") else "+") if option.value else ""
        specs.append(_zsh_quoted(f"({others}){name}{mark}[{text}]{action}"))
    return specs


def _zsh_action(option: Option) -> str:
    """Return how zsh completes the value of an option; a space is for a value that no shell can complete."""
    if option.choices:
        return f"({' '.join(option.choices)})"
    return "_files" if option.takes_file else " "


def _zsh_operand(operand: Operand) -> str:
    """Return the spec of an operand."""
    action = f"({' '.join(operand.choices)})" if operand.choices else " "
    return _zsh_quoted(f"{'*' if operand.repeats else ''}:{operand.name}:{action}")


def _zsh_quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


# ---- fish --------------------------------------------------------------------------------------------------

_FISH = """\
# Completion of gnar's words for fish, made by: gnar completion fish

# Prints the words between gnar and the cursor, without the word at the cursor.
function __gnar_words
    set -l words (commandline -opc)
    while set -q words[1]; and string match -q '*=*' -- $words[1]
        set -e words[1] # a variable in front of the command
    end
    test (count $words) -lt 2; or printf '%s\\n' $words[2..-1]
end

# Tells whether the arguments are all the words so far.
function __gnar_is
    set -l words (__gnar_words)
    test "$words" = "$argv"
end

# Tells whether an option can come now, given the command, the option's kind and all its names: the
# option is not given yet, or the cursor is at the option's value.
function __gnar_wants -a command kind
    set -l words (__gnar_words)
    test "$words[1]" = $command; or return 1
    test $kind = value; and contains -- "$words[-1]" $argv[3..-1]; and return 0
    for name in $argv[3..-1]
        not string match -q -- "$name" $words; and not string match -q -- "$name=*" $words; or return 1
    end
end

for name in {names}
    complete -c $name -f
{lines}
end
"""


def _fish(program: Program) -> str:
    """Return the script for fish."""
    lines = [
        f"complete -c $name -n __gnar_is -a {command.name} -d {_fish_quoted(command.summary)}"
        for command in program.commands
    ]
    for flag, others in program.flags.items():
        lines.append(f"complete -c $name -n __gnar_is -l {flag[2:]}")
        lines += [f"complete -c $name -n '__gnar_is {flag}' -l {other[2:]}" for other in others]
    for command in program.commands:
        if command.operands and command.operands[0].choices:
            words = " ".join(command.operands[0].choices)
            lines.append(f"complete -c $name -n '__gnar_is {command.name}' -a '{words}'")
        lines += [_fish_option(command, option) for option in command.options]
    return _FISH.format(names=" ".join(NAMES), lines=_indented(lines, 1))


def _fish_option(command: Command, option: Option) -> str:
    """Return the line of fish that completes an option and its value."""
    kind = "value" if option.value else "switch"
    names = " ".join(f"-l {name[2:]}" if name.startswith("--") else f"-s {name[1:]}" for name in option.names)
    condition = f"__gnar_wants {command.name} {kind} {' '.join(option.names)}"
    action = ""
    if option.choices:
        action = f" -xa '{' '.join(option.choices)}'"
    elif option.value:
        action = " -rF" if option.takes_file else " -x"
    return f"complete -c $name -n '{condition}' {names}{action} -d {_fish_quoted(option.text)}"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", r"\\").replace("'", r"\'") + "'"


_SCRIPTS: dict[str, Callable[[Program], str]] = {"bash": _bash, "zsh": _zsh, "fish": _fish}
SHELLS = tuple(_SCRIPTS)
