"""The source of a user's own network: its files, their hash, and the copies that a study keeps.

No code of the network is run here. The code is identified by a hash of its files, which a study appends to the name:
``my_net:build@sha256:0123456789ab``. The files are

* those of the package or the file with that name, and of all packages and files beside it that these import;
* for an installed package, only its own files. The packages that it imports are in the list of installed packages.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import re
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from nfnet_ray.errors import UserError
from nfnet_ray.places import in_words
from nfnet_ray.printable import display_path, printable
from nfnet_ray.recipe import WEIGHTS_DIGEST_MARK, Recipe, is_import_path, split_weights
from nfnet_ray.whole_file import whole_file
from nfnet_ray.wording import in_a_row

COPIES_FOLDER = "networks"
"""The folder of a study with the copies, each in a folder named by its hash."""
DIGEST_DIGITS = 12  # as many as a Recipe's fingerprint has
MOST_FILES = 2000  # in a package; more would be a whole environment, which each worker would read
_IMPORT_PATH = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
_MOST_NAMED = 3
_INSTALLED = {"site-packages", "dist-packages"}
# The code in this folder is identified by the commit that a study records.
_PROJECT = Path(__file__).parents[3]
_OF_THE_PROJECT = {"nfnet_ray", "studies", "data_prep", "dashboards", "benchmarks"}


@dataclass(frozen=True)
class NetworkSource:
    """The location of a network's code.

    Attributes:
        module: the module of the builder.
        function: the builder, a function or a class.
        root: the folder that Python searches for the module.
        files: the paths of the files below the root, in order.
        digest: a hash of their names and contents.
        is_installed: whether a study need not copy them, because they belong to an installed package or to nfnet_ray.
    """

    module: str
    function: str
    root: Path
    files: tuple[Path, ...]
    digest: str
    is_installed: bool

    @property
    def name(self) -> str:
        """``my_net:build``."""
        return f"{self.module}:{self.function}"

    @property
    def pinned(self) -> str:
        """The name with the hash of the code."""
        return f"{self.name}{WEIGHTS_DIGEST_MARK}{self.digest}"

    @property
    def units(self) -> list[Path]:
        """The files and packages that Python must be able to find; empty for an installed package."""
        tops = dict.fromkeys(file.parts[0] for file in self.files)
        return [] if self.is_installed else [self.root / top for top in tops]

    @property
    def requirements(self) -> list[str]:
        """The installed package of the network as lines of a requirements file: ``my_nets==1.2``."""
        return [f"{name}=={version}" for name, version in self._packages] if self.is_installed else []

    @property
    def package(self) -> str:
        """The package of the network, which may be installed from a folder: ``my_nets 1.2``; empty if there is none."""
        return in_a_row([f"{name} {version}" for name, version in self._packages])

    @property
    def _packages(self) -> list[tuple[str, str]]:
        names = metadata.packages_distributions().get(self.module.partition(".")[0], [])
        return [(name, metadata.version(name)) for name in dict.fromkeys(names)]

    def sentence(self) -> str:
        """``my_net:build from my_net.py and layers.py (sha256 0123456789ab)``."""
        if self.is_installed:
            whence = self.package or self.module
        else:
            path = Path(*self.module.split("."))
            first = next(
                file for file in self.files if file in (path.with_suffix(".py"), path / "__init__.py")
            )
            others = [str(file) for file in self.files if file != first]
            beside = others if len(others) < _MOST_NAMED else [f"{len(others)} more files"]
            whence = in_a_row([str(first), *beside])
        return f"{self.name} from {printable(whence)} (sha256 {self.digest})"


_copies: list[Path] = []
"""The folders of copies that this process knows. Copies are found by their hash, so they cannot be confused."""


def use_copies_in(folder: Path) -> None:
    """Lets this process also find networks among the copies that a study has in ``folder``."""
    if folder not in _copies:
        _copies.append(folder)


def source_of(name: str) -> NetworkSource:
    """The source of ``model.name``, which may be pinned.

    For a pinned name it is the copy with that hash, if there is one. Otherwise it is the module that Python finds, also
    in the current folder.

    Raises UserError for a name that is no import path, a module that does not exist, and code with another hash.
    """
    path, digest = split_weights(name)
    module, function = _parts(path)
    for folder in _copies if digest is not None else ():
        # Skip a copy that was left half-written.
        with suppress(UserError):
            return _checked(_read(module, function, folder / str(digest), is_installed=False), str(digest))
    root = _root_of(module, path)
    is_project = root == _PROJECT and module.partition(".")[0] in _OF_THE_PROJECT
    found = _read(module, function, root, is_installed=is_project or root.name in _INSTALLED)
    return found if digest is None else _checked(found, digest)


def pinned_network(name: str) -> str:
    """``model.name`` with the hash of a user's own code; others are unchanged. Raises as :func:`source_of`."""
    return source_of(name).pinned if is_import_path(name) else name


def with_pinned_network(recipe: Recipe) -> Recipe:
    """The Recipe with its network :func:`pinned <pinned_network>`, if it is a user's own.

    So a run never continues from a checkpoint of other code. Raises UserError as :func:`source_of` does.
    """
    if not recipe.model.is_own:
        return recipe
    return recipe.with_values({"model.name": pinned_network(recipe.model.name)})


