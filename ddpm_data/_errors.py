"""The user's mistakes in one line: what is wrong, and which key or choice was probably meant."""

import difflib
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from inspect import signature
from itertools import dropwhile
from pathlib import Path
from pkgutil import resolve_name
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from hydra._internal.utils import get_args_parser
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    CompactHydraException,
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException

from ddpm_data._console import allow_closed_output
from ddpm_data._interruption import shell_quote
from ddpm_data._keys import GROUPS, NAMED, keyed_text, rename_keys

FULL_ERROR = "HYDRA_FULL_ERROR"  # set to 1, errors come with their traceback
_OURS = "DDPM_DATA_SHORT_ERRORS"  # tells the processes that a job starts that FULL_ERROR was set here
_GROUPS = (*GROUPS, "experiment", "debug", "logger", "callbacks", "trainer", "model", "sweep", "transform")
_NOT_DIRECT = ("namespace", "cls", "seed", "compile", "key_names")  # keys of the DataModule's config, not of our groups
_BUILDER = "ddpm_data.hydra.build_datamodule"
_HINT = f" ({FULL_ERROR}=1 shows the traceback.)"
_STANDARD = sysconfig.get_paths()["stdlib"]
_PACKAGE = str(Path(__file__).parent)
_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def short_errors(main: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
    """Print one line, without a traceback, where a Hydra app is given a wrong key, choice or value.

    It goes above ``@hydra.main(...)``. Errors that are no such mistakes keep their traceback, and with the environment
    variable ``HYDRA_FULL_ERROR=1`` all do.

    Args:
        main: The app, decorated by ``hydra.main``.
    """

    @wraps(main)
    @allow_closed_output()  # such as that of `python app.py --help | head`
    def call(*args: _Parameters.args, **kwargs: _Parameters.kwargs) -> _Result:
        if os.environ.get(FULL_ERROR) == "1" and _OURS not in os.environ:
            return main(*args, **kwargs)
        if not args and not kwargs:  # then Hydra reads the command line
            _refuse_options(sys.argv[1:])
        before = {name: os.environ.get(name) for name in (FULL_ERROR, _OURS)}
        os.environ |= {FULL_ERROR: "1", _OURS: "1"}  # without it, Hydra prints the error and exits
        try:
            return main(*args, **kwargs)
        except Exception as error:
            job = _find_job(error)
            message = explain(error, app_keys(job.tb_frame.f_locals["config"]) if job else None)
            if message is None:
                raise error.with_traceback(job.tb_next if job else error.__traceback__)  # noqa: B904  # the same error
            raise SystemExit(message) from error
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})

    return call


def _refuse_options(arguments: list[str]) -> None:
    """Refuse what begins with a dash and is no option of Hydra's, before it prints all of its options for that.

    Raises:
        SystemExit: There is such an argument.
    """
    parser = get_args_parser()
    for wrong in parser.parse_known_args(arguments)[1]:
        if "=" in wrong:
            raise SystemExit(f"`{wrong}` is no option. Overrides have no dashes: {wrong.lstrip('-')}")
        known = [option for action in parser._actions for option in action.option_strings]
        raise SystemExit(f"`{wrong}` is no option.{did_you_mean(wrong, known)} --hydra-help lists the options.")


def app_keys(config: DictConfig) -> dict[str, str] | None:
    """Find where an app's configuration has our groups, and the arguments that are given to the DataModule directly.

    Returns:
        Names for :func:`~ddpm_data._keys.naming_keys`; ``None`` if no DataModule of the app is made of the groups.
    """
    values = OmegaConf.to_container(config, resolve=False)
    found = next((item for item in _walk(values) if item[1].get("_target_") == _BUILDER), None)
    if found is None:
        return None
    place, node = found
    keys = {}
    for name, value in node.items():
        reference = re.match(r"\$\{(?:oc\.select:)?(\.*)([\w.]+)", str(value))
        if name in GROUPS and reference:
            dots, key = reference.groups()
            above = place.split(".")[: 1 - len(dots) or None] if dots else []
            keys[name] = ".".join([*above, key])
        elif name not in _NOT_DIRECT and not name.startswith("_"):
            keys[name] = f"{place}.{name}"
    return keys


