"""What the base image brought along, and what is to be added to it. Called by the Dockerfile.

    python base_packages.py choose    before anything is installed: held.txt, wanted.txt, before.txt
    python base_packages.py check     afterwards: contents.txt; fails if a held one changed

All files lie next to this one, as do requirements.txt and pyproject.toml.

Held are torch, what is compiled against it and whatever the maker of the base built himself: their
versions become constraints. All else stays too unless a package of ours needs a newer one. (The NGC
image's own list of constraints holds everything, packages that it does not contain included, and
so refuses versions of ours.)
"""

import sys
from importlib import metadata
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name
from pip._vendor.packaging.version import InvalidVersion, Version

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    from pip._vendor import tomli as tomllib

FOLDER = Path(__file__).parent
HELD = {'torch', 'torchvision', 'torchao', 'triton', 'pytorch-triton', 'numpy'}
NOT_HERE = {'torch', 'torchaudio'}  # the base has the one, the Dockerfile takes care of the other


def installed() -> dict[str, str]:
    """Version by canonical name, of each package that an import would find."""
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        if distribution.metadata['Name']:
            name = canonicalize_name(distribution.metadata['Name'])
            found.setdefault(name, distribution.version)
    return found


def held(base: dict[str, str]) -> list[str]:
    """Constraints: see above; an own build has a local version, as 2.10.0a0+b558c98.nv25.12."""
    return [
        f'{name}=={version}'
        for name, version in sorted(base.items())
        if _is_version(version) and (name in HELD or '+' in version)
    ]


def wanted(base: dict[str, str], pins: list[str], bounds: list[str]) -> list[str]:
    """Those of `pins` whose package the base lacks or has in a version that breaks its bound.

    Args:
        base: version by name.
        pins: lines of requirements.txt, such as `scipy==1.17.1; python_version >= "3.11"`.
        bounds: pyproject.toml's, such as `scipy>=1.11`; one without a pin is taken itself.
    """
    lines = [Requirement(line) for line in pins if line.strip() and not line.startswith('#')]
    pinned = {_name(line): line for line in lines if line.marker is None or line.marker.evaluate()}
    limits = {_name(line): line for line in map(Requirement, bounds)}
    chosen = {**limits, **pinned}
    return [
        str(chosen[name])
        for name in sorted(chosen)
        if name not in NOT_HERE and not _meets(base.get(name), limits.get(name))
    ]


def changes(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """`name: was -> is` of the base's packages that are no longer what they were."""
    return [
        f'{name}: {version} -> {after.get(name, "gone")}'
        for name, version in sorted(before.items())
        if after.get(name) != version
    ]


def _name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except InvalidVersion:
        return False
    return True


def _meets(version: str | None, limit: Requirement | None) -> bool:
    if version is None or not _is_version(version):
        return False
    return limit is None or limit.specifier.contains(version, prereleases=True)


def choose() -> None:
    """Writes the three lists."""
    base, project = installed(), tomllib.loads((FOLDER / 'pyproject.toml').read_text())
    bounds = project['project']['dependencies'] + project['build-system']['requires']
    for extra in project['project']['optional-dependencies'].values():
        bounds += extra
    pins = (FOLDER / 'requirements.txt').read_text().splitlines()
    lists = {
        'before.txt': [f'{name}=={version}' for name, version in sorted(base.items())],
        'held.txt': held(base),
        'wanted.txt': wanted(base, pins, bounds),
    }
    for name, lines in lists.items():
        (FOLDER / name).write_text(''.join(f'{line}\n' for line in lines))
        if name != 'before.txt':
            print(f'-- {name}', *lines, sep='\n')


def check() -> None:
    """Writes what the image holds and whence, prints what changed; exits if a held one did."""
    before, now = _read('before.txt'), installed()
    changed = changes(before, now)
    contents = [
        f'{name}=={version}  # {origin(before.get(name), version)}\n'
        for name, version in sorted(now.items())
    ]
    (FOLDER / 'contents.txt').write_text(''.join(contents))
    print(
        f'-- {len(before)} packages of the base image, now {len(now)}; changed:', *changed, sep='\n'
    )
    if broken := changes(_read('held.txt'), now):
        raise SystemExit(f'error: the base image lost what it must keep: {", ".join(broken)}')


def origin(was: str | None, version: str) -> str:
    """Who brought this version: the base image or we."""
    if was is None:
        return 'added'
    return 'base' if was == version else f'base had {was}'


def _read(name: str) -> dict[str, str]:
    lines = (FOLDER / name).read_text().splitlines()
    return dict(line.split('==', 1) for line in lines)


if __name__ == '__main__':
    {'choose': choose, 'check': check}[sys.argv[1]]()