def keep_copies(folder: Path, sources: Iterable[NetworkSource]) -> None:
    """Copies the files of sources to ``folder``, except those of installed packages, and finds them there from now on.

    Raises UserError if they cannot be read or written, or have changed meanwhile.
    """
    for source in sources:
        target = folder / source.digest
        if source.is_installed or source.root == target:
            continue
        try:
            for file in source.files:
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                with whole_file(target / file) as copy:
                    copy.write((source.root / file).read_bytes())
        except OSError as error:
            raise UserError(
                f"{display_path(folder)}: the code of {source.name} cannot be kept there: {in_words(error)}"
            ) from error
        _checked(_read(source.module, source.function, target, is_installed=False), source.digest)
    use_copies_in(folder)


def _parts(path: str) -> tuple[str, str]:
    matched = _IMPORT_PATH.fullmatch(path)
    if matched and not matched.group(1).endswith(".py"):
        return matched.group(1), matched.group(2)
    stem = Path(path.partition(":")[0])
    remedy = f", such as {stem.stem}:build" if stem.suffix == ".py" and stem.stem.isidentifier() else ""
    raise UserError(
        f"model.name = {printable(path)} is not allowed: a network of your own is named by module:function, with the "
        f"module as Python imports it{remedy}"
    )


def _root_of(module: str, name: str) -> Path:
    """The folder of the module's package or file."""
    top = module.partition(".")[0]
    if top == "__main__":
        raise UserError(
            f"model.name = {name}: workers cannot import what was defined in a notebook or a script that runs; "
            "put the network into a file of its own"
        )
    spec = _spec_of(top)
    if spec is None:
        raise UserError(
            f"model.name = {name}: Python finds no module {top}; put {top}.py next to your program or into the current "
            "folder, or install its package"
        )
    origin = Path(spec.origin or "")
    if origin.suffix != ".py":
        what = "is a folder without __init__.py" if spec.submodule_search_locations else "has no source"
        raise UserError(
            f"model.name = {name}: {top} {what}, so nothing identifies its code; name a .py file or a package"
        )
    return origin.resolve().parents[1 if spec.submodule_search_locations else 0]


def _spec_of(top: str) -> ModuleSpec | None:
    """Where Python would find a module, regardless of a module of this name that it has imported."""
    importlib.invalidate_caches()  # the file may be a second old
    for finder in sys.meta_path:
        spec = finder.find_spec(top, None) if hasattr(finder, "find_spec") else None
        if spec is not None:
            return spec
    return PathFinder.find_spec(top, [str(Path.cwd())])


def _read(module: str, function: str, root: Path, is_installed: bool) -> NetworkSource:
    """The source below a root. Raises UserError if the module is not there or cannot be read."""
    try:
        top = module.partition(".")[0]
        own = list(_files_of(root, top))
        path = Path(*module.split("."))
        if not {path.with_suffix(".py"), path / "__init__.py"} & set(own):
            raise UserError(f"model.name = {module}:{function}: {top} has no module {module}; check the name")
        if is_installed and top in _OF_THE_PROJECT:
            own = [file for file in own if file in (path.with_suffix(".py"), path / "__init__.py")]
        contents = {file: (root / file).read_bytes() for file in own}
        units, has_more = {top}, not is_installed
        while has_more:
            beside = set(_imported(contents)) - units - _OF_THE_PROJECT
            found = {name: list(_files_of(root, name)) for name in beside}
            contents |= {file: (root / file).read_bytes() for files in found.values() for file in files}
            units |= beside
            has_more = any(found.values())
    except OSError as error:
        raise UserError(f"model.name = {module}:{function}: {error.filename}: {in_words(error)}") from error
    digest = hashlib.sha256()
    for file, content in sorted(contents.items()):
        digest.update(f"{file.as_posix()}\0{len(content)}\0".encode() + content)
    return NetworkSource(
        module, function, root, tuple(sorted(contents)), digest.hexdigest()[:DIGEST_DIGITS], is_installed
    )


def _files_of(root: Path, top: str) -> Iterator[Path]:
    """The .py files of a package or a file of that name in a folder, relative to it; none if there is neither."""
    if (root / f"{top}.py").is_file() and not (root / top / "__init__.py").is_file():
        yield Path(f"{top}.py")
    elif (root / top / "__init__.py").is_file():
        for number, file in enumerate((root / top).rglob("*.py")):
            if number == MOST_FILES:
                raise UserError(
                    f"{display_path(root / top)} has more than {MOST_FILES:,} .py files, which every worker would have "
                    "to read: put the network into a package of its own"
                )
            relative = file.relative_to(root)
            if not any(part.startswith(".") for part in relative.parts):
                yield relative


def _imported(contents: Mapping[Path, bytes]) -> Iterator[str]:
    """The top-level names that files import, also in functions. Relative imports belong to the package itself."""
    for content in contents.values():
        try:
            tree = ast.parse(content)
        except (SyntaxError, ValueError):  # the import will report it
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                yield node.module.partition(".")[0]


def _checked(found: NetworkSource, digest: str) -> NetworkSource:
    if found.digest == digest:
        return found
    whence = f"{found.package} " if found.is_installed and found.package else ""
    raise UserError(
        f"model.name = {found.name}: {whence}in {display_path(found.root)} on {socket.gethostname()} is not the code "
        f"that was meant (its SHA-256 begins with {found.digest}, not {digest}): restore it, or start a new run"
    )
