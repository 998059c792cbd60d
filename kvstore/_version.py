"""The version of the package: the build, the native core and the commands read it from here."""

from typing import Final

__version__: Final = "0.1.0"