def _walk(values: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:  # noqa: ANN401  # a config's values
    """Yield the dicts in nested dicts, each with its key."""
    if isinstance(values, dict):
        yield place, values
        for name, value in values.items():
            yield from _walk(value, f"{place}.{name}" if place else str(name))


def explain(error: BaseException, names: Mapping[str, str] | None = None) -> str | None:
    """Explain an error that a wrong key, choice or value in a configuration has caused.

    Args:
        error: Raised by Hydra, by a constructor that a config names, or anywhere in a run.
        names: Where the app has our keys, see :func:`~ddpm_data._keys.naming_keys`; ``None`` leaves those of the error.

    Returns:
        A line; ``None`` if the error is no such mistake, so that its traceback is needed.
    """
    if isinstance(error, InstantiationException):
        return _explain_instantiation(error, names)
    if isinstance(error, MissingConfigException) and "/" in str(error.missing_cfg_file):
        return _explain_choice(error)
    if isinstance(error, OverrideParseException):
        return _explain_syntax(error)
    if isinstance(error, ConfigCompositionException):
        return _explain_composition(error)
    if missing := re.search(r"Missing mandatory value: (\S+)", str(error)):  # it may be behind a reference
        key = error.full_key if isinstance(error, MissingMandatoryValue) and error.full_key else missing[1]
        return f"`{key}` has no value (???). Set it: {key}=..."
    if isinstance(error, OmegaConfBaseException | CompactHydraException):
        return _join_lines(str(error))
    if isinstance(error, NAMED) and "`" in str(error):  # it names a key, as our own errors do
        text = str(error) if names is None else rename_keys(keyed_text(error), names)
        return _without_worker(text, type(error).__name__)
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return _explain_file(error)
    if isinstance(error, FileNotFoundError) and _raised_in(error, "lightning"):  # a checkpoint
        return _join_lines(str(error)) + _HINT
    if type(error).__name__ == "MisconfigurationException" and not _passed_users_code(error):  # Lightning's
        return _join_lines(str(error)) + _HINT
    if isinstance(error, ValueError) and _raised_in(error, "hydra", "omegaconf"):
        return _explain_no_choice(error) or _join_lines(str(error))
    return None


def did_you_mean(name: str, known: Iterable[str], prefix: str = "") -> str:
    """Return a question that names what is most like a misspelt name, with a space before it; or an empty string.

    Args:
        name: The name, without the prefix: names that begin alike would all be similar.
        known: The known names.
        prefix: What to write before the name that was found.
    """
    near = _find_similar(name, known)
    return f" Did you mean `{prefix}{near}`?" if near else ""


def _find_similar(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the known name that is spelt most like a name, in whatever case, or else one that has its words."""
    lower = {other.lower(): other for other in known}
    words = set(name.lower().split("_"))
    near = difflib.get_close_matches(name.lower(), lower, 1, cutoff)
    near += [other for other in lower if words <= set(other.split("_"))]
    return lower[near[0]] if near else None


def _explain_instantiation(error: InstantiationException, names: Mapping[str, str] | None) -> str | None:
    """Explain what the constructor or function that a config names has raised; see :func:`explain`."""
    while isinstance(error.__cause__, InstantiationException):
        error = error.__cause__
    target = re.search(r"(?:target|for|partial\() ?'?([\w.]+)'?", str(error))
    key = re.search(r"full_key: (\S+)", str(error))
    place = key[1] if key else "the configuration"
    cause = error.__cause__
    if cause is None or target is None:
        return f"`{place}`: {_join_lines(str(error).partition('full_key:')[0])}"
    if str(error).startswith("Error locating target"):
        return _explain_target(place, target[1], cause)
    name = target[1].rpartition(".")[2]  # what it calls may have been given a wrong argument by others
    unexpected = re.search(rf"{name}(?:\.__init__)?\(\) got an unexpected keyword argument '(\w+)'", str(cause))
    if isinstance(cause, TypeError) and unexpected:
        prefix = f"{key[1]}." if key else ""
        known = _list_arguments(target[1])
        hint = did_you_mean(unexpected[1], known, prefix) or f" Its arguments are {', '.join(known)}."
        return f"`{prefix}{unexpected[1]}` is no argument of {target[1]}.{hint}"
    if names is None and not target[1].startswith("ddpm_data.hydra."):  # those have named the keys
        names = dict.fromkeys(GROUPS, place)
    if (message := explain(cause, names)) is not None:
        return f"`{place}`: {message}" if _raised_in(cause, "site-packages") else message  # ours names the key itself
    if any(map(_is_users, _list_files(cause))):
        return None  # the user's own code may have a bug
    return f"`{place}`: {type(cause).__name__}: {_join_lines(str(cause))}{_HINT}"


def _explain_target(place: str, target: str, cause: BaseException) -> str:
    """Explain why a ``_target_`` cannot be imported."""
    module, _, name = target.rpartition(".")
    try:
        known = dir(resolve_name(module))
    except Exception as error:  # whatever a module of the user's raises while it is imported
        root: BaseException = error
        while root.__cause__ is not None:
            root = root.__cause__
        return f"`{place}._target_`: {target} cannot be imported: {type(root).__name__}: {root}.{_HINT}"
    return f"`{place}._target_`: {module} has no {name}.{did_you_mean(name, known, f'{module}.')}"


def _explain_choice(error: MissingConfigException) -> str:
    """Explain that a config group has no such choice."""
    path = str(error.missing_cfg_file)
    listed = re.search("Available options in '(.*)':", str(error))  # a choice may be in a folder of the group
    group = listed[1] if listed else path.rpartition("/")[0]
    options = error.options or _list_options(error, group)  # Hydra does not list them if the choice was in a list
    choice = path.removeprefix(f"{group}/")
    return f"the config group {group} has no `{choice}`.{did_you_mean(choice, options)} It has {', '.join(options)}."


def _explain_no_choice(error: ValueError) -> str | None:
    """Explain that the choice of a config group is no name, such as null; ``None`` if that was not it."""
    override = _find_locals(error, "__init__").get("override")
    if override is None or not override.key_or_group:
        return None
    group = override.key_or_group
    options = ", ".join(_list_options(error, group))
    return f"`{override.input_line}`: the config group {group} has {options}. To leave the group out, write ~{group}"


def _list_options(error: BaseException, group: str) -> list[str]:
    """List the choices of a config group, which Hydra knew as it raised an error."""
    repo = next((values["repo"] for _, values in _walk_locals(error) if "repo" in values), None)
    return [] if repo is None else list(repo.get_group_options(group, ObjectType.CONFIG))


def _explain_syntax(error: OverrideParseException) -> str:
    """Explain what is wrong with an override in Hydra's grammar, and write it as it was probably meant."""
    typed = error.override
    lines = [line for line in error.message.splitlines() if not line.startswith("See http")]
    place = lines[-1].find("^") - len("LexerNoViableAltException: ")
    reason = lines[-1].partition(" expecting ")[0] if place < 0 else f"mismatched input '{typed[place:]}'"
    key, _, value = typed.partition("=")
    if "[" in key:
        whole = f"{key.partition('[')[0]}=[...]"
        return f"cannot read `{typed}`: one item of a list cannot be set. Write the whole list: {whole}"
    meant = [re.sub("^([^=:]+)(:|==+)", r"\1=", typed)]
    if value[:1] == "(":
        meant.append(f"{key}=[{value.strip('()')}]")
    elif value and value[0] not in "\"'[{" and value[-1] != ",":
        meant += [f"{key}={quote}{value}{quote}" for quote in "'\"" if quote not in value]
    for words in meant:
        try:
            OverridesParser.create().parse_override(words)
        except HydraException:
            continue
        return f"cannot read `{typed}`: {reason}. Did you mean {shell_quote(words)}?"
    return f"cannot read `{typed}`: {reason}. Write key=value, with quotes around signs: 'key=\"a, b\"'."


def _explain_composition(error: ConfigCompositionException) -> str:
    """Explain why Hydra could not compose the configuration."""
    text, cause = str(error), error.__cause__
    if override := re.match(r"Could not override '(.*?)'\.", text):
        line = re.search(r"^To append to your (?:config|default list) use \+(.*)", text, re.MULTILINE)
        to_add = f"To add it, write +{line[1] if line else f'{override[1]}=...'}"
        if isinstance(cause, ConfigAttributeError | ConfigKeyError) and isinstance(cause.parent_node, DictConfig):
            return _explain_key(override[1], str(cause.full_key), cause.parent_node, to_add)
        return f"the configuration has no config group `{override[1]}`. {to_add}"
    config = _find_locals(error, "_apply_overrides_to_config").get("cfg")
    if config is not None and (deleted := re.match(r"Could not delete from config\. '(.*)' does not exist", text)):
        return _explain_key(deleted[1], *_find_gap(deleted[1], config))
    groups = _find_locals(error, "ensure_deletions_used").get("self")
    if groups is not None and (deleted := re.match(r"Could not delete '(.*)'\. No match in the defaults list", text)):
        return _explain_deletion(deleted[1], groups.known_choices)
    if unknown := re.match(r"Override (.*) looks like .* config group '(.*)' does not exist", text):
        return f"`{unknown[1]}`: there is no config group {unknown[2]}.{did_you_mean(unknown[2], _GROUPS)}"
    if ambiguous := re.match(r"Ambiguous value for argument '(.*)'", text):
        key, _, values = ambiguous[1].partition("=")
        return (
            f"`{ambiguous[1]}` gives one run several values. Add -m to run each of them, or write {key}=[{values}] "
            "for a list."
        )
    if repeated := re.match(r"Multiple values for (\S+?)\. To override", text):
        return f"`{repeated[1]}` has a choice already. Replace it, without the plus: {repeated[1]}=..."
    if isinstance(cause, OmegaConfBaseException):
        return f"{_join_lines(text)}: {_join_lines(str(cause))}" if text else explain(cause) or _join_lines(str(cause))
    return _join_lines(text)


def _explain_deletion(typed: str, choices: Mapping[str, str]) -> str:
    """Explain why a choice could not be deleted.

    Args:
        typed: The group, and perhaps its choice, after the ``~``.
        choices: What every group of the defaults list is set to.
    """
    group, _, choice = typed.partition("=")
    if group not in choices:
        return f"`~{typed}`: the defaults list has no {group}.{did_you_mean(group, choices)}"
    return f"`~{typed}`: {group} is `{choices[group]}`, not `{choice}`. To delete it, write ~{group}"


def _find_gap(key: str, config: DictConfig) -> tuple[str, DictConfig]:
    """Return the part of a key, from its begin, that a configuration does not have, and the node that lacks it."""
    parent, names = config, key.split(".")
    for count in range(1, len(names)):
        node = OmegaConf.select(config, ".".join(names[:count]), throw_on_resolution_failure=False)
        if not isinstance(node, DictConfig):
            return ".".join(names[:count]), parent
        parent = node
    return key, parent


def _explain_key(key: str, wrong: str, parent: DictConfig, to_add: str = "") -> str:
    """Explain that the configuration has no such key.

    Args:
        key: The key, or config group, that was to be overridden.
        wrong: Its part, from its begin, that is missing.
        parent: The node that lacks it.
        to_add: How to add the key.
    """
    place, _, name = wrong.rpartition(".")
    if name in parent:
        return f"`{wrong}` is {'null' if parent._is_none() or parent[name] is None else 'no mapping'}."
    if near := _find_near(wrong, parent):
        return f"the configuration has no `{key}`. Did you mean `{near}{key.removeprefix(wrong)}`?"
    keys = ", ".join(str(name) for name in parent if name != "hydra" and not str(name).startswith("_"))
    beside = f"`{place}` has {keys or 'no keys'}" if place else f"It has {keys}"
    return f"the configuration has no `{key}`. {beside}. {to_add}".rstrip()


def _find_near(wrong: str, parent: DictConfig) -> str | None:
    """Find what was meant: a similar key beside it, one of that name anywhere, one that has its words in its name."""
    place, _, name = wrong.rpartition(".")
    everywhere = [] if wrong.startswith("hydra.") else list(_list_keys(parent._get_root()))
    if "/" in wrong and (key := wrong.replace("/", ".")) in everywhere:
        return key
    above, _, group = wrong.rpartition("/")
    if above == "ddpm_data":  # in an app that mounts our groups
        return f"{above}/{near}" if (near := _find_similar(group, _GROUPS)) else None
    beside = [str(key) for key in parent if not str(key).startswith("_")] + ([] if place else list(_GROUPS))
    if near := _find_similar(name, beside, 0.65):
        return f"{place}.{near}" if place else near
    if same := [key for key in everywhere if key.rpartition(".")[2] == name]:
        return same[0]
    group = wrong.partition(".")[0]
    names = {key.rpartition(".")[2]: key for key in everywhere if not place or key.startswith(f"{group}.")}
    return names.get(_find_similar(name, names, 0.8) or "")


def _list_keys(node: Any, prefix: str = "") -> Iterator[str]:  # noqa: ANN401  # OmegaConf's containers
    """List the keys of a configuration, without Hydra's own and those behind references."""
    for key in node:
        child = node._get_node(key)
        if prefix + str(key) == "hydra" or str(key).startswith("_"):
            continue
        yield prefix + str(key)
        if isinstance(child, DictConfig) and not child._is_interpolation() and not child._is_none():
            yield from _list_keys(child, f"{prefix}{key}.")


def _explain_file(error: OSError) -> str | None:
    """Explain that a file or folder cannot be read or written, unless the user's own code asked for it."""
    file = [file for file in _list_files(error) if not _is_standard(file)][-1]
    if _is_users(file):
        return None
    of_run = file.endswith((os.path.join("hydra", "core", "utils.py"), os.path.join("ddpm_data", "hydra.py")))
    key = " It is the run's folder: set `hydra.run.dir` to one that you may write to." if of_run else ""
    return f"{error.filename}: {error.strerror}.{key}"


def _list_arguments(target: str) -> list[str]:
    return [name for name in signature(resolve_name(target)).parameters if name not in ("self", "args", "kwargs")]


def _list_files(error: BaseException) -> list[str]:
    """List the files of the frames that an error has passed, the innermost last."""
    return [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]


def _walk_locals(error: BaseException) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name and the local variables of each function that an error has passed."""
    return ((frame.f_code.co_name, frame.f_locals) for frame, _ in traceback.walk_tb(error.__traceback__))


def _find_locals(error: BaseException, function: str) -> dict[str, Any]:
    """Return the local variables of a function that an error has passed; empty if it has not."""
    return next((values for name, values in _walk_locals(error) if name == function), {})


def _raised_in(error: BaseException, *folders: str) -> bool:
    """Return whether an error was raised in a package, such as ``hydra``, or in any that is installed."""
    file = [file for file in _list_files(error) if not _is_standard(file)][-1:]
    return any(f"{os.sep}{folder}{os.sep}" in name for folder in folders for name in file)


def _passed_users_code(error: BaseException) -> bool:
    """Return whether an error of Lightning's was raised in what a method of the user's had called."""
    return any(map(_is_users, dropwhile(lambda file: f"{os.sep}lightning{os.sep}" not in file, _list_files(error))))


def _is_users(file: str) -> bool:
    return not (_is_standard(file) or "site-packages" in file or file.startswith(_PACKAGE))


def _is_standard(file: str) -> bool:
    return file.startswith("<") or (file.startswith(_STANDARD) and "site-packages" not in file)


def _without_worker(text: str, kind: str) -> str:
    """Return an error's text; one of a DataLoader's worker comes inside that worker's traceback."""
    if "Original Traceback (most recent call last)" not in text:
        return text
    return re.split(rf"^(?:\w+\.)*{kind}: ", text, flags=re.MULTILINE)[-1].strip()


def _find_job(error: BaseException) -> TracebackType | None:
    """Return where Hydra, in an error's traceback, calls the app's function."""
    rest = error.__traceback__
    while rest is not None and (rest.tb_frame.f_code.co_name != "run_job" or "config" not in rest.tb_frame.f_locals):
        rest = rest.tb_next
    return rest


def _join_lines(text: str) -> str:
    """Return the lines that say something in one line."""
    lines = [line.strip() for line in text.splitlines()]
    noise = ("See http", "reference_type", "object_type", "Config search path", "provider=", "full_key: ")
    said = [line for line in lines if line and not line.startswith(noise)]
    key = next((line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), "")
    joined = " ".join(said)
    return f"`{key}`: {joined}" if key and key not in joined else joined
