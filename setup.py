"""The one part of the package that is compiled: ``kangaroo_jax.kernels._native``. All else is in pyproject.toml.

Without a C++ compiler, or where compiling fails, the package is installed without it and multiplies with XLA.
"""

import sys
from pathlib import Path

import jax
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

NATIVE = Path("kangaroo_jax/kernels/native")


class OptionalBuild(build_ext):
    """Builds the extension, or says in one line why not."""

    def build_extension(self, ext: Extension) -> None:
        """Compile, always; a failure is not one of the installation, and leaves no older library in its place."""
        self.force = True  # The headers that it is compiled with may be another JAX's now.
        try:
            super().build_extension(ext)
        except Exception as error:
            reason = " ".join(str(error).split())[-200:]
            print(f"kangaroo_jax: installed without native CPU kernels, XLA multiplies ({reason})", file=sys.stderr)
            for place in (self.get_ext_fullpath(ext.name), self.get_ext_filename(ext.name)):
                Path(place).unlink(missing_ok=True)


setup(
    ext_modules=[
        Extension(
            "kangaroo_jax.kernels._native",
            sources=[str(path) for path in sorted(NATIVE.glob("*.cc"))],
            depends=[str(path) for path in sorted(NATIVE.glob("*.[hi]*"))],
            include_dirs=[jax.ffi.include_dir()],
            language="c++",
            # IEEE arithmetic, with fused multiply-adds where the processor has them.
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fno-math-errno", "-ffp-contract=fast", "-Wno-psabi"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": OptionalBuild},
)
